"""One pose's insides of the mouth by how far it was open: teeth show otherwise in a wide mouth than in a
narrow one, and a picture of the like needs nothing invented."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np

from retalk_models.picture import F32
from retalk_models.talkin.mouth import MouthTexture, inside_of

_KINDS = (0.12, 0.17)
"""Apertures (canonical units) between kinds of mouths, of each of which one is kept. With a kind of its own
below 0.075 narrow mouths were duller, and to a tracker some stood wider and some were shut."""

_BETTER = 0.08
"""A mouth takes the place of its kind's only if clearer by so much: teeth must not change for nothing."""

_STRETCH, _SQUEEZE = 0.015, 0.045
"""How much farther than it was seen a mouth may be drawn open while there is a wider one, and how much less a
wider one (canonical units): a wider picture shows all of a narrower opening, but the more it is shut the more
of the dark goes that tells a mouth from its lips. Between pictures farther apart than both the narrower is
drawn wider."""

_BLEND = 0.01
"""The most aperture on either side of that over which both show."""


@dataclass(frozen=True, slots=True, eq=False)
class SeenMouth:
    """A picture of the mouth's inside, the aperture it was seen at, and how clear it is, about 0..1."""

    texture: MouthTexture
    opening: float
    clarity: float


@dataclass(frozen=True, slots=True, eq=False)
class Mouths:
    """Mouths of increasing aperture, at least one and at most one of a kind. best: which of them serves every
    opening best."""

    seen: tuple[SeenMouth, ...]
    best: SeenMouth

    @classmethod
    def of(cls, mouth: SeenMouth) -> Mouths:
        return cls((mouth,), mouth)

    def wants(self, opening: float, clarity: float) -> bool:
        """Whether a mouth so open and so clear would be taken in; not in the best one's place."""
        held = self._like(opening)
        return held is None or (held is not self.best and clarity > held.clarity + _BETTER)

    def joined(self, mouth: SeenMouth, best: bool) -> Mouths:
        """With another mouth in its kind's place. best: whether it serves every opening better than all."""
        gone = self._like(mouth.opening)
        if not best:
            mouth = replace(mouth, texture=_toned(mouth.texture, self.best.texture))
        seen = [one for one in self.seen if one is not gone] + [mouth]
        ordered = tuple(sorted(seen, key=lambda one: one.opening))
        return Mouths(ordered, mouth if best else self.best)

    def at(self, opening: float) -> tuple[tuple[MouthTexture, float], ...]:
        """One texture for an aperture, or two between two, with weights that sum to 1."""
        for one, other in pairwise(self.seen):
            apart = other.opening - one.opening
            turn = max(min(_STRETCH, 0.5 * apart), apart - _SQUEEZE)
            over = (opening - one.opening - turn) / min(_BLEND, 0.3 * apart)
            if over <= -1:
                return ((one.texture, 1.0),)
            if over < 1:
                share = 0.5 + 0.5 * over
                share *= share * (3 - 2 * share)
                return ((one.texture, 1 - share), (other.texture, share))
        return ((self.seen[-1].texture, 1.0),)

    @property
    def light(self) -> float:
        """Mean luma of the skin round the best of them."""
        return float(self.best.texture.light[0])

    @property
    def height(self) -> float:
        """The highest gap of them, plane units."""
        return max(one.texture.opening.height for one in self.seen)

    def _like(self, opening: float) -> SeenMouth | None:
        kind = bisect_right(_KINDS, opening)
        return next((one for one in self.seen if bisect_right(_KINDS, one.opening) == kind), None)


def _toned(texture: MouthTexture, like: MouthTexture) -> MouthTexture:
    """A texture whose brightest, its teeth, are as bright and of the colour of another's, over the skin's."""
    mine, theirs = _brightest(texture), _brightest(like)
    if mine is None or theirs is None:
        return texture
    skin, other = texture.light, like.light
    wanted = (theirs[0] - 16) * (skin[0] - 16) / max(8.0, float(other[0]) - 16)
    gain = float(np.clip(wanted / max(1.0, float(mine[0]) - 16), 0.8, 1.25))
    shift = np.clip((theirs[1:] - other[1:3]) - (mine[1:] - skin[1:3]), -12, 12)
    luma = texture.y.astype(np.float32) - 16
    share = _halved(np.asarray(np.clip(luma / max(1.0, float(mine[0]) - 16), 0, 1) ** 2, np.float32))
    y = np.clip(16 + gain * luma, 0, 255).astype(np.uint8)
    uv = np.clip(texture.uv + share[..., None] * shift, 0, 255).astype(np.uint8)
    return replace(texture, y=y, uv=uv)


def _halved(plane: F32) -> F32:
    return np.asarray(cv2.resize(plane, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.float32)


def _brightest(texture: MouthTexture) -> F32 | None:
    """(3,) mean Y, U, V of the brightest sixth inside; None of an opening of a few pixels."""
    inside = inside_of(texture)
    if inside.sum() < 12:
        return None
    uv = cv2.resize(texture.uv, texture.y.shape[::-1], interpolation=cv2.INTER_LINEAR)
    luma = texture.y[inside]
    bright = luma >= np.quantile(luma, 5 / 6)
    colour = uv[inside][bright].astype(np.float32).mean(axis=0)
    return np.array([luma[bright].mean(), *colour], np.float32)
