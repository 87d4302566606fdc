"""The voice socket: formats, credit, playhead, interruption, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import numpy as np
import pytest
import websockets
from numpy.typing import NDArray

from server.errors import ApiError
from server.voice_socket import Refusal, Start, _samples
from tests.server.conftest import LiveServer, closed_with, next_of
from tests.server.rtc import until

START: dict[str, Any] = {"type": "start", "rate": 24_000, "channels": 1, "format": "s16le"}

BAD_FIRST: list[tuple[str | bytes, int, str]] = [
    ("not json", 1008, "bad_header"),
    ("[]", 1008, "bad_header"),
    ('{"type":"begin"}', 1008, "bad_header"),
    (json.dumps({**START, "rate": 4000}), 1008, "bad_header"),
    (json.dumps({**START, "rate": "fast"}), 1008, "bad_header"),
    (json.dumps({**START, "rate": "24000"}), 1008, "bad_header"),
    (json.dumps({**START, "channels": 3}), 1008, "bad_header"),
    (json.dumps({**START, "channels": True}), 1008, "bad_header"),
    ('{"type":"at","ms":"5"}', 1008, "bad_header"),
    (json.dumps({**START, "format": "mp3"}), 1008, "bad_header"),
    (json.dumps({**START, "volume": 11}), 1008, "bad_header"),
    ('{"type":"start"}', 1008, "bad_header"),
    ("x" * 5000, 1008, "message_too_large"),
    (b"\x00\x00", 1008, "no_start"),
]


async def test_a_wrong_header_is_refused_and_the_session_goes_on(server: LiveServer) -> None:
    session = await server.create()
    for first, code, name in BAD_FIRST:
        async with session.socket("voice") as socket:
            await socket.send(first)
            error = (await next_of(socket, "error"))["error"]
            assert (first, error["code"]) == (first, name)
            assert '"type":"start"' in error["hint"]
            assert (first, await closed_with(socket)) == (first, code)
    assert (await session.about())["state"] == "waiting"
    async with session.socket("voice") as socket:
        await socket.send(json.dumps(START))
        assert (await next_of(socket, "credit"))["ms"] > 1000


async def test_samples_that_are_no_numbers_close_with_1007(server: LiveServer) -> None:
    session = await server.create()
    async with session.socket("voice") as socket:
        await socket.send(json.dumps({**START, "format": "f32le"}))
        await socket.send(np.array([0.0, np.nan], "<f4").tobytes())
        assert (await next_of(socket, "error"))["error"]["code"] == "bad_samples"
        assert await closed_with(socket) == 1007
    async with session.socket("voice") as socket:
        await socket.send(json.dumps(START))
        await socket.send(bytes(70_000))
        assert (await next_of(socket, "error"))["error"]["code"] == "chunk_too_large"


async def test_a_wrong_token_or_session_is_told_why(server: LiveServer) -> None:
    session = await server.create()
    session.token = "wrong"
    async with session.socket("voice") as socket:
        assert (await next_of(socket, "error"))["error"]["code"] == "unauthorised"
        assert await closed_with(socket) == 1008
    session.urls["voice"] = "/v1/sessions/none/voice"
    async with session.socket("voice") as socket:
        assert (await next_of(socket, "error"))["error"]["code"] == "unknown_session"
    session.urls["voice"] = "/v1/sessions/none/nothing"
    async with session.socket("voice") as socket:
        assert (await next_of(socket, "error"))["error"]["code"] == "unknown_route"


async def test_playhead_and_credit_follow_what_is_heard(server: LiveServer) -> None:
    session = await server.create()
    async with session.socket("voice") as socket:
        await socket.send(json.dumps(START))
        first = (await next_of(socket, "credit"))["ms"]
        await socket.send(np.full(24_000, 900, "<i2").tobytes())
        heads = [await next_of(socket, "playhead") for _ in range(6)]
        buffered = [head["buffered_ms"] for head in heads]
        assert buffered == sorted(buffered, reverse=True)
        assert 600 < buffered[0] <= 1300
        played = [head["played_ms"] for head in heads]
        assert 300 < played[-1] - played[0] < 800
        assert {head["epoch"] for head in heads} == {0}
        # Everything sent was granted before, and what has been heard is granted anew.
        granted = (await next_of(socket, "credit"))["ms"]
        assert 100 <= granted < 1100
        assert first > 5_000


async def test_an_interruption_silences_and_counts(server: LiveServer) -> None:
    session = await server.create()
    async with session.socket("voice") as socket, session.socket("signal") as other:
        await socket.send(json.dumps(START))
        await socket.send(np.full(24_000, 900, "<i2").tobytes())
        await next_of(socket, "playhead")
        await socket.send('{"type":"interrupt"}')
        async with asyncio.timeout(2):
            while (head := await next_of(socket, "playhead"))["epoch"] == 0:
                pass
        assert head["buffered_ms"] < 60
        await other.send('{"type":"interrupt"}')
        await until(lambda: server.registry.find(session.id, session.token).voice.epoch == 2)


@pytest.mark.parametrize("way", ["voice", "signal"])
async def test_an_interruption_silences_a_voice_that_overran_its_credit(server: LiveServer, way: str) -> None:
    session = await server.create()
    voice = server.registry.find(session.id, session.token).voice
    second = np.full(24_000, 900, "<i2").tobytes()
    async with session.socket("voice") as socket, session.socket("signal") as signal:
        await socket.send(json.dumps(START))
        for _ in range(40):
            await socket.send(second)
        await until(lambda: voice.credit_ms() < 1000)
        assert (await next_of(socket, "playhead"))["buffered_ms"] > 25_000
        await (socket if way == "voice" else signal).send('{"type":"interrupt"}')
        assert (await next_of(socket, "interrupted"))["epoch"] == 1
        # Nor does anything speak that was still under way, however late it comes.
        await socket.send(second)
        await socket.send('{"type":"end"}')
        for _ in range(3):
            await session.about()
            await asyncio.sleep(0.15)
            assert voice.buffered_ms() < 60
        await socket.send(json.dumps(START))
        assert (await next_of(socket, "credit"))["ms"] > 5000
        await socket.send(second)
        assert (await next_of(socket, "playhead"))["buffered_ms"] > 500
        assert voice.epoch == 1


async def test_what_a_client_sends_beyond_its_credit_is_heard_in_its_turn(server: LiveServer) -> None:
    session = await server.create()
    voice = server.registry.find(session.id, session.token).voice
    async with session.socket("voice") as socket:
        await socket.send(json.dumps({**START, "rate": 8000}))
        for _ in range(25):
            await socket.send(np.full(8000, 900, "<i2").tobytes())
        await socket.send('{"type":"end"}')
        await until(lambda: voice.credit_ms() < 1000)
        begun = voice.written - voice.buffered_ms() * 48
        await until(lambda: voice.written - begun >= 24.9 * 48_000, 15)


async def test_a_client_far_beyond_its_credit_is_refused(server: LiveServer) -> None:
    session = await server.create()
    async with session.socket("voice") as socket:
        await socket.send(json.dumps(START))
        with contextlib.suppress(websockets.ConnectionClosed):
            for _ in range(200):
                await socket.send(bytes(60_000))
        assert (await next_of(socket, "error"))["error"]["code"] == "credit_exceeded"
        assert await closed_with(socket) == 1008
    assert (await session.about())["state"] == "waiting"


async def test_a_speaker_who_was_replaced_cannot_silence_its_successor(server: LiveServer) -> None:
    session = await server.create()
    hosted = server.registry.find(session.id, session.token)
    async with session.socket("voice") as first:
        await first.send(json.dumps(START))
        await next_of(first, "credit")
        hosted.claim_voice(self := object())
        with contextlib.suppress(websockets.ConnectionClosed):
            await first.send('{"type":"interrupt"}')
        assert await closed_with(first) == 1001
        assert hosted.holds_voice(self)
        assert hosted.voice.epoch == 0


async def test_the_last_to_speak_has_the_voice(server: LiveServer) -> None:
    session = await server.create()
    async with session.socket("voice") as first:
        await first.send(json.dumps(START))
        await next_of(first, "credit")
        async with session.socket("voice") as second:
            await second.send(json.dumps(START))
            await next_of(second, "credit")
            assert await closed_with(first) == 1001
            await second.send(np.full(2400, 900, "<i2").tobytes())
            assert (await next_of(second, "playhead"))["buffered_ms"] > 0


@pytest.mark.parametrize("kind", ["s16le", "f32le"])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_split_of_the_bytes_gives_the_same_samples(kind: str, channels: int) -> None:
    start = Start.model_validate({**START, "channels": channels, "format": kind})
    numbers = np.linspace(-0.9, 0.9, 120)
    wire = (numbers * 32767).astype("<i2") if kind == "s16le" else numbers.astype("<f4")
    data = wire.tobytes()
    for size in (1, 3, 7, 64, len(data)):
        rest, parts = b"", []
        for at in range(0, len(data), size):
            samples, rest = _samples(rest + data[at : at + size], start)
            parts.append(samples)
        joined: NDArray[Any] = np.concatenate(parts)
        assert rest == b""
        np.testing.assert_array_equal(joined, wire)


def test_a_refusal_names_its_close_code() -> None:
    refusal = Refusal(1007, ApiError(400, "bad", "worse", "better"))
    assert refusal.code == 1007
    assert "bad" in str(refusal)


async def test_time_stamps_need_an_aligned_session(server: LiveServer) -> None:
    live = await server.create()
    async with live.socket("voice") as socket:
        await socket.send(json.dumps({"type": "at", "ms": 100}))
        assert (await next_of(socket, "error"))["error"]["code"] == "not_aligned"
        assert await closed_with(socket) == 1008


async def test_stamped_samples_go_to_the_time_that_they_dub(server: LiveServer) -> None:
    session = await server.create(policy="aligned", hold_ms=3000)
    assert (await session.about())["policy"] == "aligned"
    voice = next(iter(server.registry._sessions.values())).voice
    async with session.socket("voice") as socket:
        await socket.send(json.dumps({**START, "rate": 48_000}))
        now_ms = (await next_of(socket, "credit"))["now_ms"]
        await socket.send(json.dumps({"type": "at", "ms": now_ms + 500}))
        await socket.send(np.full(4800, 9000, "<i2").tobytes())
        await socket.send(np.full(4800, 9000, "<i2").tobytes())
        await until(lambda: voice.written >= (now_ms + 700) * 48)
    assert voice.written == (now_ms + 700) * 48
    at = (now_ms + 500) * 48
    assert not voice.read(at - 480, 480).samples.any()
    assert (voice.read(at, 9600).samples == 9000).all()


async def test_a_time_stamp_far_ahead_is_refused_and_does_not_take_the_voice_away(server: LiveServer) -> None:
    session = await server.create(policy="aligned", hold_ms=3000)
    async with session.socket("voice") as socket:
        await socket.send(json.dumps(START))
        await socket.send(json.dumps({"type": "at", "ms": 1e12}))
        assert (await next_of(socket, "error"))["error"]["code"] == "bad_time"
        assert await closed_with(socket) == 1008
    server.registry.find(session.id, session.token).interrupt()
    async with session.socket("voice") as socket:
        await socket.send(json.dumps(START))
        assert (await next_of(socket, "credit"))["ms"] > 5000
