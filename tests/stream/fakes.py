"""An engine, a runner and a sink for tests: exact, seeded, as slow or as broken as a test asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from retalk_models.engine import (
    Engine,
    EngineOptions,
    EngineOutput,
    EngineResult,
    EngineSession,
    EngineWindow,
    FaceState,
)
from retalk_models.picture import Box, Picture
from stream.clock import VirtualClock
from stream.media import AudioFrame, DubbedFrame
from stream.runner import InlineRunner

BOX = Box(8, 8, 24, 24)
LOOK_AHEAD_US = 80_000

_REMEMBERED = 160_000
"""Samples of voice."""


def flat_picture(luma: int = 60, width: int = 64, height: int = 48) -> Picture:
    """A grey picture of one brightness."""
    rows = height + height % 2
    columns = width + width % 2
    planes = np.full((rows * 3 // 2, columns), 128, np.uint8)
    planes[:rows] = luma
    return Picture(planes, width, height)


def grainy_picture(seed: int, width: int = 128, height: int = 96) -> Picture:
    """A grey picture with grain in its luma, for encoders."""
    base = flat_picture(100, width, height)
    base.y[:] = np.random.default_rng(seed).integers(80, 120, base.y.shape, dtype=np.uint8)
    return base


def luma_of(picture: Picture) -> int:
    """The brightness inside BOX."""
    return int(picture.y[BOX.top, BOX.left])


class FakeEngine:
    """Brightens BOX by 100 times the loudness (peak) of the 40 ms of voice at each frame.

    before: called with each window before it is dubbed; may sleep, hang or raise. faceless: it finds no face.
    """

    def __init__(
        self,
        before: Callable[[EngineWindow], None] | None = None,
        opening: Callable[[], None] | None = None,
        look_ahead_us: int = LOOK_AHEAD_US,
        faceless: bool = False,
    ) -> None:
        self.faceless = faceless
        self.before = before
        self.opening = opening
        self._look_ahead_us = look_ahead_us
        self.windows: list[EngineWindow] = []
        self.options: list[EngineOptions] = []
        self.opened = 0
        self.closed = 0

    @property
    def name(self) -> str:
        return "fake"

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def look_ahead_us(self) -> int:
        return self._look_ahead_us

    @property
    def weights(self) -> Mapping[str, str]:
        return {"none.safetensors": "0" * 64}

    def open_session(self, options: EngineOptions) -> EngineSession:
        if self.opening is not None:
            self.opening()
        self.opened += 1
        self.options.append(options)
        return _FakeSession(self)


class _FakeSession:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._voice = np.zeros(0, np.float32)
        self._start = 0
        self._closed = False

    def process(self, window: EngineWindow) -> EngineResult:
        began = time.perf_counter()
        if self._engine.before is not None:
            self._engine.before(window)
        self._engine.windows.append(window)
        if window.voice_start != self._start + self._voice.size:
            self._voice, self._start = np.zeros(0, np.float32), window.voice_start
        self._voice = np.concatenate([self._voice, window.voice])
        # What eight hours say would be copied for every window.
        old = max(0, self._voice.size - _REMEMBERED)
        self._voice, self._start = self._voice[old:], self._start + old
        outputs = []
        for frame in window.frames:
            if self._engine.faceless:
                outputs.append(EngineOutput(frame.picture, FaceState.NONE, None, 0.0))
                continue
            at = frame.voice_at - self._start
            heard = self._voice[max(0, at) : max(0, at + 640)]
            loudness = float(np.abs(heard).max()) if heard.size else 0.0
            picture = frame.picture.copy()
            picture.y[BOX.top : BOX.bottom, BOX.left : BOX.right] += np.uint8(100 * min(1.0, loudness))
            outputs.append(EngineOutput(picture, FaceState.TRACKED, BOX, 1.0))
        return EngineResult(tuple(outputs), {"fake": (time.perf_counter() - began) * 1000})

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._engine.closed += 1


class SlowRunner(InlineRunner):
    """Takes `cost_us(window number)` of virtual time for each window."""

    def __init__(self, clock: VirtualClock, cost_us: Callable[[int], int]) -> None:
        super().__init__()
        self._clock = clock
        self._cost_us = cost_us
        self._count = 0

    async def run(self, handle: int, window: EngineWindow, due_in_us: int) -> EngineResult:
        self._count += 1
        await self._clock.sleep_until(self._clock.now_us() + self._cost_us(self._count - 1))
        return await super().run(handle, window, due_in_us)


@dataclass
class KeepingSink:
    """Keeps everything that is released, with the instant of its release."""

    clock: VirtualClock
    frames: list[DubbedFrame] = field(default_factory=list)
    frame_times: list[int] = field(default_factory=list)
    sounds: list[AudioFrame] = field(default_factory=list)
    sound_times: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)

    def video(self, frame: DubbedFrame) -> None:
        self.frames.append(frame)
        self.frame_times.append(self.clock.now_us())

    def audio(self, frame: AudioFrame) -> None:
        self.sounds.append(frame)
        self.sound_times.append(self.clock.now_us())

    def interrupt(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def counts(self) -> dict[str, int]:
        return {}

    async def run(self) -> None:
        return None


_: type[Engine] = FakeEngine
