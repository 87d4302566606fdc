"""Playout: one task, one clock, releases each frame and the audio under it when they are due."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from retalk_models.engine import EngineOutput, FaceState, Rung
from retalk_models.picture import Picture
from stream.clock import Bell, Clock
from stream.media import AUDIO_FRAME_SAMPLES, I16, AudioFrame, DubbedFrame, SourceFrame
from stream.stats import Counts
from stream.voice import VoiceTrack, samples_to_us

_TICK_US = 20_000
_STEP_US = 20_000
_MOST_PENDING = 60
_MOST_FPS = 60
_FAR_BEHIND_US = 500_000
_PATIENCE_US = 400_000
_ROOMY_US = 50_000
_SILENT_PEAK = 40
_PAUSE_RMS = 10 ** (-42 / 20) * 32768
_MOST_LATE = 3
_CALM_FRAMES = 25
_FALL_EVERY_US = 100_000


class Sink(Protocol):
    """Where a session's output goes. None of these may block for longer than it takes to hand over."""

    def video(self, frame: DubbedFrame) -> None: ...

    def audio(self, frame: AudioFrame) -> None: ...

    def interrupt(self, epoch: int) -> None:
        """Drop whatever of an older epoch has not left yet."""
        ...

    def counts(self) -> dict[str, int]:
        """Counters and queue depths, for the session's stats."""
        ...

    async def run(self) -> None:
        """Work until cancelled; returns at once where there is nothing to do."""
        ...


@dataclass(slots=True, eq=False)
class _Pending:
    frame: SourceFrame
    output: EngineOutput | None = None
    epoch: int = 0
    rung: Rung = Rung.PASS_THROUGH
    ready_us: int = 0
    wanted: bool = True


