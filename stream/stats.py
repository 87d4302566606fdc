"""What a session says about itself."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from retalk_models.engine import FaceState, Rung


class SessionState(StrEnum):
    """Where a session stands."""

    WAITING = "waiting"  # no frame of the source has come yet
    LIVE = "live"
    FAULTED = "faulted"  # the engine failed; frames pass through until a probe succeeds
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of recent values."""

    p50: float = 0.0
    p95: float = 0.0
    max: float = 0.0
    p99: float = 0.0


class Recent:
    """The last few hundred values of a figure, and those that nobody has taken yet."""

    def __init__(self, count: int = 500) -> None:
        self._values: deque[float] = deque(maxlen=count)
        self._untaken: deque[float] = deque(maxlen=count)

    def add(self, value: float) -> None:
        self._values.append(value)
        self._untaken.append(value)

    def take(self) -> list[float]:
        """The values since the last take, the newest few hundred of them."""
        taken = list(self._untaken)
        self._untaken.clear()
        return taken

    def spread(self) -> Spread:
        if not self._values:
            return Spread()
        values = np.array(self._values)
        p50, p95, p99 = np.percentile(values, (50, 95, 99))
        return Spread(float(p50), float(p95), float(values.max()), float(p99))


@dataclass(frozen=True, slots=True)
class Figures:
    """Every value since they were last taken, in milliseconds: what histograms are made of."""

    added_latency_ms: Sequence[float] = ()
    skew_ms: Sequence[float] = ()
    stage_ms: Mapping[str, Sequence[float]] = field(default_factory=dict)


class Pace:
    """Events per second over the last two seconds."""

    def __init__(self) -> None:
        self._times: deque[int] = deque(maxlen=256)

    def add(self, time_us: int) -> None:
        self._times.append(time_us)

    def per_second(self, now_us: int) -> float:
        recent = [t for t in self._times if t > now_us - 2_000_000]
        if len(recent) < 2:
            return 0.0
        return (len(recent) - 1) * 1e6 / (recent[-1] - recent[0]) if recent[-1] > recent[0] else 0.0


@dataclass(frozen=True, slots=True)
class SessionStats:
    """One look at a session. Latencies in milliseconds, counters since its start.

    face: state of the newest dubbed frame; faces: frames per state.
    added_latency_ms: release of a frame minus its arrival. skew_ms: audio time minus video time at release.
    stage_ms: per window, by stage: the engine's own, "queue" (waiting for it) and "encode".
    drops: pictures that never came out, by where they were lost. skipped_ms: sound never played, for its time
    had passed while the machine slept. rung_changes: the ladder's steps, by where to.
    dubbed: frames that show a dub; the engine passes frames through too, by their face or a silent voice.
    late: frames whose dub was not ready when due; stale: whose dub was of an older epoch.
    engine_counts: what the engine counted, such as reference_hits and reference_misses.
    """

    state: SessionState
    rung: Rung
    face: FaceState
    faces: Mapping[str, int]
    rungs: Mapping[str, int]
    stage_ms: Mapping[str, Spread]
    added_latency_ms: Spread
    skew_ms: Spread
    fps_in: float
    fps_out: float
    frames_in: int
    frames_out: int
    dubbed: int
    late: int
    stale: int
    dropped: int
    rejected: int
    gaps: int
    gap_ms: int
    skipped_ms: int
    epoch: int
    speaking: bool
    playout_delay_ms: int
    voice_shift_ms: int
    voice_buffered_ms: int
    played_ms: int
    faults: int
    last_fault: str
    queues: Mapping[str, int]
    drops: Mapping[str, int] = field(default_factory=dict)
    rung_changes: Mapping[str, int] = field(default_factory=dict)
    encoded: Mapping[str, int] = field(default_factory=dict)
    engine_counts: Mapping[str, int] = field(default_factory=dict)


class Counts:
    """The mutable side of SessionStats, written by the session's tasks on one thread."""

    def __init__(self, kept: int = 500) -> None:
        self._kept = kept
        self.faces: Counter[str] = Counter()
        self.rungs: Counter[str] = Counter()
        self.engine: Counter[str] = Counter()
        self.face = FaceState.NONE
        self.stages: dict[str, Recent] = {}
        self.latency_ms = Recent(kept)
        self.skew_ms = Recent(kept)
        self.arrivals = Pace()
        self.releases = Pace()
        self.frames_out = 0
        self.dubbed = 0
        self.late = 0
        self.stale = 0
        self.overflowed = 0
        self.audio_skipped = 0
        self.faults = 0
        self.last_fault = ""

    def take(self) -> Figures:
        """Every value since the last take."""
        return Figures(
            self.latency_ms.take(),
            self.skew_ms.take(),
            {name: recent.take() for name, recent in self.stages.items()},
        )

    def stage(self, name: str, milliseconds: float) -> None:
        if name not in self.stages:
            self.stages[name] = Recent(self._kept)
        self.stages[name].add(milliseconds)
