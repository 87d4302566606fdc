"""The quality ladder: costs quality before it costs the stream."""

from __future__ import annotations

from collections import Counter, deque
from itertools import islice
from statistics import fmean, median

from retalk_models.engine import Rung

_TOO_MUCH = 0.95
_TOO_MUCH_BEFORE_HALF_RATE = 1.0
_FAR_TOO_MUCH = 1.2
_MORE_AT_FIRST = 0.3
_ROOM = 0.7
_ROOM_AT_HALF_RATE = 0.65
_WINDOWS = 25
_LEAST_WINDOWS = 20
_BURST = 8
_CALM_US = 3_000_000
_FIRST_PROBE_US = 500_000
_LONGEST_WAIT_US = 30_000_000
_TRUSTED_AFTER_US = 10_000_000
_WORST_LOAD = 2.0
_SETTLING_US = 2_000_000
_MOST_LATE = 3


class QualityLadder:
    """Chooses a session's rung from what its windows cost and whether its frames came late.

    Load is the wall time from a window's submission to its result over the time that the window covers, meant
    over 25 windows, a second at the usual rate, so that a slow window or a short burst is left to the playout
    delay to absorb. Down one rung when load passes 0.95, before a backlog can form, when eight windows in a
    row come to 1.2 on average, or when three in a row are late; up one when load stayed below 0.7 for three
    seconds, twice as long after every step that had to be taken back. Half the frame rate is seen by
    everybody, so it is kept for a load of 1, and left below 0.65. In a session's first two seconds, while
    engine, codecs and the viewer's browser start, it takes 0.3 more.
    A fault goes straight to pass-through. One window is tried after half a second, then after ever longer
    waits; the first that succeeds leads back to where it was, or, if it had only just recovered, one below.
    """

    def __init__(self, fixed: bool = False) -> None:
        self._fixed = fixed
        self._rung = Rung.FULL
        self._recent: deque[tuple[float, int]] = deque(maxlen=_WINDOWS)
        self._calm_since_us = 0
        self._calm_us = _CALM_US
        self._climbed_us: int | None = None
        self._probe_us = 0
        self._wait_us = _FIRST_PROBE_US
        self._late = 0
        self._began_us: int | None = None
        self._resume = Rung.FULL
        self.changes: Counter[str] = Counter()
        self._recovered_us: int | None = None
        self.faulted = False

    @property
    def rung(self) -> Rung:
        return self._rung

    @property
    def load(self) -> float:
        """The mean load of the windows since the last step, at most 25; 0 before the first."""
        return fmean(load for load, _ in self._recent) if self._recent else 0.0

    @property
    def cost_us(self) -> int:
        """What a window took lately, from submission to result."""
        return int(median(cost for _, cost in self._recent)) if self._recent else 0

    def may_run(self, now_us: int) -> bool:
        """Whether a window may be given to the engine now; at pass-through only as a probe."""
        return self._rung < Rung.PASS_THROUGH or now_us >= self._probe_us

    def wake_us(self) -> int | None:
        """When a probe falls due, at pass-through."""
        return self._probe_us if self._rung == Rung.PASS_THROUGH else None

    def window_rung(self) -> Rung:
        """The rung at which a window goes to the engine; a probe goes at the cheapest that draws."""
        return min(self._rung, Rung.HALF_RATE)

    def finished(self, now_us: int, cost_us: int, span_us: int, on_time: bool) -> None:
        """A window came back, in time to be shown or not."""
        load = min(cost_us / max(1, span_us), _WORST_LOAD)
        if self._rung == Rung.PASS_THROUGH:
            if self.faulted:
                self.faulted = False
                self._recovered_us = now_us
                self._move(self._resume, now_us)
            elif on_time:
                self._wait_us = _FIRST_PROBE_US
                self._move(Rung.HALF_RATE, now_us)
            else:
                self._back_off(now_us)
            return
        if self._began_us is None:
            self._began_us = now_us
        self._recent.append((load, cost_us))
        self._late = 0 if on_time else self._late + 1
        if self._fixed:
            return
        room = _ROOM_AT_HALF_RATE if self._rung == Rung.HALF_RATE else _ROOM
        if self._overloaded(now_us) or self._late >= _MOST_LATE:
            if self._climbed_us is not None and now_us - self._climbed_us < 4 * self._calm_us:
                self._calm_us = min(2 * self._calm_us, _LONGEST_WAIT_US)
            self._down(now_us)
        elif self.load > room or not on_time:
            self._calm_since_us = now_us
        elif self._rung > Rung.FULL and now_us - self._calm_since_us >= self._calm_us:
            self._climbed_us = now_us
            self._move(Rung(self._rung - 1), now_us)

    def failed(self, now_us: int) -> None:
        """The engine raised or did not answer."""
        if self.faulted:
            self._back_off(now_us)
            return
        self.faulted = True
        self._resume = min(self._rung, Rung.HALF_RATE)
        again = self._recovered_us is not None and now_us - self._recovered_us < _TRUSTED_AFTER_US
        if not again:
            self._wait_us = _FIRST_PROBE_US
        elif not self._fixed:
            self._resume = min(Rung(self._resume + 1), Rung.HALF_RATE)
        self._move(Rung.PASS_THROUGH, now_us)
        self._probe_us = now_us + self._wait_us
        if again:
            self._back_off(now_us)

    def _overloaded(self, now_us: int) -> bool:
        count = len(self._recent)
        most = _TOO_MUCH_BEFORE_HALF_RATE if self._rung == Rung.HALF_RATE - 1 else _TOO_MUCH
        if not count or self._recent[-1][0] <= most:
            return False  # it is easing off by itself
        settling = self._began_us is not None and now_us - self._began_us < _SETTLING_US
        more = _MORE_AT_FIRST if settling else 0.0
        if count >= _LEAST_WINDOWS and self.load > most + more:
            return True
        burst = [load for load, _ in islice(self._recent, max(0, count - _BURST), None)]
        return len(burst) == _BURST and fmean(burst) > _FAR_TOO_MUCH + more

    def _down(self, now_us: int) -> None:
        self._move(Rung(self._rung + 1), now_us)
        if self._rung == Rung.PASS_THROUGH:
            if self._recovered_us is not None and now_us - self._recovered_us >= _TRUSTED_AFTER_US:
                self._wait_us = _FIRST_PROBE_US  # what a fault of long ago had made of it is no measure
            self._probe_us = now_us + self._wait_us

    def _back_off(self, now_us: int) -> None:
        self._wait_us = min(2 * self._wait_us, _LONGEST_WAIT_US)
        self._probe_us = now_us + self._wait_us

    def _move(self, rung: Rung, now_us: int) -> None:
        if rung != self._rung:
            self.changes[rung.name.lower()] += 1
        self._rung = rung
        self._calm_since_us = now_us
        self._recent.clear()
        self._late = 0
