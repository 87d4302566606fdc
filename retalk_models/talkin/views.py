"""Views of the person that another view is drawn from: lips shut and lips open, by pose."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np

from retalk_models.face.geometry import MOUTH_CORNERS, OUTER_LIPS, ObservedFace, Pose
from retalk_models.picture import F32, U8, Box, Flags, Picture
from retalk_models.pose_cache import PoseCache, Reference, turned_away
from retalk_models.talkin.motion import MouthMotion
from retalk_models.talkin.mouth_crop import SIDE, SPAN, MouthCrop, crop_of, cut_crop, lips_mask, outlines


class Kind(Enum):
    """How far a view's lips are apart."""

    SHUT = 0
    PARTED = 1
    WIDE = 2


SHUT_BELOW = 0.025
"""Aperture (canonical units) under which lips count as shut."""

_LOOKS_SHUT = 0.015
"""The same of what is seen between them: a view of lips that only nearly meet is worse than none."""

_PARTED_FROM, _WIDE_FROM = 0.04, 0.09
_SWITCH = {Kind.SHUT: (0.015, 0.03), Kind.WIDE: (0.075, 0.095)}
"""The target's apertures between which the kind of view in use stays what it is."""

_BEST = {Kind.SHUT: (0.0, SHUT_BELOW), Kind.PARTED: (0.065, 0.04), Kind.WIDE: (0.13, 0.1)}
"""The aperture that serves most targets of a kind, and how far from it a view serves none."""

_BLACK = (0.3, 0.6)
"""Luma, of the lips', below which a sample lies between them, and from which on it does not."""

_PALE = (0.2, 0.5)
"""V from grey on, of the lips', below which a lit sample is teeth, and from which on it is not."""

_TOO_DARK, _TOO_GREY, _FEWEST = 8.0, 8.0, 12
"""Lips of less luma tell nothing of a gap, nor ones of less red of teeth, nor do fewer samples of them."""

_PAUSE_S = 0.1
"""How long none of its kind is looked at after one that looked worse than those held: the next will, too."""

_SHARP, _USUAL = 0.2, 0.05
"""What e times the usual detail of lips adds to a view's quality, and that detail."""

_BENT = (0.4, 0.08)
"""The most that shut lips lose which are not at rest, and how far away, canonical units, they are then."""

_OUTGROWN = 0.35
"""From how much better a view it takes the other's place while the kind stays."""


_SERVING = {
    Kind.SHUT: (Kind.SHUT,),
    Kind.PARTED: (Kind.PARTED, Kind.WIDE),
    Kind.WIDE: (Kind.WIDE, Kind.PARTED),
}
"""The kinds of view that each kind of target can be drawn from, the best first."""


def kind_of(opening: float) -> Kind | None:
    """The kind that a frame with this aperture is a view of; None for lips that only just part."""
    if opening < SHUT_BELOW:
        return Kind.SHUT
    if opening < _PARTED_FROM:
        return None
    return Kind.PARTED if opening < _WIDE_FROM else Kind.WIDE


def served_by(opening: float) -> tuple[Kind, ...]:
    """The kinds of view that an aperture can be drawn from, the best first."""
    return _SERVING[kind_of(opening) or Kind.PARTED]


