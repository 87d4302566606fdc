"""The few value types that everything in the stream passes on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retalk_models.engine import FaceState, Rung
from retalk_models.picture import Picture

I16 = NDArray[np.int16]

PLAYOUT_RATE = 48_000
"""Samples per second of the voice as viewers hear it: mono 16-bit."""

AUDIO_FRAME_SAMPLES = 960
"""One audio frame is exactly 20 ms (RFC 7587 section 4.2's default packet time)."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceFrame:
    """A frame of the source.

    time_us: capture time on the session clock, strictly increasing.
    arrived_us: when it reached the session; added latency counts from here.
    index: counts accepted frames from 0.
    """

    picture: Picture
    time_us: int
    arrived_us: int
    index: int


@dataclass(frozen=True, slots=True, eq=False)
class VoiceSpan:
    """Playout samples [start, start + len(samples)) on the session's voice time line.

    samples: (n,) int16 mono at PLAYOUT_RATE.
    gap_samples: how many of them are silence that was put where the source left a hole.
    """

    samples: I16
    start: int
    epoch: int
    gap_samples: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class DubbedFrame:
    """A frame on its way out.

    due_us: the instant on the session clock at which it is released.
    dubbed: False where the source frame went out instead (late, stale epoch, engine fault, no voice yet).
    """

    picture: Picture
    time_us: int
    arrived_us: int
    due_us: int
    epoch: int
    face: FaceState
    rung: Rung
    dubbed: bool


@dataclass(frozen=True, slots=True, eq=False)
class AudioFrame:
    """20 ms of playout: (AUDIO_FRAME_SAMPLES,) int16 mono, released at due_us."""

    samples: I16
    due_us: int
    position: int
    epoch: int