class Playout:
    """Releases video at capture time + D and exact 20 ms of audio at voice position + D + S.

    D rises by 20 ms when more than 3 of the last 25 frames came late, while the voice pauses if it does so
    within 0.4 s, and falls while it pauses as far as every frame of the last second was 50 ms early. What it
    rose in a bad moment it gives back without waiting for a pause, 20 ms at a time.
    A frame that is late, stale or undubbed goes out as the source gave it. Nothing ever waits for anything.
    """

    def __init__(
        self,
        clock: Clock,
        voice: VoiceTrack,
        sink: Sink,
        counts: Counts,
        *,
        delay_us: int,
        shift_us: int,
        most_delay_us: int,
        least_delay_us: int = 60_000,
        adaptive: bool = True,
        finish: Callable[[Picture], Picture] | None = None,
    ) -> None:
        self._clock = clock
        self._voice = voice
        self._sink = sink
        self._counts = counts
        self._delay_us = min(delay_us, most_delay_us)
        self._least_delay_us = min(least_delay_us, self._delay_us)
        self._most_delay_us = most_delay_us
        self._shift_us = shift_us
        self._adaptive = adaptive
        self._finish = finish
        self._pending: OrderedDict[int, _Pending] = OrderedDict()
        self._bell = Bell()
        self._last_video_due_us = -1
        self._next_audio_us = self._delay_us + shift_us
        self._position = 0
        self._lateness: deque[bool] = deque(maxlen=25)
        self._margins: deque[int] = deque(maxlen=_CALM_FRAMES)
        self._usual_us = self._delay_us
        self._fell_us = 0
        self._raise_since_us: int | None = None
        self._end_us: int | None = None
        self._audio_point = (0, 0)

    @property
    def delay_us(self) -> int:
        """D, the playout delay now."""
        return self._delay_us

    @property
    def can_rise(self) -> bool:
        """Whether lateness can still be met with more delay."""
        return self._adaptive and self._delay_us + _STEP_US <= self._most_delay_us

    @property
    def position(self) -> int:
        """The voice position that the next audio frame starts at."""
        return self._position

    def __len__(self) -> int:
        return len(self._pending)

    def expect(self, frame: SourceFrame) -> None:
        """A frame of the source has come and will be released when due, whatever becomes of it."""
        if len(self._pending) >= _MOST_PENDING + self._delay_us * _MOST_FPS // 1_000_000:
            self._pending.popitem(last=False)
            self._counts.overflowed += 1
        self._pending[frame.index] = _Pending(frame)
        self._bell.ring()

    def deliver(self, frame: SourceFrame, output: EngineOutput, epoch: int, rung: Rung) -> bool:
        """The engine's frame for a source frame. False if that has been released already."""
        pending = self._pending.get(frame.index)
        if pending is None:
            return False
        pending.output, pending.epoch, pending.rung = output, epoch, rung
        pending.ready_us = self._clock.now_us()
        return True

    def undubbed(self, frame: SourceFrame) -> None:
        """No dub of this frame is on its way: it passes through and is not late."""
        pending = self._pending.get(frame.index)
        if pending is not None:
            pending.wanted = False

    def end(self, end_us: int) -> None:
        """No frame will follow; `run` returns when all is out and the voice was heard up to `end_us`."""
        self._end_us = end_us
        self._bell.ring()

    async def run(self) -> None:
        while True:
            now_us = self._clock.now_us()
            while self._next_audio_us <= now_us:
                self._release_audio(now_us)
            while self._pending and self._video_due_us() <= now_us:
                self._release_video(now_us)
            if self._is_over():
                return
            wake_us = self._next_audio_us
            if self._pending:
                wake_us = min(wake_us, self._video_due_us())
            await self._clock.wait(self._bell, wake_us)

    def _is_over(self) -> bool:
        if self._end_us is None or self._pending:
            return False
        return samples_to_us(self._position) >= self._end_us

    def _video_due_us(self) -> int:
        pending = next(iter(self._pending.values()))
        return max(pending.frame.time_us + self._delay_us, self._last_video_due_us + 1)

    def _release_video(self, now_us: int) -> None:
        due_us = self._video_due_us()
        _, pending = self._pending.popitem(last=False)
        frame, output = pending.frame, pending.output
        if due_us < frame.arrived_us:
            # It came after it was due: its own instant is now, and the viewer's clock must be told so.
            due_us = now_us
        late = output is None and pending.wanted
        stale = output is not None and pending.epoch != self._voice.epoch
        dubbed = output is not None and not stale
        counts = self._counts
        counts.late += late
        counts.stale += stale
        # A frame that the engine had, and left as it was, came in time and yet shows no dub.
        counts.dubbed += dubbed and output is not None and output.region is not None and output.strength > 0
        counts.frames_out += 1
        counts.releases.add(now_us)
        counts.latency_ms.add((now_us - frame.arrived_us) / 1000)
        face = output.face if output is not None else FaceState.NONE
        rung = pending.rung if dubbed else Rung.PASS_THROUGH
        if output is not None:
            counts.face = face
            counts.faces[face.value] += 1
        counts.rungs[rung.name.lower()] += 1
        picture = output.picture if output is not None and dubbed else frame.picture
        if self._finish is not None:
            picture = self._finish(picture)
        self._last_video_due_us = due_us
        self._note_skew(frame, now_us)
        self._sink.video(
            DubbedFrame(
                picture, frame.time_us, frame.arrived_us, due_us, self._voice.epoch, face, rung, dubbed
            )
        )
        if self._adaptive and pending.wanted:
            self._judge_delay(late, due_us - pending.ready_us if dubbed else None, now_us)

    def _note_skew(self, frame: SourceFrame, now_us: int) -> None:
        released_us, heard_us = self._audio_point
        if released_us:
            audio_us = heard_us + self._shift_us + now_us - released_us
            self._counts.skew_ms.add((audio_us - frame.time_us) / 1000)

    def _release_audio(self, now_us: int) -> None:
        if now_us - self._next_audio_us > _FAR_BEHIND_US:
            # The machine slept: what was due is past, and a burst of it would only shift the sync.
            missed = (now_us - self._next_audio_us) // _TICK_US
            self._next_audio_us += missed * _TICK_US
            self._position += missed * AUDIO_FRAME_SAMPLES
            self._counts.audio_skipped += missed
        position = self._position
        samples = self._voice.read(position, AUDIO_FRAME_SAMPLES).samples
        if self._must_rise(samples, now_us):
            self._set_delay(self._delay_us + _STEP_US)
            samples = samples if _silent(samples) else self._held(samples)
        else:
            self._position += AUDIO_FRAME_SAMPLES
            if self._may_fall(samples, now_us):
                samples = self._cut_short(samples)
                self._position += AUDIO_FRAME_SAMPLES
                self._fall(now_us)
        self._sink.audio(AudioFrame(samples, self._next_audio_us, position, self._voice.epoch))
        self._audio_point = (now_us, samples_to_us(position))
        self._next_audio_us += _TICK_US
        self._voice.mark_played(self._position)

    def _judge_delay(self, late: bool, margin_us: int | None, now_us: int) -> None:
        self._lateness.append(late)
        if margin_us is not None:
            self._margins.append(margin_us)
        if sum(self._lateness) > _MOST_LATE and self.can_rise and self._raise_since_us is None:
            self._raise_since_us = now_us

    def _must_rise(self, samples: I16, now_us: int) -> bool:
        if self._raise_since_us is None:
            return False
        return _silent(samples) or now_us - self._raise_since_us >= _PATIENCE_US

    def _may_fall(self, samples: I16, now_us: int) -> bool:
        if self._delay_us - _STEP_US < self._least_delay_us or len(self._margins) < _CALM_FRAMES:
            return False
        if min(self._margins) < _ROOMY_US or any(self._lateness):
            return False
        if self._delay_us > self._usual_us and now_us - self._fell_us >= _FALL_EVERY_US:
            return True
        if not _pausing(samples):
            return False
        return _pausing(self._voice.read(self._position, AUDIO_FRAME_SAMPLES).samples)

    def _fall(self, now_us: int) -> None:
        self._delay_us -= _STEP_US
        self._fell_us = now_us
        # What was so early before is a step less early now: a long pause may take several steps.
        self._margins = deque((margin - _STEP_US for margin in self._margins), maxlen=_CALM_FRAMES)

    def _cut_short(self, samples: I16) -> I16:
        """20 ms that begin as what comes next and end as the 20 ms after it, which are then left out."""
        after = self._voice.read(self._position, AUDIO_FRAME_SAMPLES).samples
        return _faded(samples, after)

    def _set_delay(self, delay_us: int) -> None:
        self._delay_us = delay_us
        self._raise_since_us = None
        self._lateness.clear()
        self._margins.clear()

    def _held(self, samples: I16) -> I16:
        """20 ms that begin as what comes next and end as what came last, so that nothing tears."""
        before = self._voice.read(self._position - AUDIO_FRAME_SAMPLES, AUDIO_FRAME_SAMPLES).samples
        return _faded(samples, before)


def _faded(first: I16, last: I16) -> I16:
    """One frame of sound that begins as `first` and ends as `last`."""
    fade = np.linspace(0.0, 1.0, AUDIO_FRAME_SAMPLES, dtype=np.float32)
    return np.asarray(np.rint(first * (1 - fade) + last * fade), np.int16)


def _pausing(samples: I16) -> bool:
    """Nothing louder than a room or a breath: 20 ms may go without being missed."""
    return float(np.sqrt(np.mean(np.square(samples.astype(np.float32))))) < _PAUSE_RMS


def _silent(samples: I16) -> bool:
    return bool(np.abs(samples.astype(np.int32)).max() < _SILENT_PEAK)
