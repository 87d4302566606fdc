"""A plausible inside of the mouth for a person whose own has not been seen yet: dark, with a soft line of
teeth."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from retalk_models.easing import ease_each
from retalk_models.picture import F32
from retalk_models.talkin.mouth_texture import MouthTexture, Opening, TeethPlane
from retalk_models.talkin.mouth_tone import black_of, coloured, dark_of, halved

_PER_UNIT = 320
"""Pixels per plane unit (the outer eye corners' distance) of the drawn texture."""

_HALF_WIDTH, _ABOVE, _BELOW = 0.4, 0.12, 0.38
"""What the texture covers beside, above and below the middle of the closed lips, plane units."""

_TEETH_LENGTH = 0.018
"""How far the upper teeth reach below the closed lips' line in the middle, plane units."""

_DARK = 0.13
_TONGUE = ((0.0, 0.02, 0.05, 0.09, 0.14, 0.2, 0.3), (0.38, 0.43, 0.4, 0.3, 0.22, 0.16, _DARK))
"""Plane units above the lower lip, and luma there, of the skin's. As dark as the darker quarter of 41 people
of the training clips: half of what is seen in others is their teeth, and a bright blur looks like fog."""

_TINT = 0.5
"""How much of the skin's colour teeth have; median of the same people."""


def draw_cavity(lip_line: Opening, light: F32, lips: F32) -> MouthTexture:
    """The drawn texture for a person.

    lip_line: the neutral mouth's opening. light: (4,) as in MouthTexture. lips: (2,) as for `dark_of`.
    """
    width, height = round(2 * _HALF_WIDTH * _PER_UNIT) & ~1, round((_ABOVE + _BELOW) * _PER_UNIT) & ~1
    middle = (lip_line.left + lip_line.right) / 2
    line = float(lip_line.upper[4:7, 1].mean())
    half_mouth = max(0.1, (lip_line.right - lip_line.left) / 2)
    x = ((np.arange(width) + 0.5) / _PER_UNIT - _HALF_WIDTH)[None, :]
    y = ((np.arange(height) + 0.5) / _PER_UNIT - _ABOVE)[:, None]
    across = x / half_mouth

    skin = max(40.0, float(light[0])) - 16
    black = black_of(light)
    # What lies below the teeth rides on the jaw: tongue and gums by their distance from the lower lip.
    rise = np.interp(_BELOW - y, _TONGUE[0], _TONGUE[1])
    middle_line = 1 - 0.1 * np.exp(-((x / 0.03) ** 2))
    luma = skin * (_DARK + (rise - _DARK) * middle_line * (1 - 0.4 * across**2).clip(0.3, 1))

    arc = _TEETH_LENGTH - 0.030 * across**2
    teeth = _edge(arc - y, 0.012) * _edge(1.02 - np.abs(across), 0.35)
    shade = (1.0 - 0.42 * across**2).clip(0.15, 1) * (0.86 + 0.14 * _edge(y + 0.03, 0.05))
    gaps = sum(np.exp(-(((np.abs(x) - k) / 0.0045) ** 2)) for k in (0.0, 0.086, 0.158, 0.222))
    bright = np.minimum(0.85 * skin, 180) * shade * (1 - 0.14 * gaps)
    dark = dark_of(light, lips)
    flesh = 128 + coloured(np.asarray(16 + luma, np.float32), light) * (dark[1:] - 128)
    # Where teeth end there is shadow, not a cut edge.
    luma = luma * (1 - teeth) + bright * teeth
    colour = flesh + teeth[..., None] * (128 + _TINT * (light[1:3] - 128) - flesh)

    luma = black + luma * max(0.2, 1 - (black - 16) / skin)
    planes = [cv2.GaussianBlur(np.asarray(luma, np.float32), (0, 0), 1.6)]
    uv = halved(np.asarray(colour, np.float32))
    plane = TeethPlane(
        np.eye(2, dtype=np.float32) * _PER_UNIT,
        np.array([(_HALF_WIDTH - middle) * _PER_UNIT, (_ABOVE - line) * _PER_UNIT], np.float32),
    )
    ends = np.linspace(middle - _HALF_WIDTH, middle + _HALF_WIDTH, 11, dtype=np.float32)
    upper = np.stack([ends, np.full(11, line - _ABOVE, np.float32)], axis=1)
    lower = np.stack([ends, np.full(11, line + _BELOW, np.float32)], axis=1)
    return MouthTexture(
        np.rint(np.clip(planes[0], 16, 235)).astype(np.uint8),
        np.rint(np.clip(uv, 16, 240)).astype(np.uint8),
        (0, 0),
        plane,
        Opening(upper, lower),
        light,
        line + _TEETH_LENGTH + 0.02,
        1.0,
        dark,
        cast=0.6,
    )


def _edge(distance: NDArray[np.float64], width: float) -> F32:
    """0 below -width / 2, 1 above width / 2, smooth between."""
    return ease_each(np.asarray(distance / width + 0.5, np.float32))
