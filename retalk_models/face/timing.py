"""Time as engines use it: how far apart frames are, and what each stage of the work took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

_LONGEST_STEP_S = 0.25
"""Frames farther apart than this ease no further than over this."""

_FIRST_STEP_S = 0.04


class FrameSteps:
    """Seconds from frame to frame, as easing wants them: never negative, never long."""

    def __init__(self) -> None:
        self._last_us: int | None = None

    def step_s(self, time_us: int) -> float:
        """Since the frame before; a usual step for the first frame."""
        last, self._last_us = self._last_us, time_us
        if last is None:
            return _FIRST_STEP_S
        return min(max(0.0, (time_us - last) / 1e6), _LONGEST_STEP_S)


class StageClock:
    """Adds up wall time per stage, in milliseconds."""

    def __init__(self, stages: Sequence[str]) -> None:
        self.milliseconds = dict.fromkeys(stages, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = perf_counter()
        try:
            yield
        finally:
            self.milliseconds[name] += 1000 * (perf_counter() - began)
