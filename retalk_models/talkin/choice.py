"""Which of a person's references supports a frame: a path over them that sees a few frames ahead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from retalk_models.picture import F32
from retalk_models.pose_cache import Reference
from retalk_models.talkin.path import F64, first_of_best, reference_moves

T = TypeVar("T")

SHUT = 0.02
"""Aperture (canonical units) up to which a change of reference cannot be seen."""

AHEAD = 3
"""Frames beyond the present that a choice takes in; they lie within the engine's look-ahead."""

_CHANGE = 0.3
"""What any change costs, in units of a reference's cost at one frame."""

_JUMP = 0.6
"""What a change costs per unit of difference in looks (luma over the skin's)."""


class ReferenceChoice(Generic[T]):
    """Keeps to one reference until another is worth the change, and changes while the lips are shut.

    look: gives a reference's looks as (d,) float32, luma over the skin's, the same d for all.
    """

    def __init__(self, look: Callable[[T], F32]) -> None:
        self._look = look
        self._looks: dict[Reference[T], F32] = {}
        self._current: Reference[T] | None = None

    @property
    def current(self) -> Reference[T] | None:
        """What was chosen last."""
        return self._current

    def reset(self) -> None:
        """Forget the person."""
        self._looks.clear()
        self._current = None

    def renew(self, reference: Reference[T]) -> None:
        """Have the one in use be another: what has become of it."""
        self._current = reference

    def choose(
        self,
        candidates: Sequence[Reference[T]],
        cost: Callable[[Reference[T], float], float],
        openings: Sequence[float],
    ) -> Reference[T] | None:
        """The reference for this frame; None while there is none. The one in use stays, even where the cache
        has let it go, until a change is possible.

        cost: of a reference at an aperture. openings: this frame's aperture first, then those foreseen for
        the frames after it; an aperture above SHUT rules a change out at its frame.
        """
        current = self._current
        if current is not None and openings[0] > SHUT:
            return current  # whatever the path, it begins where it must stay
        states = list(candidates)
        if current is not None and not any(one is current for one in states):
            states.append(current)
        if not states:
            return None
        self._looks = {
            one: self._looks[one] if one in self._looks else self._look(one.item) for one in states
        }
        looks = np.stack([self._looks[one] for one in states]).astype(np.float64)
        apart: F64 = np.abs(looks[:, None] - looks[None]).mean(axis=2)
        costs = [np.array([cost(one, opening) for one in states]) for opening in openings]
        moves = [reference_moves(apart, opening, SHUT, _CHANGE, _JUMP) for opening in openings]
        before = None if current is None else moves[0][next(k for k, s in enumerate(states) if s is current)]
        self._current = states[first_of_best(costs, moves[1:], before)]
        return self._current
