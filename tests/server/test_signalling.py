"""Signalling: strangers' SDP and messages cost an error message, never the socket or the server."""

from __future__ import annotations

import contextlib
import json
import random
import time
from typing import Any

from server.peers import Role
from tests.server.conftest import LiveServer, StartServer, closed_with, negotiate, next_of
from tests.server.rtc import Camera, Microphone, client, until
from tests.server.watcher import Watcher


async def good_sdp() -> str:
    """What a stock client offers."""
    peer = client()
    peer.addTransceiver("video", direction="recvonly")
    peer.addTransceiver("audio", direction="recvonly")
    await peer.setLocalDescription(await peer.createOffer())
    sdp = str(peer.localDescription.sdp)
    await peer.close()
    return sdp


def mutilated(sdp: str, seed: int) -> str:
    """A seeded mutation: lines lost, doubled, swapped, cut short or filled with noise."""
    chance = random.Random(seed)
    lines = sdp.split("\r\n")
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(lines))
        match chance.randrange(5):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[at])
            case 2:
                other = chance.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines[at] = lines[at][: chance.randint(0, len(lines[at]))]
            case _:
                noise = "".join(chr(chance.randint(32, 0x2FF)) for _ in range(chance.randint(1, 20)))
                lines[at] = lines[at][:2] + noise
        if not lines:
            break
    return "\r\n".join(lines)


async def test_broken_sdp_is_answered_with_the_reason(server: LiveServer) -> None:
    good = await good_sdp()
    section = good[good.index("m=") :]
    candidates = "a=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n" * 31
    table = [
        ("", "bad_sdp"),
        ("garbage", "bad_sdp"),
        ("v=0", "bad_sdp"),
        ("v=0\r\nm=audio", "bad_sdp"),
        ("v=0\r\n" + "a" * 5000, "bad_sdp"),
        (good.replace("a=ice-ufrag", "a=x"), "bad_sdp"),
        (good.replace("a=fingerprint", "a=x"), "bad_sdp"),
        (good.replace("a=rtcp-mux", "a=x"), "bad_sdp"),
        (good.replace("a=mid:1", "a=mid:0"), "bad_sdp"),
        (good + section * 4, "too_many_tracks"),
        (good + candidates, "too_many_candidates"),
        (good + f"a={'x' * 1000}\r\n" * 135, "sdp_too_large"),
    ]
    session = await server.create()
    async with session.socket("signal") as socket:
        for sdp, code in table:
            await socket.send(json.dumps({"type": "offer", "role": "viewer", "sdp": sdp}))
            reply = await next_of(socket, "error", "answer")
            assert (sdp[:60], reply.get("error", {}).get("code")) == (sdp[:60], code)
            assert reply["error"]["message"]
            assert reply["error"]["hint"]
    assert (await server.http.get("/healthz")).status_code == 200


async def test_mutilated_sdp_never_ends_the_socket(server: LiveServer) -> None:
    good = await good_sdp()
    session = await server.create()
    async with session.socket("signal") as socket:
        replies = []
        for seed in range(60):
            sdp = mutilated(good, seed)
            await socket.send(json.dumps({"type": "offer", "role": "viewer", "sdp": sdp}))
            reply = await next_of(socket, "error", "answer")
            replies.append(reply["type"])
            assert reply.get("error", {}).get("code") not in ("internal", ""), sdp
        assert set(replies) == {"error", "answer"}
        peer = client()
        watcher = Watcher(peer)
        peer.addTransceiver(Camera(), direction="sendrecv")
        await negotiate(socket, peer, "duplex")
        await until(lambda: len(watcher.video) > 3)
        await peer.close()


BAD_MESSAGES: list[tuple[Any, str]] = [
    ("not json", "bad_message"),
    ([], "bad_message"),
    ({}, "bad_message"),
    ({"type": "hello"}, "bad_message"),
    ({"type": "offer", "sdp": "v=0"}, "bad_message"),
    ({"type": "offer", "role": "king", "sdp": "v=0"}, "bad_message"),
    ({"type": "offer", "role": "viewer"}, "bad_message"),
    ({"type": "offer", "role": "viewer", "sdp": 7}, "bad_message"),
    ({"type": "offer", "role": "viewer", "sdp": "v=0", "more": 1}, "bad_message"),
    ({"type": "answer", "sdp": "v=0"}, "unexpected_answer"),
    ({"type": "candidate", "candidate": None}, "no_such_peer"),
    ({"type": "candidate", "role": "viewer", "candidate": {"candidate": "x"}}, "no_such_peer"),
    ({"type": "bye", "role": "viewer"}, "no_such_peer"),
]


async def test_bad_messages_are_answered_and_survived(server: LiveServer) -> None:
    session = await server.create()
    async with session.socket("signal") as socket:
        for message, code in BAD_MESSAGES:
            await socket.send(message if isinstance(message, str) else json.dumps(message))
            error = (await next_of(socket, "error"))["error"]
            assert (message, error["code"]) == (message, code)
        await socket.send(b"\x00\x01")
        assert (await next_of(socket, "error"))["error"]["code"] == "bad_message"
        assert (await next_of(socket, "stats"))["state"] == "waiting"


