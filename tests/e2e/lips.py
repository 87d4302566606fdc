"""Whether a mouth follows one signal and not another, from pictures alone."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from retalk_models.evaluation.retrack import Retracker
from retalk_models.evaluation.series import F64, GRID_HZ, lagged, partial, pearson
from retalk_models.face.geometry import lip_opening
from retalk_models.picture import U8

MOST_LEAK = 0.45
"""Ten seconds of two talking mouths that have nothing to do with each other leak by .1 (standard deviation
over where in the film they meet; live up to .32 has been seen), a dub with half as much of the source's own
mouth in it by .5, with as much by .75."""


class LipTracker:
    """A fresh Face Mesh, so that nothing which the engine believes about itself enters a measurement."""

    def __enter__(self) -> Self:
        self._tracker = Retracker()
        self._tracker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tracker.__exit__(kind, error, trace)

    def opening(self, rgb: U8) -> float:
        """The inner lips' distance over the face's height in a (height, width, 3) picture; NaN without."""
        return lip_opening(self._tracker.points(rgb))


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


def assert_follows_voice(found: Following, least_r: float = 0.5, most_leak: float = MOST_LEAK) -> None:
    """Raise AssertionError where the mouth does not speak the voice, or still speaks the source."""
    assert found.r >= least_r, (
        f"the mouth does not follow the voice: r {found.r:.2f}, least {least_r} ({found})"
    )
    assert abs(found.leak) <= most_leak, (
        f"the mouth follows the source: {found.leak:.2f}, most {most_leak} ({found})"
    )


__all__ = ["GRID_HZ", "Following", "LipTracker", "assert_follows_voice", "following", "pearson"]
