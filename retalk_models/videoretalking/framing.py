"""Where in a frame the face is cut out for L-Net and E-Net, and which part of what they draw is shown."""

from __future__ import annotations

import cv2
import numpy as np

from retalk_models.face.tracker import OneEuro
from retalk_models.picture import F32, Box
from retalk_models.videoretalking.geometry import F64
from retalk_models.videoretalking.landmarks import JAW, NOSE_BRIDGE_END

_BELOW = 0.08
"""Room under the chin over the face's height: where a mouth that opens wider than the source's needs it."""

_SIZE_S = 0.6
"""Time constant of the box's size: a jaw that drops must not zoom the face."""

_LEAST = 32
"""Side in pixels below which a box is no use."""

MASK_SIDE = 96
"""Side of a mask in cells; four pixels of the nets' picture each."""

_LARGER = 1.08
_FEATHER = 5
"""How much larger than the landmarks' outline the shown part is, and its soft border in cells."""


class BoxTrack:
    """Steadies the face's box by the past alone: its centre fast, its size slowly."""

    def __init__(self) -> None:
        self._centre = OneEuro(2.5, 25.0)
        self.reset()

    def reset(self) -> None:
        self._centre.reset()
        self._unit = 0.0
        self._size: F32 | None = None

    def __call__(self, points: F32, frame_size: tuple[int, int], elapsed_s: float) -> Box | None:
        """An even-aligned box inside a frame of that (even) size; None where nothing useful is inside.

        points: (478, 3) pixels.
        """
        low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
        high[1] += _BELOW * (high[1] - low[1])
        size = high - low
        if self._size is None:
            self._size, self._unit = size, float(size.max())
        self._size = self._size + np.float32(1 - np.exp(-max(0.0, elapsed_s) / _SIZE_S)) * (size - self._size)
        # In units of the face, so that a near and a far one are steadied alike.
        unit = np.float32(max(self._unit, 1.0))
        centre = self._centre(np.asarray((low + high) / 2 / unit, np.float32), elapsed_s) * unit
        return _even_box(centre - self._size / 2, centre + self._size / 2, frame_size)


def _even_box(low: F32, high: F32, frame_size: tuple[int, int]) -> Box | None:
    left, top = (max(0, round(float(value) / 2) * 2) for value in low)
    right, bottom = (
        min(most, round(float(value) / 2) * 2) for value, most in zip(high, frame_size, strict=True)
    )
    if right - left < _LEAST or bottom - top < _LEAST:
        return None
    return Box(left, top, right, bottom)


def shown_part(landmarks: F64, box: Box) -> F32:
    """(MASK_SIDE, MASK_SIDE) of the box: 1 inside the lower face, softly 0 at its outline and the border.

    landmarks: (68, 2) pixels.
    """
    outline = np.concatenate([landmarks[JAW][1:-1], landmarks[[NOSE_BRIDGE_END]]])
    middle = outline.mean(axis=0)
    outline = middle + _LARGER * (outline - middle)
    cells = (outline - (box.left - 0.5, box.top - 0.5)) * MASK_SIDE / (box.width, box.height) - 0.5
    hull = cv2.convexHull(np.round(cells * 16).astype(np.int32))
    inside = np.zeros((MASK_SIDE, MASK_SIDE), np.uint8)
    cv2.fillConvexPoly(inside, hull, 1, cv2.LINE_8, 4)
    size = 2 * _FEATHER + 1
    # One cell more than the blur reaches back, so that the outermost cells are exactly 0.
    core = cv2.erode(
        inside, np.ones((size + 2, size + 2), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    return np.asarray(
        cv2.blur(core.astype(np.float32), (size, size), borderType=cv2.BORDER_CONSTANT), np.float32
    )
