"""The 68 landmarks that the nets' geometry is stated in (iBUG 300-W), read off Face Mesh's 478 points."""

from __future__ import annotations

import numpy as np

from retalk_models.picture import F32
from retalk_models.videoretalking.geometry import F64

_JAW = (127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 288, 361, 323, 454, 356)
_BROWS = (70, 63, 105, 66, 107, 336, 296, 334, 293, 300)
_NOSE = (168, 197, 5, 4, 75, 97, 2, 326, 305)
_EYES = (33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380)
_OUTER = (61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181)
_INNER = (78, 82, 13, 312, 308, 317, 14, 87)

FACE_MESH = (*_JAW, *_BROWS, *_NOSE, *_EYES, *_OUTER, *_INNER)
"""Face Mesh's point for each of the 68, in their order."""

JAW = slice(0, 17)
CHIN = 8
DROPS = slice(4, 13)
"""The part of the jaw's outline that moves when the mouth opens."""
NOSE_BRIDGE_END = 29


def sixty_eight(points: F32) -> F64:
    """(478, 3) pixels -> (68, 2) float64 pixels."""
    return np.asarray(points[list(FACE_MESH), :2], np.float64)
