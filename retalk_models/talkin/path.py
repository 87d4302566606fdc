"""Dynamic programming over what supports a frame: a mouth's reference, or which frame of a loop is shown.

States are numbered 0..K-1. A path's cost is the sum of what each state costs at its frame and of what each
change of state costs. `best_path` is the offline optimum; `FixedLag` gives one state a frame, `lag` frames
after it; `first_of_best` is one such decision where later frames are known provisionally, so that nothing is
delayed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

NEVER = np.inf
"""The cost of what must not happen."""


def best_path(
    states: Sequence[F64], moves: Sequence[F64], before: F64 | None = None
) -> tuple[list[int], float]:
    """The cheapest path over T frames (Viterbi) and its cost.

    states: T arrays (K,), what each state costs at each frame. moves: T - 1 arrays (K, K), what going from
    a row's state to a column's costs. before: (K,) what entering a state at the first frame costs; 0 if None.
    Among equals the lowest number wins. Raises ValueError for no frame, or where no path is possible.
    """
    if not states or len(moves) != len(states) - 1:
        raise ValueError(
            f"{len(states)} frames need {max(0, len(states) - 1)} moves between them, not {len(moves)}"
        )
    cost = states[0] + (0.0 if before is None else before)
    came: list[NDArray[np.intp]] = []
    for state, move in zip(states[1:], moves, strict=True):
        total = cost[:, None] + move
        came.append(total.argmin(axis=0))
        cost = total.min(axis=0) + state
    last = int(cost.argmin())
    if not np.isfinite(cost[last]):
        raise ValueError("no path is possible: every one holds something that must not happen")
    path = [last]
    for back in reversed(came):
        path.append(int(back[path[-1]]))
    return path[::-1], float(cost[last])


def first_of_best(states: Sequence[F64], moves: Sequence[F64], before: F64 | None = None) -> int:
    """The state to show now: the first of the cheapest path over this frame and what is foreseen after it."""
    return best_path(states, moves, before)[0][0]


def path_cost(path: Sequence[int], states: Sequence[F64], moves: Sequence[F64]) -> float:
    """What a given path costs over T frames; see best_path."""
    total = sum(float(state[k]) for k, state in zip(path, states, strict=True))
    return total + sum(float(move[j, k]) for (j, k), move in zip(pairwise(path), moves, strict=True))


class FixedLag:
    """Emits the state of frame t once frame t + lag is known. What was emitted is never gone back on."""

    def __init__(self, lag: int) -> None:
        """lag: frames, at least 0. Raises ValueError."""
        if lag < 0:
            raise ValueError(f"a lag is at least 0 frames, not {lag}")
        self._lag = lag
        self._states: deque[F64] = deque()
        self._moves: deque[F64] = deque()
        self._emitted: int | None = None

    def push(self, state: F64, move: F64 | None = None) -> int | None:
        """Take in the next frame; the state of the frame `lag` before it, or None while there is none.

        state: (K,) costs. move: (K, K) costs from the frame before, which the first frame does not need.
        """
        if self._states or self._emitted is not None:
            if move is None:
                raise ValueError("every frame but the first needs the cost of moving to it")
            self._moves.append(move)
        self._states.append(state)
        return self._emit() if len(self._states) > self._lag else None

    def finish(self) -> list[int]:
        """The states of the frames that are still held back; afterwards a new path may begin."""
        out = []
        while self._states:
            out.append(self._emit())
        self._emitted = None
        self._moves.clear()
        return out

    def _emit(self) -> int:
        # With one committed state before, the best path over what is held is what back-pointers that
        # disagree with it being set to infinity come to.
        moves = list(self._moves)
        before = None
        if self._emitted is not None:
            before, moves = moves[0][self._emitted], moves[1:]
            self._moves.popleft()
        self._emitted = first_of_best(list(self._states), moves, before)
        self._states.popleft()
        return self._emitted


def reference_moves(apart: F64, opening: float, shut: float, change: float, jump: float) -> F64:
    """(K, K) cost of going from one mouth reference to another: a switch hides while lips are shut.

    apart: (K, K) how different two references look, 0 on the diagonal. opening: the aperture drawn at this
    frame; above `shut` no switch may happen. change: cost of any switch. jump: cost per unit of `apart`.
    """
    count = len(apart)
    moves = np.full((count, count), NEVER) if opening > shut else change + jump * apart
    moves[np.arange(count), np.arange(count)] = 0.0
    return np.asarray(moves, np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Loop:
    """A presenter's film as states of a path, so that it may be re-timed to a voice.

    motion: (n, d) head pose per frame, in units that one frame's usual motion makes about 1.
    activity: (n,) 0..1, how much the presenter speaks at each frame.
    """

    motion: F64
    activity: F64

    def states(self, speaking: float) -> F64:
        """(n,) what showing each frame costs while the voice speaks (1) or pauses (0)."""
        return np.asarray(np.abs(self.activity - speaking), np.float64)

    def moves(self, cut: float, turn: float) -> F64:
        """(n, n) what following one frame with another costs; the next in the film is free.

        cut: of any other than the next. turn: per unit of the head's jump from where the film would have
        gone. The last frame's next is itself.
        """
        count = len(self.motion)
        following = np.minimum(np.arange(count) + 1, count - 1)
        jump = np.linalg.norm(self.motion[following][:, None] - self.motion[None], axis=2)
        moves = cut + turn * jump
        moves[np.arange(count), following] = 0.0
        # Standing still is a cut, too, but not a worse one than going anywhere else.
        moves[-1, -1] = cut
        return np.asarray(moves, np.float64)
