"""Views of the person that another view is drawn from: lips shut and lips open, by pose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retalk_models.face.geometry import ObservedFace, Pose
from retalk_models.picture import F32, U8, Box, Picture
from retalk_models.pose_cache import PoseCache, Reference
from retalk_models.talkin.mouth_crop import SIDE, MouthCrop, crop_of, cut_crop

SHUT_BELOW = 0.025
"""Aperture (canonical units) under which lips count as shut."""

_OPEN_ABOVE = 0.04
_TO_SHUT, _TO_OPEN = 0.015, 0.03
"""The target's apertures between which the kind of view in use stays what it is."""

_MOST_YAW, _MOST_PITCH = 0.6, 0.5
_OUTGROWN = 0.35
"""From how much better a view it takes the other's place while the kind stays."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One moment of the person round the mouth, at the frame's own resolution.

    picture: the part of the frame. crop: where the net's crop lies in it. small: that crop. points: (478, 2)
    in crop samples.
    """

    picture: Picture
    crop: MouthCrop
    small: U8
    points: F32


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
    moved = MouthCrop(matrix)
    return View(part, moved, cut_crop(part, moved), crop.to_crop(face.points[:, :2]))


def _part(picture: Picture, box: Box) -> Picture:
    planes: U8 = np.empty((box.height * 3 // 2, box.width), np.uint8)
    part = Picture(planes, box.width, box.height)
    half = (slice(box.top // 2, box.bottom // 2), slice(box.left // 2, box.right // 2))
    part.y[...] = picture.y[box.top : box.bottom, box.left : box.right]
    part.u[...] = picture.u[half]
    part.v[...] = picture.v[half]
    return part


class PersonViews:
    """One person's views. Not thread-safe."""

    def __init__(self) -> None:
        self._shut: PoseCache[View] = PoseCache(6)
        self._open: PoseCache[View] = PoseCache(6)
        self.reset()

    def reset(self) -> None:
        """Forget the person."""
        self._shut.clear()
        self._open.clear()
        self._current: Reference[View] | None = None
        self._showing_open = False
        self._last: tuple[F32, float] | None = None

    def observe(self, picture: Picture, face: ObservedFace, neutral: F32, elapsed_s: float) -> None:
        """Keep this frame if it is a good view of either kind."""
        centre = face.points[[13, 14, 78, 308], :2].mean(axis=0)
        last, self._last = self._last, (centre, face.opening)
        pose, opening = face.pose, face.opening
        if abs(pose.yaw) > _MOST_YAW or abs(pose.pitch) > _MOST_PITCH:
            return
        if SHUT_BELOW <= opening < _OPEN_ABOVE:
            return
        motion = 0.0
        if last is not None and elapsed_s > 0:
            drift = float(np.linalg.norm(centre - last[0])) / pose.scale / elapsed_s
            motion = max(drift / 1.5, abs(opening - last[1]) / elapsed_s / 2.5)
        cache = self._shut if opening < SHUT_BELOW else self._open
        # Halfway open serves most: a wide mouth squeezed shut has too much lip.
        fitting = 1.0 if opening < SHUT_BELOW else 1.0 - min(1.0, abs(opening - 0.11) / 0.12)
        quality = 0.4 + 0.4 * fitting - 0.4 * min(1.0, motion)
        if not cache.wants(pose.yaw, pose.pitch, quality):
            return
        view = take_view(picture, face, neutral)
        if view is not None:
            cache.add(Reference(view, pose.yaw, pose.pitch, quality))

    def choose(self, pose: Pose, opening: float) -> View | None:
        """The view to draw an aperture from; None where there is none of its kind."""
        showing_open = opening > (_TO_SHUT if self._showing_open else _TO_OPEN)
        cache = self._open if showing_open else self._shut
        current = self._current
        if showing_open != self._showing_open or current is None:
            current = cache.nearest(pose.yaw, pose.pitch)
        else:
            nearest = cache.nearest(pose.yaw, pose.pitch, current)
            gain = 0.0
            if nearest is not None:
                fit = cache.fitness
                gain = fit(nearest, pose.yaw, pose.pitch) - fit(current, pose.yaw, pose.pitch)
            if gain > _OUTGROWN:
                current = nearest
        self._showing_open, self._current = showing_open, current
        return current.item if current is not None else None
