"""Clips of aligned crops for tests: a template face that opens and shuts its mouth, drawn, not filmed."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from retalk_models.face.geometry import INNER_LIPS, OUTER_LIPS, Pose, fit_pose, template
from retalk_models.picture import U8
from retalk_models.talkin.crop_corpus import CROP_SIDE, CROP_SPAN, CropClip
from retalk_models.talkin.mouth_crop import crop_of
from tests.retalk_models import faces

LEVEL, STEP = 40, 2
"""Luma of a flat clip's first frame, and by how much each later one is lighter."""


def centred() -> Pose:
    """The pose of an upright face whose mouth lies in the middle of a kept crop."""
    away = Pose(np.eye(3, dtype=np.float32), np.zeros(3, np.float32), CROP_SIDE / CROP_SPAN)
    shift = crop_of(away, template(), CROP_SIDE, CROP_SPAN).matrix[:, 2]
    return faces.pose(scale=away.scale, x=-float(shift[0]), y=-float(shift[1]))


def _drawn(points: np.ndarray[tuple[int, ...], np.dtype[np.float32]], seed: int) -> U8:
    planes: U8 = np.full((CROP_SIDE * 3 // 2, CROP_SIDE), 128, np.uint8)
    luma = planes[:CROP_SIDE]
    luma[...] = 120 + 10 * seed
    for ring, level in ((OUTER_LIPS, 80), (INNER_LIPS, 30)):
        cv2.fillPoly(luma, [np.round(points[list(ring), :2]).astype(np.int32)], level)
    return planes


def clip(
    name: str = "x1", count: int = 60, flat: bool = False, seed: int = 0, numbers: Sequence[int] | None = None
) -> CropClip:
    """A clip of one frame a number; flat: without a face to see, each frame of a luma of its own."""
    at = centred()
    openings = np.asarray(0.05 + 0.05 * np.sin(np.arange(count) / 4), np.float32)
    points = np.stack([faces.points(float(one), at) for one in openings])
    if flat:
        planes: U8 = np.full((count, CROP_SIDE * 3 // 2, CROP_SIDE), 128, np.uint8)
        planes[:, :CROP_SIDE] = (LEVEL + STEP * np.arange(count))[:, None, None]
    else:
        planes = np.stack([_drawn(one, seed) for one in points])
    return CropClip(
        name,
        name,
        planes,
        points,
        tuple(fit_pose(one, template()) for one in points),
        np.array(numbers if numbers is not None else range(count), np.int64),
        openings,
        template(),
        80.0,
    )
