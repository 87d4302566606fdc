"""How well predicted expression follows the truth: correlation, lag, spread, closures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retalk_models.engine import VOICE_RATE
from retalk_models.picture import F32, Flags
from retalk_models.speech import HOP, MelStream
from retalk_models.talkin.net import STEP, SpeechToExpression
from retalk_models.talkin.pairs import Pair

_LAGS = np.arange(-240, 241, 20) / 1000


@dataclass(frozen=True, slots=True)
class ClipScore:
    """One clip.

    opening_r: Pearson r of the opening at zero lag. best_lag_ms: + where the predicted lips come late.
    spread: predicted over true standard deviation of the opening. closed_auc: chance that a truly closed
    frame is predicted narrower than an open one. loudness_r: what the loudness alone gives.
    others_r: mean r of the other coefficients.
    """

    name: str
    seconds: float
    opening_r: float
    best_lag_ms: int
    spread: float
    closed_auc: float
    loudness_r: float
    others_r: float


def correlation(left: F32, right: F32) -> float:
    """Pearson r; 0 where either does not move."""
    # In single precision what stands still spreads by its mean's rounding.
    if left.std(dtype=np.float64) < 1e-9 or right.std(dtype=np.float64) < 1e-9:
        return 0.0
    return float(np.corrcoef(left, right)[0, 1])


def run(net: SpeechToExpression, sound: F32, seconds: NDArray[np.float64]) -> tuple[F32, F32]:
    """(n, K) expression and (n, 2) closure and speaking of a whole sound at increasing times."""
    stream = net.open_stream()
    padded = np.concatenate([sound, np.zeros(net.look_ahead + 2 * STEP, np.float32)])
    values, gates, done = [], [], 0
    for second in seconds:
        position = round(second * VOICE_RATE)
        need = min(len(padded), position + net.look_ahead)
        if need > done:
            stream.push(padded[done:need])
            done = need
        said = stream.at(position)
        values.append(said.coefficients)
        gates.append((said.closure, said.speaking))
    return np.stack(values), np.array(gates, np.float32)


def _auc(closed: Flags, value: F32) -> float:
    """Area under the curve for `closed` against low `value`."""
    if closed.all() or not closed.any():
        return float("nan")
    order = np.argsort(np.argsort(-value, kind="stable"), kind="stable").astype(np.float64)
    positives = int(closed.sum())
    rank = order[closed].sum() - positives * (positives - 1) / 2
    return float(rank / (positives * (len(closed) - positives)))


def score(net: SpeechToExpression, pair: Pair) -> ClipScore:
    """Score one clip at its own frames, as the engine would ask for them."""
    inside = (pair.times > 0) & (pair.times < len(pair.sound) / VOICE_RATE)
    times, truth = pair.times[inside], pair.expression[inside]
    values, gates = run(net, pair.sound, times)
    power = MelStream().push(pair.sound)
    loudness = 10 * np.log10(power.mean(1) + 1e-9)
    heard = np.clip((times * VOICE_RATE - 256) / HOP, 0, len(power) - 1).astype(np.intp)
    by_lag = [
        correlation(values[:, 0], np.interp(times - lag, times, truth[:, 0]).astype(np.float32))
        for lag in _LAGS
    ]
    speaking = loudness[heard] > np.quantile(loudness, 0.95) - 27
    opening = truth[:, 0]
    closed = opening < max(0.008, 0.15 * float(np.quantile(opening, 0.95)))
    return ClipScore(
        pair.name,
        len(times) / max(1.0, 1 / float(np.median(np.diff(times)))),
        correlation(values[:, 0], opening),
        round(1000 * float(_LAGS[int(np.argmax(by_lag))])),
        float(values[:, 0].std() / max(opening.std(), 1e-6)),
        _auc(closed[speaking], (values[:, 0] - 0.02 * gates[:, 0])[speaking]),
        correlation(loudness[heard].astype(np.float32), opening),
        float(np.mean([correlation(values[:, k], truth[:, k]) for k in range(1, truth.shape[1])])),
    )


_COLUMNS = (
    ("s", "seconds", ".1f"),
    ("opening r", "opening_r", ".2f"),
    ("lag ms", "best_lag_ms", ".0f"),
    ("spread", "spread", ".2f"),
    ("closed AUC", "closed_auc", ".2f"),
    ("loudness r", "loudness_r", ".2f"),
    ("others r", "others_r", ".2f"),
)


def table(scores: Sequence[ClipScore]) -> str:
    """A Markdown table with the mean over clips in the last row."""
    lines = [
        "| clip | " + " | ".join(title for title, _, _ in _COLUMNS) + " |",
        "|---" * (len(_COLUMNS) + 1) + "|",
    ]
    for one in scores:
        cells = [f"{getattr(one, field):{form}}" for _, field, form in _COLUMNS]
        lines.append(f"| {one.name} | " + " | ".join(cells) + " |")
    means = [np.nanmean([getattr(one, field) for one in scores]) for _, field, _ in _COLUMNS]
    lines.append("| mean | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    return "\n".join(lines)
