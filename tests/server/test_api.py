"""The HTTP interface: what is admitted, what is refused, and in which words."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from server.settings import Settings
from server.streams import Streams
from stream.admission import Admission, Demand
from tests.server.conftest import TERMS, LiveServer, StartServer, next_of
from tests.server.engines import PatchEngine
from tests.server.rtc import until


def said(answer: httpx.Response) -> str:
    """The code of an error in the one form that all errors have."""
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "hint"}
    assert error["message"]
    assert "Traceback" not in answer.text
    return str(error["code"])


async def test_a_session_is_created_shown_and_ended(server: LiveServer) -> None:
    answer = await server.http.post(
        "/v1/sessions", json={"source": "webrtc", "consent": True, "idle": "rest"}
    )
    assert answer.status_code == 201
    given = answer.json()
    assert set(given) == {"id", "token", "urls", "ice_servers"}
    assert answer.headers["location"] == f"/v1/sessions/{given['id']}"
    bearer = {"Authorization": f"Bearer {given['token']}"}
    about = (await server.http.get(given["urls"]["session"], headers=bearer)).json()
    assert about["state"] == "waiting"
    assert about["idle"] == "rest"
    assert about["latency_budget_ms"] == server.settings.latency_budget_ms
    assert about["mark"] is True
    assert {"rung", "face", "stage_ms", "skew_ms", "late", "dropped", "epoch"} <= set(about)

    for _ in range(2):  # idempotent
        assert (await server.http.delete(given["urls"]["session"], headers=bearer)).status_code == 204
    assert (await server.http.get(given["urls"]["session"], headers=bearer)).status_code == 404
    assert len(server.registry) == 0


BAD_BODIES: list[tuple[Any, int, str]] = [
    ({}, 403, "consent_required"),
    ({"consent": False}, 403, "consent_required"),
    ({"consent": "yes"}, 422, "bad_request"),
    ({**TERMS, "mark": False}, 403, "mark_required"),
    ({**TERMS, "engine": "nonesuch"}, 422, "unknown_engine"),
    ({**TERMS, "latency_budget_ms": 1}, 422, "bad_latency_budget"),
    ({**TERMS, "latency_budget_ms": 99_999}, 422, "bad_latency_budget"),
    ({**TERMS, "latency_budget_ms": 0}, 422, "bad_latency_budget"),
    ({**TERMS, "idle": "sleep"}, 422, "bad_request"),
    ({**TERMS, "policy": "late"}, 422, "bad_request"),
    ({**TERMS, "hold_ms": 2000}, 422, "bad_hold"),
    ({**TERMS, "policy": "aligned", "hold_ms": 100}, 422, "bad_hold"),
    ({**TERMS, "policy": "aligned", "hold_ms": 60_000}, 422, "bad_hold"),
    ({**TERMS, "source": "tape"}, 422, "bad_request"),
    ({**TERMS, "source": {"file": "nobody.mp4"}}, 422, "unknown_source"),
    ({**TERMS, "source": {"file": "../secret.mp4"}}, 422, "unknown_source"),
    ({**TERMS, "source": {"file": "/etc/passwd"}}, 422, "unknown_source"),
    ({**TERMS, "source": {"file": ""}}, 422, "bad_request"),
    ({**TERMS, "surprise": 1}, 422, "bad_request"),
    ([], 422, "bad_request"),
    ("text", 422, "bad_request"),
]


async def test_a_bad_body_is_refused_with_the_reason(server: LiveServer) -> None:
    for body, status, code in BAD_BODIES:
        answer = await server.http.post("/v1/sessions", json=body)
        assert (body, answer.status_code, said(answer)) == (body, status, code)
        assert answer.json()["error"]["hint"]
        assert len(server.registry) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"latency_budget_ms": "400"}, "latency_budget_ms: input should be a valid integer"),
        ({"latency_budget_ms": True}, "latency_budget_ms: input should be a valid integer"),
        ({"hold_ms": "2000"}, "hold_ms: input should be a valid integer"),
        ({"source": {"file": 5}}, "source.file: input should be a valid string"),
        ({"source": {"file": ""}}, "source.file: string should have at least 1 character"),
        ({"source": {"file": "sample", "x": 1}}, "source.x: extra inputs are not permitted"),
        ({"source": {"file": "sample", "X": 1}}, "source.X: extra inputs are not permitted"),
        ({"source": {}}, "source.file: field required"),
        ({"source": "tape"}, "source: input should be 'webrtc' or input should be an object"),
        (
            {"source": {"file": 5}, "hold_ms": "2000", "idle": 1},
            "source.file: input should be a valid string (and 2 more)",
        ),
    ],
)
async def test_a_wrong_type_is_named_in_the_sender_s_own_terms(
    server: LiveServer, wrong: dict[str, Any], message: str
) -> None:
    answer = await server.http.post("/v1/sessions", json={**TERMS, **wrong})
    assert (answer.status_code, said(answer)) == (422, "bad_request")
    assert answer.json()["error"]["message"] == message


async def test_what_is_not_json_is_refused(server: LiveServer) -> None:
    post = server.http.post
    kind = {"Content-Type": "application/json"}
    answer = await post("/v1/sessions", content=b"consent=true")
    assert (answer.status_code, said(answer)) == (415, "not_json")
    answer = await post("/v1/sessions", content=b"{nonsense", headers=kind)
    assert (answer.status_code, said(answer)) == (422, "bad_request")
    answer = await post("/v1/sessions", content=b"\xff\xfe", headers=kind)
    assert (answer.status_code, said(answer)) == (422, "bad_request")
    answer = await post("/v1/sessions", content=b" " * 100_000, headers=kind)
    assert (answer.status_code, said(answer)) == (413, "body_too_large")
    deep = b'{"consent":' + b"[" * 8000
    answer = await post("/v1/sessions", content=deep, headers=kind)
    assert (answer.status_code, said(answer)) == (422, "bad_request")


async def half_sent(server: LiveServer, header: str, body: bytes) -> tuple[asyncio.StreamReader, Any]:
    """A POST to /v1/sessions whose body has only begun."""
    port = int(server.address.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST /v1/sessions HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n{header}"
    )
    writer.write(head.encode() + b"\r\n\r\n" + body)
    await writer.drain()
    return reader, writer


async def test_a_body_that_is_said_to_be_too_large_is_not_waited_for(server: LiveServer) -> None:
    reader, writer = await half_sent(server, "Content-Length: 99999999999", b"x")
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"body_too_large"' in answer
    writer.close()


@pytest.mark.parametrize(
    ("header", "body"), [("Content-Length: 100", b"x"), ("Transfer-Encoding: chunked", b"5\r\nab")]
)
async def test_a_client_that_hangs_up_inside_a_post_leaves_one_line(
    server: LiveServer, caplog: pytest.LogCaptureFixture, header: str, body: bytes
) -> None:
    caplog.set_level(logging.INFO)
    _, writer = await half_sent(server, header, body)
    writer.close()
    await until(lambda: "a client hung up before the end of its request" in caplog.messages)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_a_broken_chunk_is_no_fault(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    header = "Expect: 100-continue\r\nTransfer-Encoding: chunked"
    reader, writer = await half_sent(server, header, b"")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    writer.write(b"zz\r\nxx")
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 400 ")
    writer.close()
    await until(lambda: "a client hung up before the end of its request" in caplog.messages)
    assert [record for record in caplog.records if record.exc_info] == []


async def test_unknown_routes_and_wrong_methods(server: LiveServer) -> None:
    http = server.http
    for method, path, status, code in [
        ("GET", "/nothing/here", 404, "unknown_route"),
        ("GET", "/v1/nothing", 404, "unknown_route"),
        ("PUT", "/v1/sessions", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("POST", "/v1/sessions/x", 405, "method_not_allowed"),
        ("POST", "/index.html", 405, "method_not_allowed"),
        ("GET", "/v1/sessions/unknown", 404, "unknown_session"),
        ("GET", "/%2e%2e/pyproject.toml", 404, "unknown_route"),
    ]:
        answer = await http.request(method, path)
        assert (method, path, answer.status_code, said(answer)) == (method, path, status, code)
    assert (await http.request("PUT", "/v1/sessions")).headers["allow"] == "POST"
    # An id that never was ends as well as one that was: neither tells a guesser anything.
    assert (await http.delete("/v1/sessions/unknown")).status_code == 204


async def test_a_session_needs_its_token(server: LiveServer) -> None:
    session = await server.create()
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {session.token}"}):
        for method in ("GET", "DELETE"):
            answer = await server.http.request(method, session.urls["session"], headers=headers)
            assert (answer.status_code, said(answer)) == (401, "unauthorised")
            assert "Bearer" in answer.headers["www-authenticate"]
    assert len(server.registry) == 1


async def test_with_a_server_key_only_its_holder_creates_sessions(start_server: StartServer) -> None:
    server = await start_server(server_key="open sesame")
    assert said(await server.http.post("/v1/sessions", json=TERMS)) == "unauthorised"
    wrong = {"Authorization": "Bearer open"}
    assert (await server.http.post("/v1/sessions", json=TERMS, headers=wrong)).status_code == 401
    assert (await server.http.get("/v1/presenters")).status_code == 401
    right = {"Authorization": "Bearer open sesame"}
    assert (await server.http.post("/v1/sessions", json=TERMS, headers=right)).status_code == 201


async def test_without_a_key_only_this_machine_is_served(server: LiveServer) -> None:
    assert Settings(host="0.0.0.0").listen_host == "127.0.0.1"
    assert Settings.model_validate({"host": "0.0.0.0", "server_key": "k"}).listen_host == "0.0.0.0"
    # Another site's name that was rebound to 127.0.0.1 brings its own Host header along.
    answer = await server.http.post("/v1/sessions", json=TERMS, headers={"Host": "evil.example"})
    assert (answer.status_code, said(answer)) == (403, "host_refused")


async def test_pages_of_other_sites_are_refused(start_server: StartServer) -> None:
    server = await start_server(allowed_origins=("https://app.example",))
    host = server.address.removeprefix("http://")
    for origin, status in [
        ("https://evil.example", 403),
        ("null", 403),
        (f"http://{host}", 201),
        ("https://app.example", 201),
    ]:
        answer = await server.http.post("/v1/sessions", json=TERMS, headers={"Origin": origin})
        assert (origin, answer.status_code) == (origin, status)
        allowed = answer.headers.get("access-control-allow-origin")
        assert allowed == (origin if origin == "https://app.example" else None)
    preflight = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    assert (await server.http.options("/v1/sessions", headers=preflight)).status_code == 200


async def test_a_full_server_says_when_to_come_back(start_server: StartServer) -> None:
    server = await start_server(max_sessions=1)
    assert (await server.http.get("/readyz")).status_code == 200
    answers = await asyncio.gather(*(server.http.post("/v1/sessions", json=TERMS) for _ in range(12)))
    assert sorted(a.status_code for a in answers) == [201] + [503] * 11
    refused = next(a for a in answers if a.status_code == 503)
    assert said(refused) == "full"
    assert int(refused.headers["retry-after"]) > 0
    ready = await server.http.get("/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (503, "full")
    assert (await server.http.get("/healthz")).status_code == 200
    text = (await server.http.get("/metrics")).text
    assert 'retalk_refused_total{code="full"} 11.0' in text
    assert "retalk_sessions 1.0" in text


async def test_of_fifty_at_once_as_many_are_admitted_as_measured_costs_allow(
    start_server: StartServer,
) -> None:
    async def load_streams(_: Settings) -> Streams:
        streams = Streams(PatchEngine(), Demand(device=0.001, cores=0.16))
        streams.admission = Admission(
            Demand(device=0.17, cores=0.17), devices=1, cores=4, device_loads=dict, cpu_s=lambda: 0.0
        )
        return streams

    server = await start_server(load_streams, max_sessions=64)
    await until(lambda: server.registry.free == 4)
    answers = await asyncio.gather(*(server.http.post("/v1/sessions", json=TERMS) for _ in range(50)))
    assert sorted(a.status_code for a in answers) == [201] * 4 + [503] * 46
    for refused in (a for a in answers if a.status_code == 503):
        assert said(refused) == "full"
        assert "68% of its device" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) > 0
    ready = await server.http.get("/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (503, "full")
    assert ready.json()["used"]["device"] == 0.68
    given = next(a.json() for a in answers if a.status_code == 201)
    bearer = {"Authorization": f"Bearer {given['token']}"}
    assert (await server.http.delete(given["urls"]["session"], headers=bearer)).status_code == 204
    assert (await server.http.get("/readyz")).json()["free"] == 1
    again = await asyncio.gather(*(server.http.post("/v1/sessions", json=TERMS) for _ in range(3)))
    assert sorted(a.status_code for a in again) == [201, 503, 503]


async def test_a_draining_server_admits_nobody(server: LiveServer) -> None:
    session = await server.create()
    server.registry.drain()
    answer = await server.http.post("/v1/sessions", json=TERMS)
    assert (answer.status_code, said(answer)) == (503, "draining")
    assert (await server.http.get("/readyz")).json()["reason"] == "draining"
    assert (await session.about())["state"] == "waiting"


async def test_until_the_engine_is_there_sessions_have_to_wait(start_server: StartServer) -> None:
    async def never(_: Settings) -> Streams:
        await asyncio.Event().wait()
        raise AssertionError

    server = await start_server(load_streams=never)
    assert (await server.http.get("/readyz")).json()["reason"] == "loading"
    answer = await server.http.post("/v1/sessions", json=TERMS)
    assert (answer.status_code, said(answer)) == (503, "loading")


async def test_an_engine_that_cannot_be_loaded_is_named(start_server: StartServer) -> None:
    async def broken(_: Settings) -> Streams:
        raise ValueError("no such device")

    server = await start_server(load_streams=broken)
    await asyncio.sleep(0)
    assert "no such device" in (await server.http.get("/readyz")).json()["reason"]
    answer = await server.http.post("/v1/sessions", json=TERMS)
    assert (answer.status_code, said(answer)) == (503, "engine_failed")


async def test_a_session_that_nobody_joins_ends(start_server: StartServer) -> None:
    server = await start_server(idle_timeout_s=0.3)
    session = await server.create()
    async with session.socket("signal"):
        await asyncio.sleep(0.6)
        assert len(server.registry) == 1, "somebody is there"
    await until(lambda: len(server.registry) == 0, within_s=3)


async def test_presenters_come_from_their_folder_only(start_server: StartServer, tmp_path: Path) -> None:
    folder = tmp_path / "presenters"
    folder.mkdir()
    picture = np.full((64, 64, 3), 90, np.uint8)
    cv2.imwrite(str(folder / "anna.png"), picture)
    cv2.imwrite(str(tmp_path / "secret.png"), picture)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "text.mp4").write_text("this is no film")
    server = await start_server(presenters_dir=folder)

    async def ask(name: str) -> httpx.Response:
        return await server.http.post("/v1/sessions", json={**TERMS, "source": {"file": name}})

    for name in ("../secret.png", "link.png", ".", "anna.png/", "anna.png\0"):
        assert (name, said(await ask(name))) == (name, "unknown_source")
    unusable = await ask("text.mp4")
    assert said(unusable) == "unusable_source"
    assert unusable.json()["error"]["message"].startswith("text.mp4: ")
    assert str(tmp_path) not in unusable.text
    session = await server.create(source={"file": "anna.png"})

    async with session.socket("signal") as socket, asyncio.timeout(5):
        while (await next_of(socket, "stats"))["frames"] < 5:
            pass
    listed = (await server.http.get("/v1/presenters")).json()["presenters"]
    assert [one["label"] for one in listed if one["name"] != "sample"] == ["anna"]
    poster = await server.http.get(session.urls["poster"])
    assert (poster.status_code, poster.headers["content-type"]) == (200, "image/jpeg")
    assert cv2.imdecode(np.frombuffer(poster.content, np.uint8), cv2.IMREAD_COLOR).shape == (64, 64, 3)
    assert (await server.http.get(session.urls["poster"].split("?")[0])).status_code == 401
    live = await server.create()
    assert said(await server.http.get(f"{live.urls['session']}/poster", headers=live.bearer)) == "no_poster"


async def test_a_presenter_s_name_of_any_length_is_refused_in_words(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(presenters_dir=tmp_path)
    (tmp_path / "circle.png").symlink_to("circle.png")
    for name in ("\U0001f600" * 200, "a" * 200, "circle.png"):
        answer = await server.http.post("/v1/sessions", json={**TERMS, "source": {"file": name}})
        assert (answer.status_code, said(answer)) == (422, "unknown_source")


async def test_a_poster_whose_file_has_gone_is_no_fault(start_server: StartServer, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "anna.png"), np.full((64, 64, 3), 90, np.uint8))
    server = await start_server(presenters_dir=tmp_path)
    session = await server.create(source={"file": "anna.png"})
    (tmp_path / "anna.png").unlink()
    answer = await server.http.get(session.urls["poster"])
    assert (answer.status_code, said(answer)) == (404, "no_poster")
    assert str(tmp_path) not in answer.text


async def test_a_host_or_origin_that_is_no_address_is_refused(server: LiveServer) -> None:
    for header, value, code in [
        ("Host", "[::1", "host_refused"),
        ("Origin", "http://[bad", "origin_refused"),
    ]:
        answer = await server.http.post("/v1/sessions", json=TERMS, headers={header: value})
        assert (header, answer.status_code, said(answer)) == (header, 403, code)


async def test_an_operator_can_allow_pictures_without_the_mark(start_server: StartServer) -> None:
    server = await start_server(allow_unmarked=True)
    session = await server.create(mark=False)
    assert (await session.about())["mark"] is False


async def test_the_page_is_served_fresh_and_typed(server: LiveServer) -> None:
    for path, kind in [
        ("/", "text/html"),
        ("/style.css", "text/css"),
        ("/js/api.js", "text/javascript"),
        ("/icon.svg", "image/svg+xml"),
        ("/sample/speech.wav", "audio/"),
    ]:
        answer = await server.http.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"].startswith(kind), path
        assert answer.headers["cache-control"] == "no-cache"
    etag = answer.headers["etag"]
    assert (await server.http.get(path, headers={"If-None-Match": etag})).status_code == 304
