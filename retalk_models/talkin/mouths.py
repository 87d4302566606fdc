"""One pose's insides of the mouth by how far it was open: teeth show otherwise in a wide mouth than in a
narrow one, and a picture of the like needs nothing invented."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter

import cv2
import numpy as np
from numpy.typing import NDArray

from retalk_models.picture import F32
from retalk_models.pose_cache import BETTER
from retalk_models.talkin.mouth import MouthTexture, halved, inside_of

_KINDS = (0.12, 0.17)
"""Apertures (canonical units) between kinds of mouths, of each of which one is kept. With a kind of its own
below 0.075 narrow mouths were duller, and to a tracker some stood wider and some were shut."""

_APART = 0.03
"""Mouths nearer than this (canonical units) are of one kind, or a dub would go to and fro between them."""

_STRETCH, _SQUEEZE = 0.015, 0.045
"""How much farther than it was seen a mouth may be drawn open while there is a wider one, and how much less a
wider one (canonical units): a wider picture shows all of a narrower opening, but the more it is shut the more
of the dark goes that tells a mouth from its lips. Between pictures farther apart than both the narrower is
drawn wider."""

_BLEND = 0.01
"""Aperture on either side of that over which both show."""

_BRIGHT, _FEW = 0.7, 0.05
"""Luma, of the skin's, above which what is inside a mouth is teeth, and a share of it that shows none yet."""


@dataclass(frozen=True, slots=True)
class Look:
    """How far teeth, dark and detail are to be seen inside a mouth, and its depth, each 0..1."""

    teeth: float
    dark: float
    detail: float
    depth: float

    @classmethod
    def of(cls, texture: MouthTexture) -> Look:
        inside = inside_of(texture)
        if inside.sum() < 12:
            return cls(0.0, 0.0, 0.0, 0.0)
        relative = _over_skin(texture)
        skin = max(24.0, float(texture.light[0]) - 16)
        detail = float(np.abs(cv2.Laplacian(texture.y, cv2.CV_32F))[inside].mean()) / skin
        return cls(
            min(1.0, float((relative[inside] > _BRIGHT).mean()) / 0.2),
            min(1.0, float((relative[inside] < 0.45).mean()) / 0.25),
            min(1.0, detail / 0.12),
            texture.depth,
        )

    @property
    def clarity(self) -> float:
        """How well it shows a mouth that is as far open, about 0..1; without teeth at most 0.35, for noise
        is detail, too."""
        return 0.3 * min(1.0, self.teeth / 0.15) + 0.35 * self.teeth + 0.35 * self.detail

    def quality(self, opening: float) -> float:
        """How good it is for a mouth open anyhow, about 0..1, seen at an aperture.

        Teeth with depth behind them fit every opening; rows that meet fit only their own.
        """
        return (
            0.3 * _openness(opening)
            + 0.2 * self.teeth
            + 0.15 * self.dark
            + 0.15 * self.detail
            + 0.2 * self.depth
        )


def best_quality(opening: float) -> float:
    """The quality of the best look that there may be at an aperture."""
    return 0.7 + 0.3 * _openness(opening)


def _openness(opening: float) -> float:
    return float(np.clip((opening - 0.03) / 0.08, 0, 1) - np.clip((opening - 0.17) / 0.1, 0, 1))


@dataclass(frozen=True, slots=True, eq=False)
class SeenMouth:
    """A picture of the mouth's inside, the aperture it was seen at, and how clear it is, about 0..1."""

    texture: MouthTexture
    opening: float
    clarity: float


