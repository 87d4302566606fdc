"""What the lips of a re-tracked clip do: opening, shape and the distance between two of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retalk_models.engine import VOICE_RATE
from retalk_models.evaluation.series import F64, on_grid
from retalk_models.face.geometry import INNER_LIPS, OUTER_LIPS, fit_pose, lip_opening, to_canonical
from retalk_models.picture import F32, Flags

LIPS = (*OUTER_LIPS, *INNER_LIPS)

_JAW, _BRIDGE = 152, 6
_SPEECH_DB = 27.0
"""What is so much below a voice's loud parts is not speech."""


@dataclass(frozen=True, slots=True, eq=False)
class Lips:
    """One clip's lips by a tracker of its own.

    seconds: (n,) float64. opening: (n,) inner lip gap over face height, NaN without a face.
    shape: (n, 40, 2) canonical lip points (units of the outer eye corners' distance), NaN without a face.
    jaw: (n,) chin below the nose bridge, canonical units.
    """

    seconds: F64
    opening: F64
    shape: F64
    jaw: F64

    @classmethod
    def of(cls, points: F32, seconds: NDArray[np.float64]) -> Lips:
        """From (n, 478, 3) pixel points, NaN where no face was found, at (n,) seconds."""
        opening = np.full(len(points), np.nan)
        shape = np.full((len(points), len(LIPS), 2), np.nan)
        jaw = np.full(len(points), np.nan)
        for index, face in enumerate(points):
            if not np.isfinite(face[0, 0]):
                continue
            canonical = to_canonical(face, fit_pose(face))
            opening[index] = lip_opening(face)
            shape[index] = canonical[list(LIPS), :2]
            jaw[index] = canonical[_JAW, 1] - canonical[_BRIDGE, 1]
        return cls(np.asarray(seconds, np.float64), opening, shape, jaw)

    @property
    def found(self) -> Flags:
        """(n,) whether a face was found."""
        return np.isfinite(self.opening)

    def shifted(self, seconds: float) -> Lips:
        """The same lips so much later."""
        return Lips(self.seconds + seconds, self.opening, self.shape, self.jaw)

    def shape_at(self, at: F64) -> F64:
        """(len(at), 40, 2) shapes at other instants, less their own mean; NaN where unknown."""
        flat = self.shape.reshape(len(self.shape), -1)
        columns = [on_grid(self.seconds, column, at) for column in flat.T]
        out = np.stack(columns, 1)
        known = np.isfinite(out[:, 0])
        if known.any():
            out = out - out[known].mean(0)
        return out.reshape(len(at), len(LIPS), 2)


def landmark_distances(dub: Lips, truth: Lips, at: F64) -> F64:
    """(n,) mean distance of the 40 lip points at each instant, each face's lips relative to their own mean.

    Percent of the outer eye corners' distance; NaN where either is unknown.
    """
    away = np.linalg.norm(dub.shape_at(at) - truth.shape_at(at), axis=2)
    return np.asarray(100 * away.mean(1), np.float64)


def loudness(sound: F32, at: F64) -> F64:
    """RMS of (n,) 16 kHz sound in the 40 ms around each instant, full scale 1; NaN beyond its end."""
    if not len(sound):
        return np.full(len(at), np.nan)
    power = np.convolve(sound.astype(np.float64) ** 2, np.ones(640) / 640, mode="same")
    seconds = np.arange(len(power)) / VOICE_RATE
    near = np.interp(at, seconds, power, left=np.nan, right=np.nan)
    return np.asarray(np.sqrt(np.maximum(0, near)), np.float64)


def speaking(sound: F32, at: F64) -> Flags:
    """Whether speech is heard at each instant: within 27 dB of the voice's loud parts."""
    level = 20 * np.log10(np.nan_to_num(loudness(sound, at)) + 1e-6)
    return np.asarray(level > max(float(np.quantile(level, 0.95)) - _SPEECH_DB, -70), np.bool_)
