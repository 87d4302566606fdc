"""References by pose: novelty in, coverage out. Bounded, so a session of hours holds no more than one of
minutes."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")

Key = tuple[int, int, int]

BETTER = 0.08
"""A reference takes another's place only if better by so much: teeth must not change for nothing."""

AGED = 0.1
"""The most that a reference loses by its age. More than BETTER, so that an old one gives way to its like."""

_APART, _FARTHEST = 0.15, 4
"""What a reference is worth per cell between it and its nearest neighbour, over at most so many cells."""


_MOST_YAW, _MOST_PITCH = 0.6, 0.5
"""How far a head may be turned, radians, that a mouth may be learnt from it."""


def turned_away(yaw: float, pitch: float) -> bool:
    """Whether a head, radians, shows too little of its mouth to learn from."""
    return abs(yaw) > _MOST_YAW or abs(pitch) > _MOST_PITCH


@dataclass(frozen=True, slots=True, eq=False)
class Reference(Generic[T]):
    """Something kept of the person with the pose it was seen in.

    yaw, pitch, roll: radians. quality: higher is better, about 0..1.
    """

    item: T
    yaw: float
    pitch: float
    quality: float
    roll: float = 0.0


@dataclass(frozen=True, slots=True)
class CacheUse:
    """Poses that were sought: those whose own cell held a reference, and those whose did not."""

    hits: int
    misses: int

    def counts(self) -> dict[str, int]:
        """As EngineResult carries them."""
        return {"reference_hits": self.hits, "reference_misses": self.misses}


class PoseCache(Generic[T]):
    """At most one reference per cell of pose, at most `capacity` in all.

    cell: the cells' size in radians; roll_cell: their size in roll, where it is another. ageing: quality that
    a reference loses a second against those that would take its place, down to AGED less: what light and
    camera do to a face does not last.
    """

    def __init__(
        self, capacity: int = 12, cell: float = 0.26, ageing: float = 0.0, roll_cell: float | None = None
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a pose cache needs a capacity of at least 1, not {capacity}")
        self._capacity = capacity
        self._cells = cell, cell, cell if roll_cell is None else roll_cell
        self._ageing, self._now_s = ageing, 0.0
        self._kept: dict[Key, Reference[T]] = {}
        self._since: dict[Key, float] = {}
        self._hits = self._misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        self._kept.clear()
        self._since.clear()

    def copy(self) -> PoseCache[T]:
        """The same references, to be added to by itself; how often they were sought is not copied."""
        other = copy(self)
        other._kept, other._since = dict(self._kept), dict(self._since)
        other._hits = other._misses = 0
        return other

    def age(self, elapsed_s: float) -> None:
        """Let time pass."""
        self._now_s += elapsed_s

    def held(self) -> tuple[Reference[T], ...]:
        """All references, in no order that means anything."""
        return tuple(self._kept.values())

    def take_use(self) -> CacheUse:
        """How `seek` fared since this was last asked."""
        use = CacheUse(self._hits, self._misses)
        self._hits = self._misses = 0
        return use

    def wants(self, yaw: float, pitch: float, quality: float, roll: float = 0.0) -> bool:
        """Whether a reference of this quality would be taken in, so that it need not be made for nothing."""
        key = self._key(yaw, pitch, roll)
        held = self._kept.get(key)
        if held is not None:
            aged = min(AGED, self._ageing * (self._now_s - self._since[key]))
            return quality > held.quality + BETTER - aged
        if len(self._kept) < self._capacity:
            return True
        # By what each is worth, or a full cache of equals would never learn a pose that is new.
        weakest = self._weakest()
        return self._worth(key, quality, without=weakest) > self._worth(weakest, self._kept[weakest].quality)

    def add(self, reference: Reference[T]) -> None:
        """Take a reference in, in place of its cell's or, when full, of the one that the rest covers best."""
        key = self._key(reference.yaw, reference.pitch, reference.roll)
        if key not in self._kept and len(self._kept) >= self._capacity:
            weakest = self._weakest()
            del self._kept[weakest], self._since[weakest]
        self._kept[key] = reference
        self._since[key] = self._now_s

    def at(self, yaw: float, pitch: float, roll: float = 0.0) -> Reference[T] | None:
        """The reference that a pose's own cell holds."""
        return self._kept.get(self._key(yaw, pitch, roll))

    def seek(
        self, yaw: float, pitch: float, current: Reference[T] | None = None, roll: float = 0.0
    ) -> Reference[T] | None:
        """`nearest`, counted: a hit where the pose's own cell holds a reference."""
        if self._key(yaw, pitch, roll) in self._kept:
            self._hits += 1
        else:
            self._misses += 1
        return self.nearest(yaw, pitch, current, roll)

    def nearest(
        self, yaw: float, pitch: float, current: Reference[T] | None = None, roll: float = 0.0
    ) -> Reference[T] | None:
        """The reference that serves a pose best; the current one keeps its place unless another is clearly
        better."""
        best: Reference[T] | None = None
        best_score = -np.inf
        for one in self._kept.values():
            score = self.fitness(one, yaw, pitch, roll) + (0.12 if one is current else 0.0)
            if score > best_score:
                best, best_score = one, score
        return best

    @staticmethod
    def fitness(one: Reference[T], yaw: float, pitch: float, roll: float = 0.0) -> float:
        """Quality less what the difference in pose costs."""
        away = 0.7 * abs(one.yaw - yaw) + 0.5 * abs(one.pitch - pitch) + 0.5 * abs(one.roll - roll)
        return one.quality - away

    def _key(self, yaw: float, pitch: float, roll: float) -> Key:
        angles = zip((yaw, pitch, roll), self._cells, strict=True)
        across, down, tilt = (int(np.rint(angle / cell)) for angle, cell in angles)
        return across, down, tilt

    def _worth(self, key: Key, quality: float, without: Key | None = None) -> float:
        """High where it would be missed: good, and far from its neighbours."""
        apart = (
            sum(abs(a - b) for a, b in zip(key, other, strict=True))
            for other in self._kept
            if other not in (key, without)
        )
        return quality + _APART * min(min(apart, default=_FARTHEST), _FARTHEST)

    def _weakest(self) -> Key:
        return min(self._kept, key=lambda key: self._worth(key, self._kept[key].quality))
