"""Samples of a tracked face's surface: the light on it, and whether what is seen there is the face."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from retalk_models.easing import settled
from retalk_models.face.geometry import INNER_LIPS, OUTER_LIPS
from retalk_models.face.tracker import TrackedFace
from retalk_models.picture import F32, U8, Picture

MOUTH_SKIN = (
    164,
    167,
    393,
    165,
    391,
    206,
    426,
    216,
    436,
    212,
    432,
    202,
    422,
    204,
    424,
    200,
    201,
    421,
    194,
    418,
    182,
    406,
)
"""Skin round the mouth: philtrum, beside the corners, under the lower lip."""

CHEEK_SKIN = (50, 280, 101, 330, 36, 266, 205, 425, 195, 5, 142, 371)
"""Skin near the mouth that bears no beard."""

UPPER_SKIN = (6, 197, 195, 5, 50, 280, 101, 330, 118, 347, 117, 346, 36, 266, 9, 151, 108, 337)
"""Skin that neither speech nor a hand at the mouth touches: nose bridge, upper cheeks, forehead."""

_WARM_UP = 15
"""Frames before the surface is known well enough to call anything an occlusion."""

_MEMORY_S = 2.0

_FLOOR = np.array([11, 3, 3], np.float32)
"""Y, U and V may differ by so much from their mean whatever their spread; luma is on skin of 100."""

_TURN = 0.3
"""How much wider the limits get per radian of turn away from where the face was learnt."""

_SPREAD_MOST = np.array([9, 2, 2], np.float32)
"""No point is allowed more spread than this: a lip that is now lit, now dark, is still a lip."""

_WORST = 3.0
"""No point counts for more: a microphone hides few points, but those are nothing like skin."""

_DOUBTFUL = 0.3
"""What looks less like itself than this is learnt more slowly: a hand is not to be taken for the face, yet
new light is in the end."""

_DOUBTED = 0.15
"""By how much."""

_SHADED = (33, 263, 159, 386, 2)
"""Outer corners and upper lids of the eyes, and the base of the nose: what lies between has the face's own
shadows."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One frame's surface.

    hidden: how unlike themselves lips and the skin round them look, 0..3: the mean over points of how far
    each is beyond half of what it may be off by; 0 while still learning, 0.5 is a hand.
    light: (4,) Y, U, V of the bare skin next to the mouth, and Y of the face's darkest spots.
    """

    hidden: float
    light: F32


def sample(face: TrackedFace, places: F32) -> F32:
    """(n, 3) Y, U and V at frame pixels (n, 2), a little blurred; clamped to the view."""
    view, box = face.view, face.view_box
    at = ((places - (box.left, box.top)) * (view.width / box.width)).astype(np.float32)
    luma = _sample_planes((view.y,), at, 3, 5)
    return np.concatenate([luma, _sample_planes((view.u, view.v), at / 2, 2, 3)], axis=1)


def _sample_planes(planes: Sequence[U8], at: F32, margin: int, blur: int) -> F32:
    """(n, planes) of planes of one shape; margin: what round the places is blurred, too."""
    height, width = planes[0].shape
    (low_x, low_y), (high_x, high_y) = at.min(axis=0).tolist(), at.max(axis=0).tolist()
    left, top = (
        min(max(math.floor(low) - margin, 0), side - 2) for low, side in ((low_x, width), (low_y, height))
    )
    right, bottom = (
        min(max(math.ceil(high) + margin + 1, first + 2), side)
        for high, first, side in ((high_x, left, width), (high_y, top, height))
    )
    size = right - left, bottom - top
    x, y = np.clip(np.rint(at).astype(int) - (left, top), 0, (size[0] - 1, size[1] - 1)).T
    soft = [cv2.blur(plane[top:bottom, left:right], (blur, blur))[y, x] for plane in planes]
    return np.asarray(np.stack(soft, axis=1), np.float32)


def mouth_light(face: TrackedFace) -> F32:
    """(4,) Y, U, V of the bare skin next to the mouth: the median, so that no shadow or highlight rules.

    And Y of the darkest spots between brows and upper lip: pupils, lashes and nostrils, which tell how
    dark this picture is where no light falls.
    """
    return _with_darkest(_middle(sample(face, face.points[list(CHEEK_SKIN), :2])), face)


def _with_darkest(light: F32, face: TrackedFace) -> F32:
    view, box = face.view, face.view_box
    at = (face.points[list(_SHADED), :2] - (box.left, box.top)) * (view.width / box.width)
    (left, top), (right, bottom) = np.floor(at.min(axis=0)).astype(int), np.ceil(at.max(axis=0)).astype(int)
    luma = view.y[max(0, top) : bottom + 1 : 2, max(0, left) : right + 1 : 2].reshape(-1)
    rank = len(luma) // 50
    darkest = float(np.partition(luma, rank)[rank]) if len(luma) else 16.0
    return np.append(light, np.float32(min(darkest, light[0])))


def _middle(seen: F32) -> F32:
    """(3,) the median of (n, 3), n even: np.median takes ten times as long."""
    half = len(seen) // 2
    return np.asarray(np.sort(seen, axis=0)[half - 1 : half + 1].mean(axis=0), np.float32)


class SurfaceMemory:
    """Remembers how lips and the skin round them look, and says how far that is hidden now."""

    def __init__(self) -> None:
        self._outer, self._inner = list(OUTER_LIPS), list(INNER_LIPS)
        self._skin = [*MOUTH_SKIN, *UPPER_SKIN, *CHEEK_SKIN]
        self._around = len(OUTER_LIPS) + len(MOUTH_SKIN)
        self.reset()

    def reset(self) -> None:
        """Forget the face."""
        self._mean: F32 | None = None
        self._spread: F32 | None = None
        self._yaw = 0.0
        self._frames = 0

    def look(self, face: TrackedFace, yaw: float, elapsed_s: float) -> Look:
        """Take in one frame. yaw: radians; a turned face is lit another way."""
        points = face.points[:, :2]
        lips = 0.6 * points[self._outer] + 0.4 * points[self._inner]
        seen = sample(face, np.concatenate([lips, points[self._skin]]))
        mouth, upper, cheeks = np.split(seen, (self._around, self._around + len(UPPER_SKIN)))
        light = _with_darkest(_middle(cheeks), face)
        return Look(self._hidden(mouth, _middle(upper), yaw, elapsed_s), light)

    def _hidden(self, seen: F32, light: F32, yaw: float, elapsed_s: float) -> float:
        relative = seen - light
        relative[:, 0] *= 100 / max(60.0, float(light[0]))
        if self._mean is None or self._spread is None:
            self._mean, self._spread, self._yaw = relative, np.zeros_like(relative), yaw
            self._frames = 1
            return 0.0
        away = np.abs(relative - self._mean)
        limit = 2.5 * np.minimum(self._spread, _SPREAD_MOST) + _FLOOR
        limit = limit * np.float32(1 + _TURN * abs(yaw - self._yaw))
        known = self._frames > _WARM_UP
        hidden = float(np.clip((away / limit).max(axis=1) - 0.5, 0, _WORST).mean()) if known else 0.0
        rate = settled(elapsed_s, _MEMORY_S) if known else 1 / (self._frames + 1)
        rate *= _DOUBTED if hidden > _DOUBTFUL else 1.0
        self._frames += 1
        self._yaw += rate * (yaw - self._yaw)
        self._mean = np.asarray(self._mean + rate * (relative - self._mean), np.float32)
        self._spread = np.asarray(self._spread + rate * (np.minimum(away, limit) - self._spread), np.float32)
        return hidden


class CutDetector:
    """Finds where one shot ends and another begins, from thumbnails."""

    def __init__(self) -> None:
        self._last: F32 | None = None

    def __call__(self, picture: Picture) -> bool:
        """Whether this picture belongs to another shot than the one before."""
        stride = max(1, min(picture.width, picture.height) // 96)
        thumb = cv2.resize(picture.y[::stride, ::stride], (32, 32), interpolation=cv2.INTER_AREA).astype(
            np.float32
        )
        last, self._last = self._last, thumb
        if last is None:
            return False
        change = float(np.abs(thumb - last).mean())
        if change < 12:
            return False
        a, b = thumb - thumb.mean(), last - last.mean()
        likeness = float((a * b).sum() / (np.sqrt((a * a).sum() * (b * b).sum()) + 1e-6))
        return likeness < 0.55
