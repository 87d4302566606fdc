"""Light and colour inside a mouth, by those of the skin and the lips round it."""

from __future__ import annotations

import cv2
import numpy as np

from retalk_models.face.geometry import INNER_LIPS, OUTER_LIPS
from retalk_models.picture import F32, U8, Picture

FLESH = 0.6
"""How much of the lips' colour the inside of a mouth has; median of 15 people of the training clips."""

_COLOURED = 0.3
"""Luma, of the skin's, from which on a place in a mouth shows all of its colour: what is black has none."""

_UNDER = 0.55
"""How far above black a mouth's depth stays, of how far the face's darkest spots do: in a pale picture from a
cheap camera a black hole is nobody's mouth."""


def over_skin(luma: U8 | F32, light: F32) -> F32:
    """Luma of any shape, from black on, over that of the skin in this light."""
    return np.asarray((luma.astype(np.float32) - 16) / np.float32(skin_of(light)), np.float32)


def skin_of(light: F32) -> float:
    """Luma of the skin from black on; in the dark a little more, for it divides."""
    return max(24.0, float(light[0]) - 16)


def halved(plane: F32) -> F32:
    """(h, w) or (h, w, n) at half the size, each sample the mean of four."""
    return np.asarray(cv2.resize(plane, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.float32)


def lip_colour(picture: Picture, points: F32) -> F32:
    """(2,) U and V of a face's lips, midway between their outlines; grey where none of it is in the picture.

    points: (478, 2 or 3) pixels.
    """
    middle = (points[list(INNER_LIPS), :2] + points[list(OUTER_LIPS), :2]) / 2
    places = np.rint((middle - 0.5) / 2).astype(int)
    within = ((places >= 0) & (places < picture.u.shape[::-1])).all(axis=1)
    if not within.any():
        return np.full(2, 128, np.float32)
    column, row = places[within].T
    return np.array([np.median(picture.u[row, column]), np.median(picture.v[row, column])], np.float32)


def dark_of(light: F32, lips: F32) -> F32:
    """(3,) a mouth's depth in this light: Y where no light falls, U and V where some does.

    lips: (2,) their U and V. What is inside a mouth has the lips' hue more than the skin's.
    """
    return np.array([_unlit(light), *(128 + FLESH * (lips - 128))], np.float32)


def _unlit(light: F32) -> float:
    return max(16 + 0.1 * max(0.0, float(light[0]) - 16), black_of(light))


def coloured(luma: F32, light: F32) -> F32:
    """(..., 1) 0..1, how much of its colour a place inside a mouth shows, by its luma of any shape."""
    lit = (luma - 16) / (_COLOURED * skin_of(light))
    return np.asarray(np.sqrt(np.clip(lit, 0, 1)), np.float32)[..., None]


def glow(dark: F32, light: F32) -> float:
    """0..1, how much a mouth's depth has of the light that a depth usually has.

    Where a person's own is black, a tongue in the part that was never seen would be a stripe in it.
    """
    return float(np.clip((dark[0] - 16) / max(1.0, _unlit(light) - 16), 0, 1))


def black_of(light: F32) -> float:
    """The least luma that a picture in this light may have in a mouth: a little under the face's darkest."""
    return 16 + _UNDER * max(0.0, float(light[3]) - 16)
