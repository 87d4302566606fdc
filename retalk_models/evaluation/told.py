"""Mouths that are moved by something else than the expression net: baselines and what a mouth really did."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retalk_models.engine import VOICE_RATE
from retalk_models.face.geometry import IdentityEstimator, fit_pose, to_canonical
from retalk_models.picture import F32
from retalk_models.speech import HOP, LevelTracker
from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.net import Expression

_WIDEST = 0.14
"""Aperture (canonical units) of a loudness-driven mouth at the voice's loud parts."""

_QUIET_DB = 24.0
"""What is so much below the voice's level shuts a loudness-driven mouth."""

_SMOOTH = 5
_HISTORY = 2000


class _LoudnessStream:
    """An opening from 50 ms of loudness round each position."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._start = self._dropped = 0
        self._carry: F32 = np.zeros(0, np.float32)
        self._opened: NDArray[np.float64] = np.zeros(0)
        self._level = LevelTracker()

    def push(self, pcm: F32) -> None:
        held = np.concatenate([self._carry, np.asarray(pcm, np.float32)])
        count = len(held) // HOP
        blocks = held[: count * HOP].reshape(count, HOP)
        self._carry = held[count * HOP :]
        decibels = 10 * np.log10((blocks.astype(np.float64) ** 2).mean(1) + 1e-9)
        level = self._level.push(decibels.astype(np.float32))
        opened = np.clip((decibels - level + _QUIET_DB) / _QUIET_DB, 0, 1) * (decibels > -60)
        self._opened = np.concatenate([self._opened, opened])
        if len(self._opened) > _HISTORY:
            self._dropped += len(self._opened) - _HISTORY
            self._opened = self._opened[-_HISTORY:]

    def at(self, position: int) -> Expression:
        values = np.zeros(self._size, np.float32)
        middle = (position - self._start) // HOP - self._dropped
        near = self._opened[max(0, middle - _SMOOTH // 2) : max(0, middle + _SMOOTH // 2 + 1)]
        values[0] = _WIDEST * float(near.mean()) if len(near) else 0.0
        return Expression(values, 0.0, 1.0)

    def restart(self, position: int) -> None:
        self._start, self._dropped = position, 0
        self._carry, self._opened = np.zeros(0, np.float32), np.zeros(0)
        self._level.reset()


@dataclass(frozen=True, slots=True)
class LoudnessSpeech:
    """The mouth that a level meter would drive: the baseline that any lip-sync has to beat.

    size: coefficients of the basis that draws it.
    """

    size: int

    def open_stream(self) -> _LoudnessStream:
        return _LoudnessStream(self.size)


@dataclass(frozen=True, slots=True, eq=False)
class RecordedSpeech:
    """A mouth that repeats what was measured, whatever the sound.

    seconds: (n,) increasing. coefficients: (n, K).
    """

    seconds: NDArray[np.float64]
    coefficients: F32

    @classmethod
    def of(cls, points: F32, seconds: NDArray[np.float64], basis: ExpressionBasis) -> RecordedSpeech:
        """From a clip's (n, 478, 3) points, NaN where no face was found; relative to its own closed mouth.

        Raises ValueError where no face was found at all.
        """
        found = np.isfinite(points[:, 0, 0])
        if not found.any():
            raise ValueError("no face was found in any frame, so there is no expression to repeat")
        shapes = np.stack([to_canonical(face, fit_pose(face)) for face in points[found]])
        identity = IdentityEstimator(basis, memory=len(shapes), history=len(shapes))
        for shape in shapes:
            identity.update(shape)
        return cls(seconds[found], basis.project(np.asarray(shapes - identity.neutral, np.float32)))

    def push(self, pcm: F32) -> None:
        """Nothing of the sound is heard."""

    def restart(self, position: int) -> None:
        """Nothing was heard."""

    def at(self, position: int) -> Expression:
        second = position / VOICE_RATE
        values = [np.interp(second, self.seconds, column) for column in self.coefficients.T]
        return Expression(np.array(values, np.float32), 0.0, 1.0)

    def open_stream(self) -> RecordedSpeech:
        return self
