"""Landmarks of pictures by a fresh Face Mesh, so that nothing an engine believes about itself is measured."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import numpy as np

from retalk_models.face.geometry import POINTS
from retalk_models.picture import F32, U8, Picture


class Retracker:
    """A Face Mesh of its own, for consecutive pictures of one face."""

    def __enter__(self) -> Self:
        import mediapipe as mp

        self._mesh: Any = mp.solutions.face_mesh.FaceMesh(
            static_image_mode=False, max_num_faces=1, refine_landmarks=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mesh.close()

    def points(self, rgb: U8) -> F32:
        """(478, 3) pixels (z on the scale of x) in a (height, width, 3) picture; NaN where there is no
        face."""
        height, width = rgb.shape[:2]
        found = self._mesh.process(rgb).multi_face_landmarks
        if not found:
            return np.full((POINTS, 3), np.nan, np.float32)
        raw = np.array([(one.x, one.y, one.z) for one in found[0].landmark], np.float32)
        return np.asarray(raw * np.array([width, height, width], np.float32), np.float32)


def retrack(pictures: Iterable[Picture]) -> F32:
    """(n, 478, 3) points of consecutive pictures; NaN where no face was found."""
    with Retracker() as tracker:
        points = [tracker.points(picture.rgb()) for picture in pictures]
    return np.stack(points) if points else np.zeros((0, POINTS, 3), np.float32)