@dataclass(frozen=True, slots=True, eq=False)
class Mouths:
    """Mouths of increasing aperture, at least one and at most one of a kind.

    best: which of them serves every opening best. shown: their textures, with teeth as the best one's.
    """

    seen: tuple[SeenMouth, ...]
    best: SeenMouth
    shown: tuple[MouthTexture, ...]

    @classmethod
    def of(cls, mouth: SeenMouth) -> Mouths:
        return cls((mouth,), mouth, (mouth.texture,))

    def wants(self, opening: float, clarity: float) -> bool:
        """Whether a mouth so open and so clear would be taken in; not in the best one's place."""
        alike = self._alike(opening)
        return self.best not in alike and all(clarity > one.clarity + BETTER for one in alike)

    def joined(self, mouth: SeenMouth, best: bool) -> Mouths:
        """With another mouth in its kind's place. best: whether it serves every opening better than all."""
        gone = self._alike(mouth.opening)
        kept: Iterable[SeenMouth] = (one for one in self.seen if one not in gone)
        seen = tuple(sorted((*kept, mouth), key=lambda one: one.opening))
        first = mouth if best else self.best
        shown = (one.texture if one is first else _toned(one.texture, first.texture) for one in seen)
        return Mouths(seen, first, tuple(shown))

    def at(self, opening: float) -> tuple[tuple[MouthTexture, float], ...]:
        """One texture for an aperture, or two between two, with weights that sum to 1."""
        for (one, before), (other, after) in pairwise(zip(self.seen, self.shown, strict=True)):
            apart = other.opening - one.opening
            turn = one.opening + max(_STRETCH, apart - _SQUEEZE)
            share = 0.5 + 0.5 * (opening - turn) / _BLEND
            if share <= 0:
                return ((before, 1.0),)
            if share < 1:
                return ((before, 1 - share), (after, share))
        return ((self.shown[-1], 1.0),)

    @property
    def light(self) -> float:
        """Mean luma of the skin round the best of them."""
        return float(self.best.texture.light[0])

    @property
    def height(self) -> float:
        """The highest gap of them, plane units."""
        return max(one.opening.height for one in self.shown)

    def crushed(self, opening: float) -> float:
        """How far rows of teeth that meet are drawn over each other at an aperture, canonical units: where
        depth lies between them they pass, else they become a band."""
        texture = max(self.at(opening), key=itemgetter(1))[0]
        mouth = self.seen[self.shown.index(texture)]
        return (1 - texture.depth) * max(0.0, mouth.opening - opening)

    def _alike(self, opening: float) -> list[SeenMouth]:
        kind = bisect_right(_KINDS, opening)
        return [
            one
            for one in self.seen
            if bisect_right(_KINDS, one.opening) == kind or abs(one.opening - opening) < _APART
        ]


def _over_skin(texture: MouthTexture) -> F32:
    """(h, w) luma over the skin's."""
    skin = max(24.0, float(texture.light[0]) - 16)
    return np.asarray((texture.y.astype(np.float32) - 16) / np.float32(skin), np.float32)


def _toned(texture: MouthTexture, like: MouthTexture) -> MouthTexture:
    """A texture whose teeth are as bright and of the colour of another's, over the skin's; as it is where
    either shows none."""
    mine, theirs = _teeth(texture), _teeth(like)
    if mine is None or theirs is None:
        return texture
    gain = float(np.clip(theirs[0] / mine[0], 0.8, 1.25))
    shift = np.clip(theirs[1:] - mine[1:], -12, 12)
    share = np.asarray(np.clip(_over_skin(texture) / mine[0], 0, 1) ** 2, np.float32)
    y = 16 + (texture.y - np.float32(16)) * (1 + share * np.float32(gain - 1))
    uv = texture.uv + halved(share)[..., None] * shift
    return replace(
        texture,
        y=np.rint(np.clip(y, 0, 255)).astype(np.uint8),
        uv=np.rint(np.clip(uv, 0, 255)).astype(np.uint8),
    )


def _teeth(texture: MouthTexture) -> F32 | None:
    """(3,) mean luma of the teeth over the skin's, mean U and V of them less the skin's; None of too few."""
    relative = _over_skin(texture)
    inside: NDArray[np.bool_] = inside_of(texture)
    bright = inside & (relative > _BRIGHT)
    if bright.sum() < max(12.0, _FEW * float(inside.sum())):
        return None
    uv = cv2.resize(texture.uv, texture.y.shape[::-1], interpolation=cv2.INTER_LINEAR)
    colour = uv[bright].astype(np.float32).mean(axis=0) - texture.light[1:3]
    return np.array([relative[bright].mean(), *colour], np.float32)
