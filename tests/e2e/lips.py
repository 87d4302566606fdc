"""Whether a mouth follows one signal and not another, from pictures alone."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.crossdub import lagged, partial, pearson

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]

GRID_HZ = 50.0
UPPER_LIP, LOWER_LIP, FOREHEAD, CHIN = 13, 14, 10, 152
"""Face Mesh landmarks: the inner lips' middles, and the face's top and bottom."""


class LipTracker:
    """A fresh Face Mesh, so that nothing which the engine believes about itself enters a measurement."""

    def __enter__(self) -> Self:
        import mediapipe as mp

        self._mesh: Any = mp.solutions.face_mesh.FaceMesh(refine_landmarks=True, max_num_faces=1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mesh.close()

    def opening(self, rgb: U8) -> float:
        """The inner lips' distance over the face's height in a (height, width, 3) picture; NaN without."""
        found = self._mesh.process(rgb).multi_face_landmarks
        if not found:
            return float("nan")
        size = np.array([rgb.shape[1], rgb.shape[0]])
        at = {
            index: np.array([found[0].landmark[index].x, found[0].landmark[index].y]) * size
            for index in (UPPER_LIP, LOWER_LIP, FOREHEAD, CHIN)
        }
        gap = np.linalg.norm(at[UPPER_LIP] - at[LOWER_LIP])
        return float(gap / np.linalg.norm(at[FOREHEAD] - at[CHIN]))


@dataclass(frozen=True)
class Following:
    """How a mouth relates to a voice and to the source's own mouth, all on one grid.

    r: Pearson correlation with the voice's mouth at the best lag within reach.
    lag_s: that lag, + where the mouth is late.
    leak: partial correlation with the source's own mouth, given the voice's.
    """

    r: float
    lag_s: float
    leak: float


def following(mouth: F64, voice: F64, own: F64, reach_s: float) -> Following:
    """Compare a mouth's opening with what the voice asks and with what the source did, each at GRID_HZ."""
    r, lag_s = lagged(mouth, voice, reach_s)
    shift = round(lag_s * GRID_HZ)
    asked = np.full_like(voice, np.nan)
    if shift >= 0:
        asked[shift:] = voice[: len(voice) - shift]
    else:
        asked[:shift] = voice[-shift:]
    return Following(r, lag_s, partial(mouth, own, asked))


def assert_follows_voice(found: Following, least_r: float = 0.5, most_leak: float = 0.35) -> None:
    """Raise AssertionError where the mouth does not speak the voice, or still speaks the source."""
    assert found.r >= least_r, (
        f"the mouth does not follow the voice: r {found.r:.2f}, least {least_r} ({found})"
    )
    assert abs(found.leak) <= most_leak, (
        f"the mouth follows the source: {found.leak:.2f}, most {most_leak} ({found})"
    )


__all__ = ["GRID_HZ", "Following", "LipTracker", "assert_follows_voice", "following", "pearson"]
