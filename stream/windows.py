"""Cuts the source into windows with the voice under them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

from retalk_models.engine import VOICE_RATE, EngineFrame, EngineWindow, Rung
from stream.media import SourceFrame
from stream.voice import DECIMATION, FIR_REACH, VoiceTrack, samples_to_us

_WARM_UP = VOICE_RATE // 5
_LONGEST_RUN = VOICE_RATE


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A window on its way to the engine, and the source frames that it came from."""

    engine: EngineWindow
    frames: tuple[SourceFrame, ...]


class WindowCutter:
    """Frames in, windows out.

    A window is `window_us` of frames at the pace at which they come, at least one frame. It closes with its
    last frame, never by waiting for the next one, as soon as the voice under it and the look-ahead are final.
    """

    def __init__(
        self, voice: VoiceTrack, window_us: int, look_ahead_us: int, voice_shift_us: int, slack_us: int
    ) -> None:
        self._voice = voice
        self._window_us = window_us
        self._look_ahead_us = look_ahead_us
        self._shift_us = voice_shift_us
        self._slack_us = slack_us
        self._frames: deque[SourceFrame] = deque()
        self._steps_us: deque[int] = deque(maxlen=15)
        self._last_us: int | None = None
        self._voice_end: int | None = None
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frame: SourceFrame) -> None:
        if self._last_us is not None:
            self._steps_us.append(frame.time_us - self._last_us)
        self._last_us = frame.time_us
        self._frames.append(frame)

    def give_up_before(self, time_us: int) -> None:
        """Forget frames captured before `time_us`: nothing made of them could be shown any more."""
        while self._frames and self._frames[0].time_us < time_us:
            self._frames.popleft()

    def clear(self) -> None:
        self._frames.clear()

    @property
    def step_us(self) -> int:
        """The time between frames as they come: 40 ms before there are two."""
        return max(1, int(median(self._steps_us))) if self._steps_us else 40_000

    @property
    def frames_per_window(self) -> int:
        return max(1, min(8, round(self._window_us / self.step_us)))

    def wake_us(self) -> int | None:
        """The latest instant at which `cut` is worth trying again though no frame and no voice comes."""
        if not self._frames:
            return None
        if len(self._frames) >= self.frames_per_window:
            last = self._frames[self.frames_per_window - 1]
            return samples_to_us(self._needed(last)) + self._slack_us
        return self._frames[0].arrived_us + self._window_us

    def cut(self, now_us: int, rung: Rung, ended: bool) -> Window | None:
        """The next window, or None while it cannot close yet."""
        count = min(len(self._frames), self.frames_per_window)
        if count == 0:
            return None
        overdue = now_us >= self._frames[0].arrived_us + self._window_us
        if count < self.frames_per_window and not (ended or overdue):
            return None
        frames = [self._frames[i] for i in range(count)]
        if self._voice.final_to < self._needed(frames[-1]):
            return None
        for _ in frames:
            self._frames.popleft()
        return Window(self._engine_window(frames, rung), tuple(frames))

    def voice_at(self, time_us: int) -> int:
        """The engine's voice position heard while a frame captured at `time_us` is seen."""
        return (time_us - self._shift_us) * VOICE_RATE // 1_000_000

    def _needed(self, last: SourceFrame) -> int:
        return (self.voice_at(last.time_us) + self._ahead) * DECIMATION + FIR_REACH

    @property
    def _ahead(self) -> int:
        return -(-self._look_ahead_us * VOICE_RATE // 1_000_000)

    def _engine_window(self, frames: list[SourceFrame], rung: Rung) -> EngineWindow:
        places = [self.voice_at(frame.time_us) for frame in frames]
        stop = places[-1] + self._ahead
        start = self._voice_end
        if start is None or self._epoch != self._voice.epoch or not 0 <= stop - start <= _LONGEST_RUN:
            start = places[0] - _WARM_UP
        self._voice_end = stop
        self._epoch = self._voice.epoch
        return EngineWindow(
            frames=tuple(
                EngineFrame(
                    frame.picture,
                    frame.time_us,
                    place,
                    self._voice.active(place * DECIMATION, (place + self._ahead) * DECIMATION + 1),
                )
                for frame, place in zip(frames, places, strict=True)
            ),
            voice=self._voice.voice16k(start, stop - start),
            voice_start=start,
            epoch=self._voice.epoch,
            rung=rung,
        )
