"""What a viewer gets: every frame with the time it came."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import av
import numpy as np
from aiortc import MediaStreamTrack, RTCPeerConnection
from aiortc.mediastreams import MediaStreamError
from numpy.typing import NDArray

from retalk_models.picture import Picture
from stream.frames import picture_of
from tests.server.engines import mean_of


class Watcher:
    """Reads every track of a peer until it is closed."""

    def __init__(self, peer: RTCPeerConnection) -> None:
        self.video: list[tuple[float, av.VideoFrame]] = []
        self.audio: list[tuple[float, av.AudioFrame]] = []
        self._tasks: list[asyncio.Task[None]] = []
        peer.on("track", self._watch)

    def _watch(self, track: MediaStreamTrack) -> None:
        self._tasks.append(asyncio.ensure_future(self._read(track)))

    async def _read(self, track: MediaStreamTrack) -> None:
        kept: list[Any] = self.video if track.kind == "video" else self.audio
        try:
            while True:
                frame = await track.recv()
                kept.append((time.monotonic(), frame))
        except MediaStreamError:
            return

    @property
    def pictures(self) -> list[Picture]:
        return [picture_of(frame) for _, frame in self.video]

    @property
    def patch(self) -> float:
        """The mean luma of the engine's square in the newest frame; -1 before there is one."""
        return mean_of(picture_of(self.video[-1][1])) if self.video else -1.0

    def loudness(self, seconds: float) -> float:
        """Root mean square of the newest audio of that length, 0..32768."""
        newest = [f for at, f in self.audio if at > time.monotonic() - seconds]
        if not newest:
            return 0.0
        samples: NDArray[Any] = np.concatenate([f.to_ndarray().reshape(-1) for f in newest])
        return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))

    async def done(self) -> None:
        """Wait until every track has ended."""
        await asyncio.gather(*self._tasks)
