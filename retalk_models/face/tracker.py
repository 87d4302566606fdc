"""Face Mesh on live pictures: 478 points per frame at a cost that does not grow with the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from retalk_models.face.geometry import INNER_LIPS, LIP_BODIES, OUTER_LIPS, POINTS, lower_face_weights
from retalk_models.picture import F32, U8, Box, Picture

_SEARCH_SIDE = 640
"""Longest side of the picture in which faces are looked for, pixels."""

_TRACK_SIDE = 320
"""Side of the crop in which a known face is tracked; Face Mesh itself looks at 192 pixels of about 3/4 of
it."""

_CROP_SCALE = 2.0
"""Side of the tracking crop relative to the face's longer side."""

_STRAY, _LOOKS = 0.08, 3
"""A face farther from where it was expected than so much of its size is looked at again, so many looks in
all."""

_DRIFT = 0.10
"""The crop is seated anew when the face has moved or grown by so much of its size."""

_LOST_BEFORE_SEARCH = 2
"""Frames without a face in the crop before the whole picture is searched again."""

_TILE = 0.6
"""While there is no face, every other frame is searched in one of overlapping tiles, so large as this share
of the picture's shorter side: a face that is a tenth of a tall picture is too small to be found in the
whole."""


@dataclass(frozen=True, slots=True, eq=False)
class TrackedFace:
    """points: (478, 3) float32 pixels of the full frame (centre of the first pixel at 0), z on the scale of
    x.

    view: the small picture that was looked at. view_box: the part of the frame it shows.
    """

    points: F32
    view: Picture
    view_box: Box

    @property
    def centre(self) -> F32:
        """(2,) pixels, the middle of the points' bounding box."""
        return _middle(self.points)

    @property
    def size(self) -> float:
        """The longer side of the points' bounding box, pixels."""
        return float(np.ptp(self.points[:, :2], axis=0).max())