def pose_distance(one: Pose, other: Pose) -> float:
    """How ill a view in one pose serves a face in the other."""
    return 0.7 * abs(one.yaw - other.yaw) + 0.5 * abs(one.pitch - other.pitch)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One moment of the person round the mouth, at the frame's own resolution.

    picture: the part of the frame. crop: where the net's crop lies in it. small: that crop. points: (478, 2)
    in crop samples. opening: how far the lips are apart to the eye, canonical units: their aperture, or what
    is seen between them where that is more. detail: how sharp the lips are, as of `_Lips`.
    """

    picture: Picture
    crop: MouthCrop
    small: U8
    points: F32
    opening: float
    detail: float


def take_view(picture: Picture, face: ObservedFace, neutral: F32) -> View | None:
    """A view from a frame; None where its crop is not all inside the frame."""
    crop = crop_of(face.pose, neutral)
    ends = np.array([[0, 0], [SIDE - 1, 0], [0, SIDE - 1], [SIDE - 1, SIDE - 1]], np.float32)
    reached = crop.to_frame(ends)
    low, high = reached.min(axis=0), reached.max(axis=0)
    box = Box(int(low[0]) - 2 & ~1, int(low[1]) - 2 & ~1, int(high[0]) + 4 & ~1, int(high[1]) + 4 & ~1)
    if box.left < 0 or box.top < 0 or box.right > picture.padded_width or box.bottom > picture.padded_height:
        return None
    part = _part(picture, box)
    matrix = crop.matrix.copy()
    matrix[:, 2] -= (box.left, box.top)
    moved, points = MouthCrop(matrix), crop.to_crop(face.points[:, :2])
    small = cut_crop(part, moved)
    lips = _Lips.of(small, points)
    return View(part, moved, small, points, max(face.opening, lips.gap()), lips.detail())


@dataclass(frozen=True, slots=True, eq=False)
class _Lips:
    """What a crop shows of lips.

    luma, red: (SIDE, SIDE) Y from black and V from grey on. flesh, between: (SIDE, SIDE) where lips are, and
    where what is between them may be seen. width: the mouth's, samples.
    """

    luma: F32
    red: F32
    flesh: Flags
    between: Flags
    width: float

    @classmethod
    def of(cls, small: U8, points: F32) -> _Lips:
        """small: (SIDE, SIDE, 3) a crop. points: (478, 2) in its samples."""
        inner = outlines(points)[..., 1]
        near, far = (cv2.dilate(inner, np.ones((size, size), np.uint8)) > 0 for size in (3, 5))
        mouth = lips_mask(points, wider=-1) > 0
        luma, red = small[..., 0].astype(np.float32) - 16, small[..., 2].astype(np.float32) - 128
        left, right = MOUTH_CORNERS
        return cls(luma, red, mouth & ~near, far, float(np.linalg.norm(points[right] - points[left])))

    def gap(self) -> float:
        """How high, canonical units, what is no lip stands between them, over the mouth's width.

        Lips that are tracked as touching may have a black slit between them, or teeth; a seam in the shadow
        of lips that do touch hardly counts. 0 where it is too dark to tell.
        """
        if self.width < 1 or self.flesh.sum() < _FEWEST:
            return 0.0
        # The darker lip's, or the half's in shadow: neither is a gap.
        lip = float(np.quantile(self.luma[self.flesh], 0.25))
        if lip < _TOO_DARK:
            return 0.0
        relative = self.luma[self.between] / lip
        other = np.clip((_BLACK[1] - relative) / (_BLACK[1] - _BLACK[0]), 0, 1)
        red = float(np.median(self.red[self.flesh]))
        if red > _TOO_GREY:
            pale = np.clip((_PALE[1] - self.red[self.between] / red) / (_PALE[1] - _PALE[0]), 0, 1)
            lit = np.clip((relative - _BLACK[0]) / (_BLACK[1] - _BLACK[0]), 0, 1)
            other = np.maximum(other, pale * lit)
        return float(other.sum()) / self.width * SPAN / SIDE

    def detail(self) -> float:
        """Mean absolute Laplacian of the lips' luma over its median."""
        if self.flesh.sum() < _FEWEST:
            return 0.0
        middle = max(24.0, float(np.median(self.luma[self.flesh])))
        return float(np.abs(cv2.Laplacian(self.luma, cv2.CV_32F))[self.flesh].mean()) / middle


