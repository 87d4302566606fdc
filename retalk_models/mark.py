"""The visible mark that says that what is seen was dubbed by a machine."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from retalk_models.picture import F32, Picture

TEXT = "AI dubbed"

_OPACITY = 0.62
_PLATE, _INK = 24.0, 235.0
"""Luma of the plate and of the letters on it."""


def apply_mark(picture: Picture) -> Picture:
    """A copy of the picture with the mark in its bottom left corner, sized with the picture.

    Where the picture is too small for letters that can be read the mark shrinks with it, and is a badge.
    Under 16 pixels either way it comes back as it is.
    """
    if min(picture.width, picture.height) < 16:
        return picture
    luma, cover = _badge(picture.width, picture.height)
    height, width = luma.shape
    margin = _margin(picture.width, picture.height)
    left, top = margin, (picture.height - margin - height) & ~1
    out = picture.copy()
    _mix(out.y[top : top + height, left : left + width], luma, cover)
    grey = np.full((height // 2, width // 2), 128.0, np.float32)
    thin = cover[::2, ::2]
    half = (slice(top // 2, top // 2 + height // 2), slice(left // 2, left // 2 + width // 2))
    _mix(out.u[half], grey, thin)
    _mix(out.v[half], grey, thin)
    return out


def _mix(plane: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], over: F32, cover: F32) -> None:
    plane[...] = np.rint(plane + cover * (over - plane)).astype(np.uint8)


def _margin(width: int, height: int) -> int:
    least = min(width, height)
    return min(max(4, round(0.02 * least)), least // 8) & ~1


@lru_cache(maxsize=16)
def _badge(width: int, height: int) -> tuple[F32, F32]:
    """Luma and cover of the badge for a picture size, both (h, w) with even sides; not to be written to."""
    text_height = max(7.0, 0.026 * min(width, height))
    scale = text_height / 22.0
    # Drawn large and shrunk: the stroke font has no anti-aliasing worth the name at these sizes.
    fine = 4
    thickness = max(1, round(2.1 * scale * fine))
    (text_width, cap), _ = cv2.getTextSize(TEXT, cv2.FONT_HERSHEY_SIMPLEX, scale * fine, thickness)
    pad = round(0.6 * cap)
    box_width, box_height = text_width + 2 * pad, cap + 2 * pad
    plate = np.zeros((box_height, box_width), np.uint8)
    radius = box_height // 3
    cv2.rectangle(plate, (radius, 0), (box_width - radius - 1, box_height - 1), 255, -1)
    cv2.rectangle(plate, (0, radius), (box_width - 1, box_height - radius - 1), 255, -1)
    for x in (radius, box_width - radius - 1):
        for y in (radius, box_height - radius - 1):
            cv2.circle(plate, (x, y), radius, 255, -1)
    ink = np.zeros_like(plate)
    cv2.putText(
        ink, TEXT, (pad, pad + cap), cv2.FONT_HERSHEY_SIMPLEX, scale * fine, 255, thickness, cv2.LINE_AA
    )
    margin = _margin(width, height)
    most = max(2, width - 2 * margin), max(2, height - 2 * margin)
    shrink = max(fine, box_width / most[0], box_height / most[1])
    size = (max(2, int(box_width / shrink)) & ~1, max(2, int(box_height / shrink)) & ~1)
    plate_small = cv2.resize(plate, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    ink_small = cv2.resize(ink, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    luma = _PLATE + (_INK - _PLATE) * ink_small
    cover = plate_small * (_OPACITY + (0.95 - _OPACITY) * ink_small)
    luma.flags.writeable = cover.flags.writeable = False
    return luma.astype(np.float32), cover.astype(np.float32)
