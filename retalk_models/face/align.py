"""Samples of a tracked face's surface: the light on it, and whether what is seen there is the face."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from retalk_models.face.geometry import INNER_LIPS, OUTER_LIPS
from retalk_models.face.tracker import TrackedFace
from retalk_models.picture import F32, Picture

MOUTH_SKIN = (164, 167, 393, 165, 391, 206, 426, 216, 436, 212, 432, 202, 422, 204, 424, 200, 201, 421, 194, 418, 182, 406)
"""Skin round the mouth: philtrum, beside the corners, under the lower lip."""

CHEEK_SKIN = (50, 280, 101, 330, 36, 266, 205, 425, 195, 5, 142, 371)
"""Skin near the mouth that bears no beard."""

UPPER_SKIN = (6, 197, 195, 5, 50, 280, 101, 330, 118, 347, 117, 346, 36, 266, 9, 151, 108, 337)
"""Skin that neither speech nor a hand at the mouth touches: nose bridge, upper cheeks, forehead."""

_WARM_UP = 15
"""Frames before the surface is known well enough to call anything an occlusion."""

_MEMORY_S = 2.0


def surface(face: TrackedFace, indices: NDArray[np.intp]) -> F32:
    """(n, 3) Y, U and V at the face's points, a little blurred; clamped to the view."""
    return sample(face, face.points[indices, :2])


def sample(face: TrackedFace, places: F32) -> F32:
    """(n, 3) Y, U and V at frame pixels (n, 2), a little blurred; clamped to the view."""
    view, box = face.view, face.view_box
    scale = view.width / box.width
    at = ((places - (box.left, box.top)) * scale).astype(np.float32)
    low, high = np.floor(at.min(axis=0)).astype(int) - 3, np.ceil(at.max(axis=0)).astype(int) + 4
    return np.stack(
        [
            _sample_plane(view.y, at, low, high, 5),
            _sample_plane(view.u, at / 2, low // 2, high // 2 + 1, 3),
            _sample_plane(view.v, at / 2, low // 2, high // 2 + 1, 3),
        ],
        axis=-1,
    )


def _sample_plane(plane: NDArray[np.uint8], at: F32, low: NDArray[np.int_], high: NDArray[np.int_], blur: int) -> F32:
    height, width = plane.shape
    left, top = (int(np.clip(low[0], 0, width - 2)), int(np.clip(low[1], 0, height - 2)))
    right, bottom = int(np.clip(high[0], left + 2, width)), int(np.clip(high[1], top + 2, height))
    soft = cv2.blur(plane[top:bottom, left:right], (blur, blur))
    x = np.clip(np.rint(at[:, 0]).astype(int) - left, 0, right - left - 1)
    y = np.clip(np.rint(at[:, 1]).astype(int) - top, 0, bottom - top - 1)
    return soft[y, x].astype(np.float32)


def mouth_light(face: TrackedFace) -> F32:
    """(3,) Y, U, V of the bare skin next to the mouth: the median, so that no shadow or highlight rules."""
    return np.asarray(np.median(surface(face, np.array(CHEEK_SKIN, np.intp)), axis=0), np.float32)


class SurfaceMemory:
    """Remembers how lips and the skin round them look, and says how much of that is hidden now."""

    def __init__(self) -> None:
        self._lips_outer, self._lips_inner = list(OUTER_LIPS), list(INNER_LIPS)
        self._skin = np.array(MOUTH_SKIN, np.intp)
        self._upper = np.array(UPPER_SKIN, np.intp)
        self.reset()

    def reset(self) -> None:
        """Forget the face."""
        self._mean: F32 | None = None
        self._spread: F32 | None = None
        self._frames = 0

    def hidden(self, face: TrackedFace, elapsed_s: float) -> float:
        """The share of the mouth's surroundings (0..1) that does not look as it did; 0 while still learning."""
        points = face.points[:, :2]
        lips = 0.6 * points[self._lips_outer] + 0.4 * points[self._lips_inner]
        seen = sample(face, np.concatenate([lips, points[self._skin]]))
        light = np.median(surface(face, self._upper), axis=0)
        relative = seen - light
        relative[:, 0] *= 100 / max(24.0, float(light[0]))
        if self._mean is None or self._spread is None:
            self._mean, self._spread = relative, np.zeros_like(relative)
            self._frames = 1
            return 0.0
        away = np.abs(relative - self._mean)
        limit = 4 * self._spread + np.array([16, 4, 4], np.float32)
        share = float((away > limit).any(axis=1).mean()) if self._frames > _WARM_UP else 0.0
        # What looks wrong is learnt slowly, so that a hand is not taken for the face, yet new light is in the end.
        rate = 1 - np.exp(-elapsed_s / _MEMORY_S) if self._frames > _WARM_UP else 1 / (self._frames + 1)
        rate *= 0.15 if share > 0.3 else 1.0
        self._frames += 1
        self._mean = np.asarray(self._mean + rate * (relative - self._mean), np.float32)
        self._spread = np.asarray(self._spread + rate * (np.minimum(away, limit) - self._spread), np.float32)
        return share


class CutDetector:
    """Finds where one shot ends and another begins, from thumbnails."""

    def __init__(self) -> None:
        self._last: F32 | None = None

    def __call__(self, picture: Picture) -> bool:
        """Whether this picture belongs to another shot than the one before."""
        stride = max(1, min(picture.width, picture.height) // 96)
        thumb = cv2.resize(picture.y[::stride, ::stride], (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
        last, self._last = self._last, thumb
        if last is None:
            return False
        change = float(np.abs(thumb - last).mean())
        if change < 12:
            return False
        a, b = thumb - thumb.mean(), last - last.mean()
        likeness = float((a * b).sum() / (np.sqrt((a * a).sum() * (b * b).sum()) + 1e-6))
        return likeness < 0.55
