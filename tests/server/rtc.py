"""Peers for tests: a stock aiortc client on loopback, generated media, and a seeded lossy path."""

from __future__ import annotations

import asyncio
import fractions
import random
import time
from collections.abc import Awaitable, Callable

import av
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCBundlePolicy,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from numpy.typing import NDArray

VIDEO_CLOCK = fractions.Fraction(1, 90_000)


def client() -> RTCPeerConnection:
    """A peer connection of the upstream library, as a user's program would make one."""
    return RTCPeerConnection(RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))


def plane_picture(width: int, height: int, index: int) -> NDArray[np.uint8]:
    """I420 planes of a picture that moves with its index: a grey ramp and a bright bar."""
    picture = np.full((height * 3 // 2, width), 128, dtype=np.uint8)
    picture[:height] = np.linspace(40, 160, width, dtype=np.uint8)
    bar = (index * 8) % (width - 16)
    picture[:height, bar : bar + 16] = 235
    return picture


class Camera(MediaStreamTrack):
    """A generated camera of `fps` frames a second; `stamped` notes when each frame was handed over."""

    kind = "video"

    def __init__(self, width: int = 320, height: int = 240, fps: int = 25) -> None:
        super().__init__()
        self._size = (width, height)
        self._fps = fps
        self._started: float | None = None
        self.stamped: list[float] = []

    async def recv(self) -> av.VideoFrame:
        if self.readyState != "live":
            raise MediaStreamError
        index = len(self.stamped)
        now = time.monotonic()
        self._started = self._started or now
        await asyncio.sleep(max(0.0, self._started + index / self._fps - now))
        frame = av.VideoFrame.from_ndarray(plane_picture(*self._size, index), format="yuv420p")
        frame.pts = index * 90_000 // self._fps
        frame.time_base = VIDEO_CLOCK
        self.stamped.append(time.monotonic())
        return frame


class Microphone(MediaStreamTrack):
    """A tone of 440 Hz in frames of 20 ms at 48 kHz."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._index = 0
        self._started: float | None = None

    async def recv(self) -> av.AudioFrame:
        if self.readyState != "live":
            raise MediaStreamError
        now = time.monotonic()
        self._started = self._started or now
        await asyncio.sleep(max(0.0, self._started + self._index * 0.02 - now))
        times = (np.arange(960) + self._index * 960) / 48_000
        samples = (8000 * np.sin(2 * np.pi * 440 * times)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = 48_000
        frame.pts = self._index * 960
        frame.time_base = fractions.Fraction(1, 48_000)
        self._index += 1
        return frame


async def connect(
    offerer: RTCPeerConnection, answer: Callable[[RTCSessionDescription], Awaitable[RTCSessionDescription]]
) -> None:
    """Offer, let `answer` answer, and wait until connected (ten seconds at most)."""
    await offerer.setLocalDescription(await offerer.createOffer())
    await offerer.setRemoteDescription(await answer(offerer.localDescription))
    await until(lambda: offerer.connectionState == "connected")


async def answer_with(answerer: RTCPeerConnection, offer: RTCSessionDescription) -> RTCSessionDescription:
    """The plain answer of a peer connection."""
    await answerer.setRemoteDescription(offer)
    await answerer.setLocalDescription(await answerer.createAnswer())
    return answerer.localDescription


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait for a condition of the world outside; fails with TimeoutError."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


def impair(
    peer: RTCPeerConnection, seed: int, loss: float, delay_s: Callable[[random.Random], float] | None = None
) -> None:
    """Lose, and optionally delay, what a peer sends from now on: RTP and RTCP only, seeded."""
    chance = random.Random(seed)
    loop = asyncio.get_running_loop()
    for transport in {t.sender.transport.transport for t in peer.getTransceivers()}:
        send = transport._send

        async def lossy(data: bytes, send: Callable[[bytes], Awaitable[None]] = send) -> None:
            if data and 127 < data[0] < 192:
                if chance.random() < loss:
                    return
                if delay_s is not None:
                    loop.call_later(delay_s(chance), lambda: asyncio.ensure_future(quietly(send(data))))
                    return
            await send(data)

        transport._send = lossy


async def quietly(sending: Awaitable[None]) -> None:
    """A late packet may find its transport gone."""
    try:
        await sending
    except ConnectionError:
        return
