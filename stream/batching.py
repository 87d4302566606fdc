"""What the scheduler decides by: how long calls of so many windows take, and who used the device."""

from __future__ import annotations

import math

_WEIGHT = 0.2
_MEMORY_S = 1.0
_TRY_AGAIN = 10_000
"""Calls as large as memory allows (minutes of them) before one twice as large is tried, which may fail."""


class CostTable:
    """Seconds that a call of n windows takes: measured at start, refreshed by every call."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._most: int | None = None
        self._fitted = 0

    def note(self, count: int, seconds: float) -> None:
        """A call of `count` windows took so long."""
        before = self._seconds.get(count)
        self._seconds[count] = seconds if before is None else before + _WEIGHT * (seconds - before)
        if count == self._most:
            self._fitted += 1
            if self._fitted == _TRY_AGAIN:
                self._most, self._fitted = 2 * count, 0

    def limit(self, count: int) -> None:
        """More than `count` windows at once do not fit into memory for now; one always has to."""
        self._fitted = 0
        self._most = max(1, min(count, self._most or count))

    def seconds(self, count: int) -> float:
        """What a call of `count` windows takes, from the sizes known next to it; 0 before any."""
        below = max((size for size in self._seconds if size <= count), default=None)
        above = min((size for size in self._seconds if size >= count), default=None)
        if below is None or above is None:
            nearest = below or above
            return self._seconds[nearest] * count / nearest if nearest else 0.0
        share = (count - below) / (above - below) if above > below else 0.0
        return self._seconds[below] + share * (self._seconds[above] - self._seconds[below])

    def best(self, available: int, slack_s: float) -> int:
        """How many of `available` windows to take at once: least time per window within the slack.

        What cannot be on time in any case goes by what is cheapest, so that a backlog clears.
        """
        sizes = range(1, min(available, self._most or available) + 1)
        timely = [size for size in sizes if self.seconds(size) <= slack_s] or list(sizes)
        return min(timely, key=lambda size: (self.seconds(size) / size, -size))

    def table(self) -> dict[int, float]:
        """Seconds by number of windows, as far as known."""
        return dict(sorted(self._seconds.items()))


class Shares:
    """How much of the device each session used over about the last second."""

    def __init__(self) -> None:
        self._used: dict[int, tuple[float, float]] = {}

    def join(self, handle: int) -> None:
        self._used[handle] = (0.0, 0.0)

    def leave(self, handle: int) -> None:
        self._used.pop(handle, None)

    def spend(self, handle: int, seconds: float, now_s: float) -> None:
        """A session had the device for so long, ending now."""
        if handle in self._used:
            self._used[handle] = (self._load(handle, now_s) + seconds / _MEMORY_S, now_s)

    def loads(self, now_s: float) -> dict[int, float]:
        """Seconds of the device per second, by session."""
        return {handle: self._load(handle, now_s) for handle in self._used}

    def greedy(self, now_s: float, devices: int) -> set[int]:
        """Those that used more than an equal share; nobody where the device is not contended for."""
        loads = self.loads(now_s)
        share = devices / max(1, len(loads))
        return {handle for handle, load in loads.items() if load > share}

    def _load(self, handle: int, now_s: float) -> float:
        used, at_s = self._used[handle]
        return used * math.exp(-max(0.0, now_s - at_s) / _MEMORY_S)
