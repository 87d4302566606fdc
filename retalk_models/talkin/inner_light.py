"""How light the inside of one person's mouth is, by how far it is open."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retalk_models.face.geometry import ObservedFace
from retalk_models.picture import F32, Picture
from retalk_models.talkin.mouth_texture import seen_inside
from retalk_models.talkin.mouth_tone import over_skin

_F64 = NDArray[np.float64]

_APERTURES = (0.02, 0.035, 0.05, 0.07, 0.09, 0.13)
"""Canonical units. Between two of them both speak."""

_FADES = (0.08, 0.13)
"""From which on it says less, and nothing: in a wide mouth teeth are as bright as they were seen."""

_SURE = 8.0
"""Frames after which what was seen counts for half."""

_FEWEST = 12
"""Fewer samples tell nothing."""

_MEMORY = 250.0
"""About how many frames of an aperture are remembered: light changes."""


class InnerLight:
    """The usual luma, over the skin's, between this person's lips while they are not far apart.

    In most people a slit is dark: lips hide the teeth or lay them in shadow. A picture of a mouth that showed
    its teeth well, drawn into a slit, has a bright row there which is nobody's. Not thread-safe.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the person."""
        self._frames: _F64 = np.zeros(len(_APERTURES))
        self._luma: _F64 = np.zeros(len(_APERTURES))

    def copy(self) -> InnerLight:
        """The same, learning by itself from now on."""
        other = InnerLight()
        other._frames, other._luma = self._frames.copy(), self._luma.copy()
        return other

    def observe(self, picture: Picture, face: ObservedFace, light: F32) -> None:
        """Learn from a frame. light: (4,) as in MouthTexture."""
        if not _APERTURES[0] <= face.opening <= _APERTURES[-1]:
            return
        inside = seen_inside(picture, face.points)
        if inside is None or len(inside) < _FEWEST:
            return
        luma = float(over_skin(inside, light).mean())
        shares = _shares(face.opening)
        self._frames = np.minimum(self._frames + shares, _MEMORY)
        self._luma += shares / np.maximum(1e-6, self._frames) * (luma - self._luma)

    def at(self, opening: float) -> tuple[float, float]:
        """The usual luma, over the skin's, at an aperture, and how sure that is, 0..1."""
        weights = _shares(opening) * self._frames
        frames = float(weights.sum())
        if frames <= 0:
            return 0.0, 0.0
        fade = float(np.interp(opening, _FADES, (1, 0)))
        return float((weights * self._luma).sum()) / frames, fade * frames / (frames + _SURE)


def _shares(opening: float) -> _F64:
    """How much each of the apertures has of this one; they sum to 1."""
    place = np.interp(opening, _APERTURES, np.arange(len(_APERTURES)))
    return np.asarray(np.clip(1 - np.abs(np.arange(len(_APERTURES)) - place), 0, 1), np.float64)