def _part(picture: Picture, box: Box) -> Picture:
    planes: U8 = np.empty((box.height * 3 // 2, box.width), np.uint8)
    part = Picture(planes, box.width, box.height)
    part.y[...], part.u[...], part.v[...] = picture.part(box)
    return part


class PersonViews:
    """One person's views. Not thread-safe."""

    def __init__(self) -> None:
        self._kept: dict[Kind, PoseCache[View]] = {kind: PoseCache(6) for kind in Kind}
        self.reset()

    def reset(self) -> None:
        """Forget the person."""
        for cache in self._kept.values():
            cache.clear()
        self._current: Reference[View] | None = None
        self._kind = self._shown = Kind.SHUT
        self._motion = MouthMotion()
        self._paused: dict[Kind, float] = {}

    def copy(self) -> PersonViews:
        """The same views, none of them chosen yet."""
        other = PersonViews()
        other._kept = {kind: cache.copy() for kind, cache in self._kept.items()}
        return other

    def observe(self, picture: Picture, face: ObservedFace, neutral: F32, elapsed_s: float) -> None:
        """Keep this frame if it is a good view of its kind."""
        blur = self._motion.blur(face, elapsed_s)
        self._paused = {one: left - elapsed_s for one, left in self._paused.items() if left > elapsed_s}
        pose, opening = face.pose, face.opening
        if turned_away(pose.yaw, pose.pitch):
            return
        kind = kind_of(opening)
        if kind is None or kind in self._paused or (kind is Kind.SHUT and opening >= _LOOKS_SHUT):
            return
        cache = self._kept[kind]
        if not cache.wants(pose.yaw, pose.pitch, _fitting(kind, opening) + _SHARP - blur):
            return
        view = take_view(picture, face, neutral)
        if view is None:
            return
        # Only now it is known how sharp lips are, and how shut they look that are tracked as shut.
        quality, looks_it = _sharpness(view) - blur, True
        if kind is Kind.SHUT:
            quality += _fitting(kind, view.opening) - _bent(face, neutral)
            looks_it = view.opening < _LOOKS_SHUT
        else:
            quality += _fitting(kind, opening)
        if looks_it and cache.wants(pose.yaw, pose.pitch, quality):
            cache.add(Reference(view, pose.yaw, pose.pitch, quality))
        else:
            self._paused[kind] = _PAUSE_S

    def choose(self, pose: Pose, opening: float) -> View | None:
        """The view to draw an aperture from; None where there is none of its kind."""
        self._kind = kind = _switched(self._kind, opening)
        shown = next((one for one in _SERVING[kind] if len(self._kept[one])), kind)
        cache, current = self._kept[shown], self._current
        if shown is not self._shown or current is None:
            current = cache.nearest(pose.yaw, pose.pitch)
        else:
            nearest = cache.nearest(pose.yaw, pose.pitch, current)
            gain = 0.0
            if nearest is not None:
                fit = cache.fitness
                gain = fit(nearest, pose.yaw, pose.pitch) - fit(current, pose.yaw, pose.pitch)
            if gain > _OUTGROWN:
                current = nearest
        self._shown, self._current = shown, current
        return current.item if current is not None else None


def _bent(face: ObservedFace, neutral: F32) -> float:
    """What lips that are pressed or drawn aside lose as a view of shut ones: they would not be unbent."""
    outer = list(OUTER_LIPS)
    away = np.linalg.norm(face.shape[outer, :2] - neutral[outer, :2], axis=1).mean()
    return _BENT[0] * min(1.0, float(away) / _BENT[1])


def _sharpness(view: View) -> float:
    """What the detail of a view's lips adds to its quality: equal parts for equal ratios."""
    return _SHARP * float(np.clip(np.log(max(1e-6, view.detail) / _USUAL), -1, 1))


def _fitting(kind: Kind, opening: float) -> float:
    """The quality, .4 to .8 (shut ones from .56 on), of a still view of its kind that is so far open."""
    # The middle of its kind serves most: a wide mouth squeezed shut has too much lip.
    best, width = _BEST[kind]
    return 0.8 - 0.4 * min(1.0, abs(opening - best) / width)


def _switched(kind: Kind, opening: float) -> Kind:
    """The kind of view for an aperture, where the last frame's was this: it does not swing around an edge."""
    low, high = _SWITCH[Kind.SHUT]
    if opening <= (high if kind is Kind.SHUT else low):
        return Kind.SHUT
    low, high = _SWITCH[Kind.WIDE]
    return Kind.WIDE if opening > (low if kind is Kind.WIDE else high) else Kind.PARTED
