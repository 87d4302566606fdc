"""Where in a frame the face is cut out for L-Net and E-Net, and which part of what they draw is shown."""

from __future__ import annotations

import cv2
import numpy as np

from retalk_models.easing import settled
from retalk_models.face.tracker import OneEuro
from retalk_models.picture import F32, U8, Box
from retalk_models.videoretalking.geometry import F64
from retalk_models.videoretalking.landmarks import CHIN, DROPS, JAW, NOSE_BRIDGE_END

_BELOW = 0.08
"""Room under the chin over the face's height: where a mouth that opens wider than the source's needs it."""

_SIZE_S = 0.6
"""Time constant of the box's size: a jaw that drops must not zoom the face."""

_LEAST = 32
"""Side in pixels below which a box is no use."""

MASK_SIDE = 96
"""Side of a mask in cells; four pixels of the nets' picture each."""

_LARGER = 1.08
_FEATHER, _FEATHER_BELOW = 5, 2
"""How much larger than the landmarks' outline the shown part is, and its soft border in cells to either side
of its middle; and the one under the chin."""


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
        self._size = self._size + np.float32(settled(elapsed_s, _SIZE_S)) * (size - self._size)
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

    Under the chin it reaches down to the box's lower border, so that a mouth that opens wider than the
    source's is shown whole. landmarks: (68, 2) pixels.
    """
    jaw = landmarks[JAW]
    outline = np.concatenate([jaw[1:-1], landmarks[[NOSE_BRIDGE_END]]])
    middle = outline.mean(axis=0)
    room = max(0.0, box.bottom - 0.5 - float(jaw[CHIN, 1]))
    # Farther than there is room for: a tilted chin's corners would be rounded off by the border.
    dropped = jaw[DROPS] + (0.0, 1.5 * room)
    outline = np.concatenate([middle + _LARGER * (outline - middle), dropped])
    cells = (outline - (box.left - 0.5, box.top - 0.5)) * MASK_SIDE / (box.width, box.height) - 0.5
    hull = cv2.convexHull(np.round(cells * 16).astype(np.int32))
    inside = np.zeros((MASK_SIDE, MASK_SIDE), np.uint8)
    cv2.fillConvexPoly(inside, hull, 1, cv2.LINE_8, 4)
    soft, narrow = _softened(inside, _FEATHER), _softened(inside, _FEATHER_BELOW)
    # The narrow border only where there is no room for more: from the middle down, wholly at the chin.
    top, bottom = ((y - box.top + 0.5) * MASK_SIDE / box.height for y in (middle[1], jaw[CHIN, 1]))
    share = np.clip((np.arange(MASK_SIDE) + 0.5 - top) / max(bottom - top, 1.0), 0, 1)[:, None]
    return np.asarray(soft + share * (narrow - soft), np.float32)


def _softened(inside: U8, down: int) -> F32:
    """0 or 1 to 0..1: a border of _FEATHER cells to either side of its middle across and of `down` below."""
    across, down = 2 * _FEATHER + 1, 2 * down + 1
    # One cell more than the blur reaches back, so that the outermost cells are exactly 0.
    core = cv2.erode(
        inside, np.ones((down + 2, across + 2), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    return np.asarray(
        cv2.blur(core.astype(np.float32), (across, down), borderType=cv2.BORDER_CONSTANT), np.float32
    )
