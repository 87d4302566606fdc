"""Watches the source: tracks the face, judges it, factorises it, and carries it over frames that were not
tracked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np

from retalk_models.easing import settled
from retalk_models.engine import FaceState
from retalk_models.face.align import CutDetector, SurfaceMemory
from retalk_models.face.geometry import ObservedFace, Pose
from retalk_models.face.presence import Presence
from retalk_models.face.tracker import FaceTracker, TrackedFace
from retalk_models.picture import F32, Picture

_FORGET_S = 1.0
"""A face that was gone for longer may be another person's."""

_LIGHT_S = 0.2
"""Time constant of the light measured on the skin: exposure changes slowly, samples jitter."""

_PATCH = 64
"""Side in pixels of the luma patch by which a face is followed without tracking."""


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """What is known of the face in one frame.

    strength: 0..1, how much of a dub may show. face, light: None where there is nothing to draw on;
    light is (4,) mean Y, U, V of the skin round the mouth and Y of the face's darkest spots.
    tracked: whether the face was measured in this frame and is good enough to learn from.
    """

    state: FaceState
    strength: float
    face: ObservedFace | None
    light: F32 | None
    tracked: bool


class FaceObserver(Protocol):
    """Factorises tracked points into pose and shape, one person's at a time."""

    def observe(self, points: F32, elapsed_s: float) -> ObservedFace:
        """(478, 3) pixels, elapsed_s after the ones before. Raises ValueError for what no pose fits."""
        ...

    def reset(self) -> None:
        """Forget the person."""
        ...


class FaceWatch:
    """One session's eyes. Feeds the person's geometry and forgets the person at a cut.

    forgotten: called then, so that what else is kept of the person goes too. Who was not seen here yet is not
    forgotten: what is known of them was learnt elsewhere, for when they come. awaited: see Presence.
    """

    def __init__(self, geometry: FaceObserver, forgotten: Callable[[], None], awaited: bool = False) -> None:
        self._geometry, self._forgotten = geometry, forgotten
        self._tracker = FaceTracker()
        self._cut = CutDetector()
        self._surface = SurfaceMemory()
        self._presence = Presence(awaited)
        self._unseen_s = 0.0
        self._met = False
        self._last: Sighting | None = None
        self._picture: Picture | None = None

    def look(self, picture: Picture, elapsed_s: float) -> Sighting:
        """Track the face in the next picture, elapsed_s after the one before."""
        new_face = self._cut(picture)
        if self._picture is not None and (picture.width, picture.height) != (
            self._picture.width,
            self._picture.height,
        ):
            new_face = True
        if new_face:
            self._tracker.forget()
        tracked = self._tracker.track(picture)
        if tracked is not None and self._presence.jumped(tracked):
            new_face = True
        self._unseen_s = 0.0 if tracked is not None and not new_face else self._unseen_s + elapsed_s
        if new_face or self._unseen_s > _FORGET_S:
            self._forget_person()
        face = self._observe(tracked, elapsed_s)
        hidden = 0.0
        light = None
        if tracked is not None and face is not None:
            look = self._surface.look(tracked, face.pose.yaw, elapsed_s)
            hidden, light = look.hidden, self._steady_light(look.light, elapsed_s)
        reading = self._presence.update(
            tracked if face is not None else None,
            face.pose if face is not None else None,
            hidden,
            (picture.width, picture.height),
            elapsed_s,
            new_face,
        )
        good = face is not None and reading.state is FaceState.TRACKED
        if face is None and reading.strength > 0:
            # Gone without a cut: what is left of the fade is drawn where the face would be now.
            face, light = self._carried(picture)
        sighting = Sighting(reading.state, reading.strength, face, light, good)
        self._last, self._picture = sighting, picture
        return sighting

    def follow(self, picture: Picture) -> tuple[Sighting, F32] | None:
        """The last sighting carried to the next picture without tracking, and its shift (2,) in pixels.

        None where there is nothing to carry: the picture must then be looked at.
        """
        last = self._last
        if last is None or last.state is not FaceState.TRACKED or last.face is None or self._picture is None:
            return None
        if (picture.width, picture.height) != (self._picture.width, self._picture.height) or self._cut(
            picture
        ):
            return None
        shift = face_shift(self._picture, picture, last.face.points)
        sighting = replace(last, face=_shifted(last.face, shift), tracked=False)
        self._last, self._picture = sighting, picture
        return sighting, shift

    def skip(self) -> FaceState:
        """A frame that nobody looks at; the dub fades in again afterwards."""
        self._presence.drop()
        self._picture = None
        self._last = None
        return self._presence.state

    def close(self) -> None:
        """Idempotent."""
        self._tracker.close()
        self._last = self._picture = None

    def _observe(self, tracked: TrackedFace | None, elapsed_s: float) -> ObservedFace | None:
        if tracked is None:
            return None
        try:
            face = self._geometry.observe(tracked.points, elapsed_s)
        except (ValueError, np.linalg.LinAlgError):
            # Points that no pose fits are no face.
            return None
        self._met = True
        return face

    def _forget_person(self) -> None:
        if self._met:
            self._met = False
            self._geometry.reset()
            self._forgotten()
        self._surface.reset()
        self._last = None
        self._unseen_s = 0.0

    def _steady_light(self, light: F32, elapsed_s: float) -> F32:
        last = self._last.light if self._last is not None else None
        if last is None:
            return light
        return np.asarray(last + settled(elapsed_s, _LIGHT_S) * (light - last), np.float32)

    def _carried(self, picture: Picture) -> tuple[ObservedFace | None, F32 | None]:
        last = self._last
        if last is None or last.face is None or self._picture is None:
            return None, None
        return _shifted(last.face, face_shift(self._picture, picture, last.face.points)), last.light


def _shifted(face: ObservedFace, shift: F32) -> ObservedFace:
    move = np.array([shift[0], shift[1], 0], np.float32)
    pose = Pose(face.pose.rotation, face.pose.translation + move, face.pose.scale)
    return replace(face, points=face.points + move, pose=pose)


def face_shift(before: Picture, after: Picture, points: F32) -> F32:
    """(2,) how far the face at these points moved between two pictures of one size, pixels; 0 where
    unclear."""
    low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    left, top = (max(0, int(v)) for v in low)
    right, bottom = min(before.width, int(high[0]) + 1), min(before.height, int(high[1]) + 1)
    if right - left < 16 or bottom - top < 16:
        return np.zeros(2, np.float32)
    patches = [
        cv2.resize(one.y[top:bottom, left:right], (_PATCH, _PATCH), interpolation=cv2.INTER_AREA).astype(
            np.float32
        )
        for one in (before, after)
    ]
    window = cv2.createHanningWindow((_PATCH, _PATCH), cv2.CV_32F)
    (x, y), response = cv2.phaseCorrelate(patches[0], patches[1], window)
    if response < 0.1 or abs(x) > _PATCH / 4 or abs(y) > _PATCH / 4:
        return np.zeros(2, np.float32)
    return np.array([x * (right - left) / _PATCH, y * (bottom - top) / _PATCH], np.float32)