async def test_an_unknown_voice_track_is_named(server: LiveServer) -> None:
    session = await server.create()
    async with session.socket("signal") as socket:
        offer = {"type": "offer", "role": "duplex", "sdp": await good_sdp(), "voice": "7"}
        await socket.send(json.dumps(offer))
        assert (await next_of(socket, "error"))["error"]["code"] == "unknown_voice_track"
        assert (await session.about())["peers"] == []


async def test_candidates_are_capped_and_checked(server: LiveServer) -> None:
    session = await server.create()
    async with session.socket("signal") as socket:
        await socket.send(json.dumps({"type": "offer", "role": "viewer", "sdp": await good_sdp()}))
        await next_of(socket, "answer")
        lines = [
            "candidate:1 1 udp 2130706431 192.0.2.7 50000 typ host",
            "candidate:1 1 udp 2130706431 169.254.169.254 80 typ host",  # cloud metadata: ignored
            "candidate:1 1 udp 2130706431 8f3a.local 50000 typ host",
            "candidate:1 1 udp nonsense",
            "",
        ]
        for line in lines:
            message = {"type": "candidate", "candidate": {"candidate": line, "sdpMid": "0"}}
            await socket.send(json.dumps(message))
        for _ in range(30):
            await socket.send(json.dumps({"type": "candidate", "candidate": {"candidate": lines[0]}}))
        assert (await next_of(socket, "error"))["error"]["code"] == "too_many_candidates"
        await socket.send('{"type":"bye"}')
        assert (await next_of(socket, "bye"))["reason"] == "closed"


async def test_what_the_page_measures_is_kept_in_bounds(server: LiveServer) -> None:
    session = await server.create()
    async with session.socket("signal") as socket:
        report = {"type": "stats", "fps": 24.5, "text": "no number", "nan": float("nan")}
        await socket.send(json.dumps({**report, **{f"k{i}": i for i in range(50)}}))
        await next_of(socket, "stats")
        await socket.send("{}")
        await next_of(socket, "error")
        kept = (await session.about())["client"]
        assert kept["fps"] == 24.5
        assert len(kept) <= 16
        assert {"text", "nan"}.isdisjoint(kept)


async def test_a_number_beyond_any_float_is_left_out(server: LiveServer) -> None:
    session = await server.create()
    async with session.socket("signal") as socket:
        await socket.send('{"type":"stats","huge":' + "9" * 400 + ',"fps":24}')
        await socket.send("{}")
        assert (await next_of(socket, "error"))["error"]["code"] == "bad_message"
        assert (await session.about())["client"] == {"fps": 24.0}


async def test_a_new_microphone_ends_the_former(server: LiveServer) -> None:
    session = await server.create()
    peers = [client(), client()]
    async with session.socket("signal") as first, session.socket("signal") as second:
        for peer, socket in zip(peers, (first, second), strict=True):
            peer.addTransceiver(Microphone(), direction="sendonly")
            await negotiate(socket, peer, "voice")
        assert await next_of(first, "bye") == {"type": "bye", "role": "voice", "reason": "replaced"}
        await until(lambda: len(server.registry.find(session.id, session.token)._peers) == 1)
    for peer in peers:
        await peer.close()


async def test_peers_of_any_role_are_limited(start_server: StartServer) -> None:
    server = await start_server(max_viewers=1)
    session = await server.create()
    hosted = server.registry.find(session.id, session.token)
    held = [hosted.new_peer(Role.SOURCE, lambda *_: None) for _ in range(9)]
    async with session.socket("signal") as socket:
        await socket.send(json.dumps({"type": "offer", "role": "source", "sdp": await good_sdp()}))
        assert (await next_of(socket, "error"))["error"]["code"] == "peers_full"
    for peer in held:
        await peer.close()


async def test_sockets_of_a_session_are_limited(server: LiveServer) -> None:
    session = await server.create()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(32):
            await stack.enter_async_context(session.socket("signal"))
        async with session.socket("voice") as socket:
            assert (await next_of(socket, "error"))["error"]["code"] == "sockets_full"
            assert await closed_with(socket) == 1008
    await until(lambda: not server.registry.find(session.id, session.token)._joined)
    async with session.socket("signal") as socket:
        await next_of(socket, "stats")


async def test_a_foreign_page_or_a_wrong_token_gets_the_reason(server: LiveServer) -> None:
    session = await server.create()
    good = session.token
    session.token = "wrong"
    async with session.socket("signal") as socket:
        assert (await next_of(socket, "error"))["error"]["code"] == "unauthorised"
        assert await closed_with(socket) == 1008
    session.token = good
    foreign = session.socket("signal")
    foreign.additional_headers = {"Origin": "https://evil.example"}
    async with foreign as socket:
        assert (await next_of(socket, "error"))["error"]["code"] == "origin_refused"
        assert await closed_with(socket) == 1008


async def test_stats_come_about_twice_a_second(server: LiveServer) -> None:
    session = await server.create()
    async with session.socket("signal") as socket:
        begun = time.monotonic()
        for _ in range(4):
            stats = await next_of(socket, "stats")
        assert 1.0 < time.monotonic() - begun < 2.5
        assert {"added_latency_ms", "skew_ms", "fps", "rung", "face", "speaking", "voice_buffered_ms"} <= set(
            stats
        )
