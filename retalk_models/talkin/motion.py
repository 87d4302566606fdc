"""What a mouth's motion takes from a picture of it."""

from __future__ import annotations

import numpy as np

from retalk_models.face.geometry import INNER_PAIRS, MOUTH_CORNERS, ObservedFace
from retalk_models.picture import F32

_DRIFT, _OPENING = 1.5, 2.5
"""Canonical units a second at which a mouth that moves about, and lips that part, are wholly blurred."""

_WORST = 0.4
"""What that takes off a picture's quality."""

_PLACES = [*INNER_PAIRS[0], *MOUTH_CORNERS]


class MouthMotion:
    """How far a mouth has moved from frame to frame. Asked of every frame, once."""

    def __init__(self) -> None:
        self._last: tuple[F32, float] | None = None

    def blur(self, face: ObservedFace, elapsed_s: float) -> float:
        """What motion takes off this frame's quality, 0 to 0.4. elapsed_s: since the frame before."""
        centre = np.asarray(face.points[_PLACES, :2].mean(axis=0), np.float32)
        last, self._last = self._last, (centre, face.opening)
        if last is None or elapsed_s <= 0:
            return 0.0
        drift = float(np.linalg.norm(centre - last[0])) / face.pose.scale / elapsed_s
        motion = max(drift / _DRIFT, abs(face.opening - last[1]) / elapsed_s / _OPENING)
        return _WORST * min(1.0, motion)
