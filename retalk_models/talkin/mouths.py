"""One pose's insides of the mouth: one that serves every opening, and a wide one, shown as it was seen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from retalk_models.picture import F32
from retalk_models.pose_cache import BETTER
from retalk_models.talkin.mouth_texture import MouthTexture, inside_of
from retalk_models.talkin.mouth_tone import halved

_WIDER = 0.05
"""How much wider open than the best mouth another must have been to be kept beside it (canonical units)."""

_DEEP = 0.6
"""How much depth, as in MouthTexture, such a mouth needs: teeth that meet fit only their own opening."""

_SQUEEZE = 0.02
"""How much less than it was seen a wider mouth is drawn open: the more it is shut the more of the dark goes
that tells a mouth from its lips. Below that the best one is drawn wider than it was seen."""

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
        relative = texture.over_skin(texture.y)
        detail = float(np.abs(cv2.Laplacian(relative, cv2.CV_32F))[inside].mean())
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
    """The mouth that serves every opening best, and one that was farther open, if such has been seen.

    wide: the wider one's texture, with teeth as the best one's.
    """

    best: SeenMouth
    wider: SeenMouth | None = None
    wide: MouthTexture | None = None

    def wants(self, opening: float, clarity: float, depth: float = 1.0) -> bool:
        """Whether a mouth so open, clear and deep would be taken in as the wider one."""
        if opening < self.best.opening + _WIDER or depth < _DEEP:
            return False
        return self.wider is None or clarity > self.wider.clarity + BETTER

    def widened(self, mouth: SeenMouth) -> Mouths:
        """With another wider mouth."""
        return Mouths(self.best, mouth, _toned(mouth.texture, self.best.texture))

    def bettered(self, mouth: SeenMouth) -> Mouths:
        """With another best mouth, and a wider one that is known already."""
        others = [one for one in (self.wider, self.best) if one is not None]
        mouths = Mouths(mouth)
        fit = (one for one in others if mouths.wants(one.opening, one.clarity, one.texture.depth))
        wider = next(fit, None)
        return mouths if wider is None else mouths.widened(wider)

    def at(self, opening: float) -> tuple[tuple[MouthTexture, float], ...]:
        """One texture for an aperture, or two between two, with weights that sum to 1."""
        best = self.best.texture
        if self.wider is None or self.wide is None:
            return ((best, 1.0),)
        share = 0.5 + 0.5 * (opening - self.wider.opening + _SQUEEZE) / _BLEND
        if share <= 0:
            return ((best, 1.0),)
        return ((self.wide, 1.0),) if share >= 1 else ((best, 1 - share), (self.wide, share))

    @property
    def light(self) -> float:
        """Mean luma of the skin round the best of them."""
        return float(self.best.texture.light[0])

    @property
    def height(self) -> float:
        """The highest gap of them, plane units."""
        return (self.wide or self.best.texture).opening.height

    def crushed(self, opening: float) -> float:
        """How far rows of teeth that meet are drawn over each other at an aperture, canonical units: where
        depth lies between them they pass, else they become a band."""
        return (1 - self.best.texture.depth) * max(0.0, self.best.opening - opening)


def _toned(texture: MouthTexture, like: MouthTexture) -> MouthTexture:
    """A texture whose teeth are as bright and of the colour of another's, over the skin's; as it is where
    either shows none."""
    mine, theirs = _teeth(texture), _teeth(like)
    if mine is None or theirs is None:
        return texture
    gain = float(np.clip(theirs[0] / mine[0], 0.8, 1.25))
    shift = np.clip(theirs[1:] - mine[1:], -12, 12)
    share = np.asarray(np.clip(texture.over_skin(texture.y) / mine[0], 0, 1) ** 2, np.float32)
    y = 16 + (texture.y - np.float32(16)) * (1 + share * np.float32(gain - 1))
    uv = texture.uv + halved(share)[..., None] * shift
    return replace(
        texture,
        y=np.rint(np.clip(y, 0, 255)).astype(np.uint8),
        uv=np.rint(np.clip(uv, 0, 255)).astype(np.uint8),
    )


def _teeth(texture: MouthTexture) -> F32 | None:
    """(3,) mean luma of the teeth over the skin's, mean U and V of them less the skin's; None of too few."""
    relative, inside = texture.over_skin(texture.y), inside_of(texture)
    bright = inside & (relative > _BRIGHT)
    if bright.sum() < max(12.0, _FEW * float(inside.sum())):
        return None
    uv = cv2.resize(texture.uv, texture.y.shape[::-1], interpolation=cv2.INTER_LINEAR)
    colour = uv[bright].astype(np.float32).mean(axis=0) - texture.light[1:3]
    return np.array([relative[bright].mean(), *colour], np.float32)
