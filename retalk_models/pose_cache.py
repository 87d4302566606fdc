"""References by pose: novelty in, coverage out. Bounded, so a session of hours holds no more than one of minutes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Reference(Generic[T]):
    """Something kept of the person with the pose it was seen in.

    yaw, pitch: radians. quality: higher is better, about 0..1.
    """

    item: T
    yaw: float
    pitch: float
    quality: float


class PoseCache(Generic[T]):
    """At most one reference per cell of pose, at most `capacity` in all.

    cell: the cells' size in radians.
    """

    def __init__(self, capacity: int = 12, cell: float = 0.26) -> None:
        if capacity < 1:
            raise ValueError(f"a pose cache needs a capacity of at least 1, not {capacity}")
        self._capacity, self._cell = capacity, cell
        self._kept: dict[tuple[int, int], Reference[T]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        self._kept.clear()

    def wants(self, yaw: float, pitch: float, quality: float) -> bool:
        """Whether a reference of this quality would be taken in, so that it need not be made for nothing."""
        held = self._kept.get(self._key(yaw, pitch))
        if held is None:
            return len(self._kept) < self._capacity or quality > self._weakest()[1]
        # Better by a margin: a reference that changes for nothing makes teeth change for nothing.
        return quality > held.quality + 0.08

    def add(self, reference: Reference[T]) -> None:
        """Take a reference in, in place of its cell's or, when full, of the one that the rest covers best."""
        key = self._key(reference.yaw, reference.pitch)
        if key not in self._kept and len(self._kept) >= self._capacity:
            del self._kept[self._weakest()[0]]
        self._kept[key] = reference

    def nearest(self, yaw: float, pitch: float, current: Reference[T] | None = None) -> Reference[T] | None:
        """The reference that serves a pose best; the current one keeps its place unless another is clearly better."""
        best: Reference[T] | None = None
        best_score = -np.inf
        for one in self._kept.values():
            score = self.fitness(one, yaw, pitch) + (0.12 if one is current else 0.0)
            if score > best_score:
                best, best_score = one, score
        return best

    @staticmethod
    def fitness(one: Reference[T], yaw: float, pitch: float) -> float:
        """Quality less what the difference in pose costs."""
        return one.quality - 0.7 * abs(one.yaw - yaw) - 0.5 * abs(one.pitch - pitch)

    def _key(self, yaw: float, pitch: float) -> tuple[int, int]:
        return int(np.rint(yaw / self._cell)), int(np.rint(pitch / self._cell))

    def _weakest(self) -> tuple[tuple[int, int], float]:
        """The cell that is missed least: low quality, neighbours near. Its key and quality."""

        def worth(key: tuple[int, int]) -> float:
            others = [abs(key[0] - k[0]) + abs(key[1] - k[1]) for k in self._kept if k != key]
            return self._kept[key].quality + 0.15 * min(min(others, default=4), 4)

        key = min(self._kept, key=worth)
        return key, self._kept[key].quality
