"""Every measure of one dub, and their means: plain numbers that go into JSON as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retalk_models.evaluation.lips import Lips, landmark_distances, loudness, speaking
from retalk_models.evaluation.series import (
    F64,
    FAR_S,
    NEAR_S,
    amplitude_ratio,
    by_lag,
    closures,
    grid,
    lagged,
    on_grid,
    partial,
)
from retalk_models.evaluation.sync import SyncMeter
from stream.evaluate.material import Subject

_SETTLED_S = 0.3
"""What comes earlier is the nets' and the tracker's beginning."""


@dataclass(frozen=True, slots=True)
class LipScore:
    """A dub's lips against the true lips of its voice; docs/evaluation.md has every definition.

    r: of the opening, at best within 40 ms. lag_ms: of the best r within 400 ms, + where the dub is late.
    amplitude: ratio of standard deviations. leak: of the source's own opening; NaN where that is the truth.
    sync: of the dub with the voice. closure_recall, false_closure: shares. closures: how many the truth has.
    landmarks: mean distance, percent of the eye corners' distance.
    """

    seconds: float
    r: float
    lag_ms: float
    amplitude: float
    leak: float
    sync: float
    closure_recall: float
    false_closure: float
    closures: int
    landmarks: float


@dataclass(frozen=True, slots=True, eq=False)
class LipTracks:
    """What a score was made of, on one grid, for plots and for finding the worst frames.

    at: (n,) seconds. dub, truth, own, loudness: (n,) openings over face height and RMS; NaN where unknown.
    lags, lag_r: r by lag in seconds. distance: (n,) landmark distance.
    """

    at: F64
    dub: F64
    truth: F64
    own: F64
    loudness: F64
    lags: F64
    lag_r: F64
    distance: F64


def source_under(source: Subject, dub: Lips) -> Lips:
    """The source's own lips at the dub's frames: forward, then back and forth, as a short source is held."""
    count = len(source.lips.seconds)
    index = np.arange(len(dub.seconds))
    period = max(1, 2 * (count - 1))
    turned = index % period
    turned = np.where(turned >= count, period - turned, turned)
    own = source.lips
    return Lips(dub.seconds, own.opening[turned], own.shape[turned], own.jaw[turned])


def score_lips(dub: Lips, source: Subject, voice: Subject, meter: SyncMeter) -> tuple[LipScore, LipTracks]:
    """Measure re-tracked lips of a dub of `source` with `voice`. The dub's time 0 is the voice's first
    sample."""
    end = min(float(dub.seconds[-1]), float(voice.truth.seconds[-1])) if len(dub.seconds) else 0.0
    at = grid(max(_SETTLED_S, float(voice.truth.seconds[0])), end)
    shown = on_grid(dub.seconds, dub.opening, at)
    truth = on_grid(voice.truth.seconds, voice.truth.opening, at)
    under = source_under(source, dub)
    own = on_grid(under.seconds, under.opening, at)
    near, _ = lagged(shown, truth, NEAR_S)
    _, lag = lagged(shown, truth, FAR_S)
    lags, lag_r = by_lag(shown, truth, FAR_S)
    distance = landmark_distances(dub, voice.truth, at)
    closed = closures(shown, truth, speaking(voice.sound, at))
    score = LipScore(
        seconds=len(at) / 50,
        r=near,
        lag_ms=1000 * lag,
        amplitude=amplitude_ratio(shown, truth),
        leak=float("nan") if source is voice else partial(shown, own, truth),
        sync=meter.score(dub, voice.sound),
        closure_recall=closed.recall,
        false_closure=closed.false,
        closures=closed.events,
        landmarks=float(np.nanmean(distance)) if np.isfinite(distance).any() else float("nan"),
    )
    tracks = LipTracks(at, shown, truth, own, loudness(voice.sound, at), lags, lag_r, distance)
    return score, tracks


def mean_of(values: Sequence[float | None]) -> float:
    """The mean of what is known; NaN of nothing."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
