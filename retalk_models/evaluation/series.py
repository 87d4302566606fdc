"""Measures on one-dimensional tracks that share a time line: correlation, lag, leak, amplitude, closures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retalk_models.picture import Flags

F64 = NDArray[np.float64]

GRID_HZ = 50.0
"""Instants per second at which tracks of different frame rates are compared."""

NEAR_S = 0.04
"""How far from zero lag a correlation still counts as in time."""

FAR_S = 0.4
"""How far the lag is searched."""

_FEWEST = 10
_WIDEST_GAP_S = 0.08

SHUT = 0.15
"""Lips nearer than this share of their own widest (95th percentile) are shut."""

SHUT_FLOOR = 0.006
"""Lips nearer than this (over face height) are shut whatever their range."""

OPEN = 0.45
"""Lips farther apart than this share of their own widest are open beyond doubt."""

_CLOSURE_REACH_S = 0.06
_SHORTEST_CLOSURE_S = 0.04


def grid(start_s: float, end_s: float) -> F64:
    """Instants at GRID_HZ from start_s on, before end_s."""
    return np.arange(start_s, end_s, 1 / GRID_HZ, dtype=np.float64)


def on_grid(seconds: F64, values: F64, at: F64) -> F64:
    """Values (n,) of a track at other instants, linearly; NaN farther than 80 ms from a known value."""
    known = np.isfinite(values)
    if known.sum() < _FEWEST:
        return np.full(len(at), np.nan)
    out = np.interp(at, seconds[known], values[known])
    right = np.clip(np.searchsorted(seconds[known], at), 1, int(known.sum()) - 1)
    nearest = np.minimum(abs(seconds[known][right] - at), abs(seconds[known][right - 1] - at))
    return np.asarray(np.where(nearest > _WIDEST_GAP_S, np.nan, out), np.float64)


def pearson(left: F64, right: F64) -> float:
    """Pearson r over what both know; NaN under ten instants, 0 where either does not move."""
    known = np.isfinite(left) & np.isfinite(right)
    if known.sum() < _FEWEST:
        return float("nan")
    a, b = left[known], right[known]
    if a.std() < 1e-9 or b.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def by_lag(dub: F64, truth: F64, reach_s: float) -> tuple[F64, F64]:
    """Lags in seconds and, for each, Pearson r of dub(t + lag) with truth(t). + where the dub is late."""
    steps = round(reach_s * GRID_HZ)
    lags = np.arange(-steps, steps + 1)
    values = [
        pearson(dub[max(lag, 0) : len(dub) + min(lag, 0)], truth[max(-lag, 0) : len(truth) + min(-lag, 0)])
        for lag in lags
    ]
    return lags / GRID_HZ, np.array(values)


def lagged(dub: F64, truth: F64, reach_s: float) -> tuple[float, float]:
    """Best Pearson r of dub(t + lag) with truth(t) for |lag| <= reach_s, and that lag in seconds."""
    lags, values = by_lag(dub, truth, reach_s)
    if not np.isfinite(values).any():
        return float("nan"), float("nan")
    best = int(np.nanargmax(values))
    return float(values[best]), float(lags[best])


def partial(left: F64, right: F64, given: F64) -> float:
    """Partial correlation of two tracks given a third: what they share beyond what it explains."""
    known = np.isfinite(left) & np.isfinite(right) & np.isfinite(given)
    pairs = ((left, right), (left, given), (right, given))
    xy, xg, yg = (pearson(p[known], q[known]) for p, q in pairs)
    if (1 - xg**2) * (1 - yg**2) < 1e-6:
        return float("nan")
    return float((xy - xg * yg) / np.sqrt((1 - xg**2) * (1 - yg**2)))


def amplitude_ratio(dub: F64, truth: F64) -> float:
    """Standard deviation of the dub's opening over that of the truth; NaN where the truth does not move."""
    known = np.isfinite(dub) & np.isfinite(truth)
    if known.sum() < _FEWEST or truth[known].std() < 1e-9:
        return float("nan")
    return float(dub[known].std() / truth[known].std())


def shut(opening: F64) -> Flags:
    """Whether the lips are shut, instant by instant, by their own range; False where unknown."""
    known = np.isfinite(opening)
    if not known.any():
        return np.zeros(len(opening), np.bool_)
    limit = max(SHUT_FLOOR, SHUT * float(np.quantile(opening[known], 0.95)))
    return np.asarray(np.where(known, opening, np.inf) < limit, np.bool_)


@dataclass(frozen=True, slots=True)
class Closures:
    """recall: share of the truth's closures in speech that the dub makes, too (NaN where there is none).

    false: share of instants at which the truth is wide open and the dub is shut. events: closures counted.
    """

    recall: float
    false: float
    events: int


def closures(dub: F64, truth: F64, speaking: Flags) -> Closures:
    """Compare closures of two openings (n,) at GRID_HZ; speaking: (n,) whether the voice is heard.

    A closure is a run of at least 40 ms of shut lips in speech; it is made where the dub is shut within 60 ms
    of it. The dub is shut by its own range, so too small a mouth is not taken for a shut one.
    """
    true_shut, dub_shut = shut(truth), shut(dub)
    known = np.isfinite(truth) & np.isfinite(dub)
    reach, shortest = round(_CLOSURE_REACH_S * GRID_HZ), round(_SHORTEST_CLOSURE_S * GRID_HZ)
    made = events = 0
    for start, end in _runs(true_shut & known & speaking):
        if end - start < shortest:
            continue
        events += 1
        made += bool(dub_shut[max(0, start - reach) : end + reach].any())
    opened = np.zeros(len(truth), np.bool_)
    if known.any():
        opened = known & speaking & (np.nan_to_num(truth) > OPEN * float(np.quantile(truth[known], 0.95)))
    wrong = float(dub_shut[opened].mean()) if opened.any() else float("nan")
    return Closures(made / events if events else float("nan"), wrong, events)


def _runs(flags: Flags) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