class FaceTracker:
    """Follows the largest face. One per session, used by one thread at a time; close() gives everything back.

    The same pictures give the same points, however they are grouped.
    """

    def __init__(self) -> None:
        from mediapipe.python.solutions.face_detection import FaceDetection
        from mediapipe.python.solutions.face_mesh import FaceMesh

        self._mesh: Any = FaceMesh(
            static_image_mode=False,
            max_num_faces=1,
            refine_landmarks=True,
            min_detection_confidence=0.5,
            min_tracking_confidence=0.5,
        )
        self._finder: Any = FaceDetection(model_selection=1, min_detection_confidence=0.5)
        self._crop: Box | None = None
        self._seen: F32 | None = None
        self._lost = 0
        self._searches = 0
        self._frame_size = (0, 0)

    def track(self, picture: Picture) -> TrackedFace | None:
        """The face in the next picture, or None."""
        if (picture.width, picture.height) != self._frame_size:
            self._frame_size = (picture.width, picture.height)
            self._crop, self._lost, self._searches = None, 0, 0
        if self._crop is None:
            self._crop = self._search(picture, self._place_to_search(self._searches))
            self._searches += 1
            if self._crop is None:
                return None
        face = self._look(picture, self._crop)
        if face is None:
            self._lost += 1
            if self._lost >= _LOST_BEFORE_SEARCH:
                self._crop, self._lost, self._searches = None, 0, 0
            return None
        self._lost = 0
        self._reseat(face)
        return face

    def forget(self) -> None:
        """Search the whole of the next picture, as after a cut."""
        self._crop, self._lost, self._searches = None, 0, 0
        # Face Mesh would look for the next face where the last one was, and find one there.
        self._mesh.reset()
        self._seen = None

    def close(self) -> None:
        """Give the landmarker's graphs and threads back. Idempotent."""
        for graph in (self._mesh, self._finder):
            if graph is not None:
                graph.close()
        self._mesh = self._finder = None

    def _place_to_search(self, number: int) -> Box:
        """The part of the frame for the search of this number since the face was lost."""
        width, height = (side + side % 2 for side in self._frame_size)
        side = int(_TILE * min(width, height)) & ~1
        if number % 2 == 0 or side < 64:
            return Box(0, 0, width, height)
        across, down = (1 + -(-(full - side) * 4 // (3 * side)) for full in (width, height))
        column, row = (number // 2) % across, (number // 2) // across % down
        left = (width - side) * column // max(1, across - 1) & ~1
        top = (height - side) * row // max(1, down - 1) & ~1
        return Box(left, top, left + side, top + side)

    def _search(self, picture: Picture, place: Box) -> Box | None:
        view = shrink(picture, place, _SEARCH_SIDE)
        found = self._finder.process(view.rgb()).detections
        if not found:
            return None
        boxes = [one.location_data.relative_bounding_box for one in found]
        largest = max(boxes, key=lambda box: box.width * place.width * box.height * place.height)
        width, height = largest.width * place.width, largest.height * place.height
        centre_x = place.left + (largest.xmin + largest.width / 2) * place.width
        # The detector's box ends at the brows; the points reach up the forehead.
        centre_y = place.top + (largest.ymin + largest.height / 2) * place.height - 0.1 * height
        return self._seat(centre_x, centre_y, 1.25 * max(width, height))

    def _look(self, picture: Picture, crop: Box) -> TrackedFace | None:
        view = shrink(picture, crop, _TRACK_SIDE)
        rgb = view.rgb()
        relative = self._landmarks(rgb)
        # Face Mesh starts from where the face was when it last looked, in the crop of then. Points of a face
        # that has moved far from there are poor; another look starts from where it is now.
        for _ in range(_LOOKS - 1):
            if relative is None or not self._strayed(relative):
                break
            relative = self._landmarks(rgb)
        if relative is None:
            self._seen = None
            return None
        self._seen = _middle(relative)
        points = relative * np.array([crop.width, crop.height, crop.width], np.float32)
        points += np.array([crop.left - 0.5, crop.top - 0.5, 0], np.float32)
        return TrackedFace(points, view, crop)

    def _strayed(self, relative: F32) -> bool:
        last, self._seen = self._seen, _middle(relative)
        size = float(np.ptp(relative[:, :2], axis=0).max())
        return last is not None and float(np.abs(self._seen - last).max()) > _STRAY * size

    def _landmarks(self, rgb: U8) -> F32 | None:
        """(478, 3) relative to the view's sides."""
        found = self._mesh.process(rgb).multi_face_landmarks
        if not found:
            return None
        places = landmark_places(found[0])
        return places if np.isfinite(places).all() else None

    def _reseat(self, face: TrackedFace) -> None:
        crop = self._crop
        if crop is None:
            return
        wanted = self._seat(float(face.centre[0]), float(face.centre[1]), face.size)
        shift = max(
            abs(wanted.left + wanted.right - crop.left - crop.right) / 2,
            abs(wanted.top + wanted.bottom - crop.top - crop.bottom) / 2,
            abs(wanted.width - crop.width) / 2,
            abs(wanted.height - crop.height) / 2,
        )
        if shift > _DRIFT * face.size:
            self._crop = wanted

    def _seat(self, centre_x: float, centre_y: float, face_size: float) -> Box:
        """The even-aligned crop for a face, inside the frame; on a grid, so that a still face keeps its
        crop."""
        width, height = self._frame_size
        width, height = width + width % 2, height + height % 2
        half = max(32.0, _CROP_SCALE * face_size / 2)
        left, top = max(0, int(centre_x - half)) & ~1, max(0, int(centre_y - half)) & ~1
        right = min(width, (int(centre_x + half) + 1) & ~1)
        bottom = min(height, (int(centre_y + half) + 1) & ~1)
        if right - left < 16 or bottom - top < 16:
            return Box(0, 0, width, height)
        return Box(left, top, right, bottom)


_WIRE = np.dtype({"names": ["x", "y", "z"], "formats": ["<f4"] * 3, "offsets": [3, 8, 13], "itemsize": 17})
"""A landmark of x, y and z alone as a serialised list holds it: tag, length, then tag and number by turns."""


def landmark_places(found: Any) -> F32:
    """(478, 3) of a NormalizedLandmarkList of 478."""
    wire = found.SerializeToString()
    if len(wire) == POINTS * _WIRE.itemsize:
        # A thousand and more attributes of the list's own would take a hundred times as long.
        marks = np.frombuffer(wire, _WIRE)
        return np.asarray(np.stack([marks["x"], marks["y"], marks["z"]], axis=1), np.float32)
    flat = np.fromiter((v for p in found.landmark for v in (p.x, p.y, p.z)), np.float32, 3 * POINTS)
    return flat.reshape(POINTS, 3)


def _middle(points: F32) -> F32:
    return np.asarray((points[:, :2].min(axis=0) + points[:, :2].max(axis=0)) / 2, np.float32)


def shrink(picture: Picture, box: Box, side: int) -> Picture:
    """An even-aligned box of the picture, at most `side` pixels on its longer side."""
    scale = min(1.0, side / max(box.width, box.height))
    width = max(2, round(box.width * scale / 2) * 2)
    height = max(2, round(box.height * scale / 2) * 2)
    planes = np.empty((height * 3 // 2, width), np.uint8)
    small = Picture(planes, width, height)
    for goal, part in zip((small.y, small.u, small.v), picture.part(box), strict=True):
        # Halving is forty times faster than any other reduction by area, and the same where nothing is odd.
        while all(
            length % 2 == 0 and length >= 2 * least
            for length, least in zip(part.shape, goal.shape, strict=True)
        ):
            part = cv2.resize(part, (part.shape[1] // 2, part.shape[0] // 2), interpolation=cv2.INTER_AREA)
        # Where less is left four samples do: points move by half a thousandth of the face on average.
        near = all(length < 2 * least for length, least in zip(part.shape, goal.shape, strict=True))
        how = cv2.INTER_LINEAR if near else cv2.INTER_AREA
        goal[...] = cv2.resize(part, (goal.shape[1], goal.shape[0]), interpolation=how)
    return small


class OneEuro:
    """The one-euro filter (Casiez et al. 2012) on an array: steady at rest, little lag in motion.

    cutoff: Hz at rest. beta: how much of the speed (units per second) is added to the cutoff.
    """

    def __init__(self, cutoff: F32 | float, beta: F32 | float, speed_cutoff: float = 1.0) -> None:
        self._cutoff, self._beta, self._speed_cutoff = cutoff, beta, speed_cutoff
        self._value: F32 | None = None
        self._speed: F32 | None = None

    def reset(self) -> None:
        self._value = self._speed = None

    def __call__(self, value: F32, elapsed_s: float) -> F32:
        """The filtered value, elapsed_s after the last one."""
        if self._value is None or self._speed is None or elapsed_s <= 0:
            self._value, self._speed = value.copy(), np.zeros_like(value)
            return value
        speed = (value - self._value) / elapsed_s
        self._speed = self._speed + _share(self._speed_cutoff, elapsed_s) * (speed - self._speed)
        # Points move together: the norm keeps x and y of one point at one cutoff.
        pace = np.linalg.norm(self._speed, axis=-1, keepdims=True)
        share = _share(self._cutoff + self._beta * pace, elapsed_s)
        self._value = np.asarray(self._value + share * (value - self._value), np.float32)
        return self._value


def _share(cutoff: F32 | float, elapsed_s: float) -> F32:
    return np.asarray(1 / (1 + 1 / (2 * np.pi * np.maximum(cutoff, 1e-3) * elapsed_s)), np.float32)


class ShapeFilter:
    """Steadies canonical shapes: lips fast, the rest slow. The pose is not filtered, so nothing trails the
    head.

    Lips that trail by a fraction of a frame let the source's own motion through into the dub, so theirs is
    no more filter than keeps still lips still.
    """

    def __init__(self) -> None:
        speech = lower_face_weights()[:, None]
        cutoff, beta = 1.5 + 3.5 * speech, 6.0 + 74.0 * speech
        lips = [*OUTER_LIPS, *LIP_BODIES, *INNER_LIPS]
        cutoff[lips], beta[lips] = 8.0, 160.0
        self._filter = OneEuro(cutoff, beta, speed_cutoff=10.0)

    def reset(self) -> None:
        self._filter.reset()

    def __call__(self, shape: F32, elapsed_s: float) -> F32:
        """(478, 3) canonical in, filtered out."""
        return self._filter(shape, elapsed_s)
