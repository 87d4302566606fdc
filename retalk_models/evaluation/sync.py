"""Whether lips and sound belong together: how well a regression from log-mel to lip shape holds.

Independent of every engine: it sees landmarks and sound alone. What it was trained on, and what it separates,
stands in the model card.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from safetensors.numpy import load

from retalk_models.engine import VOICE_RATE
from retalk_models.evaluation.lips import LIPS, Lips
from retalk_models.evaluation.series import F64, NEAR_S, on_grid, pearson
from retalk_models.picture import F32
from retalk_models.speech import HOP, MelSettings, MelStream

WEIGHTS_FILE = "sync_meter.safetensors"

OFFSETS_S = np.arange(-200, 161, 40) / 1000
"""Where the regression listens, relative to the lips."""

RATE = 25.0
"""Instants per second that enter a score."""

_LEAST_S = 1.5
_LAGS_S = np.arange(-2, 3) * NEAR_S / 2
_SPAN = 4
"""Mel frames averaged under one offset: 40 ms."""


def mel_levels(sound: F32) -> F64:
    """(frames, 40) log-mel of 16 kHz sound relative to its own loud parts, in 20 dB; frame i is centred at
    HOP * i + half the transform."""
    power = MelStream().push(sound).astype(np.float64)
    decibels = 10 * np.log10(np.maximum(power, 1e-9))
    loud = 10 * np.log10(np.maximum(power.mean(1), 1e-9))
    return np.asarray(np.clip((decibels - np.quantile(loud, 0.95) + 30) / 20, -2, 2.5), np.float64)


def listen(levels: F64, at: F64) -> F64:
    """(n, 10 * bands) what is heard round each instant; the ends are held."""
    centre = MelSettings().fft / 2 / VOICE_RATE
    place = (at[:, None] + OFFSETS_S[None] - centre) * VOICE_RATE / HOP
    middle = np.clip(np.round(place).astype(np.intp), 1, len(levels) - 2)
    total = np.concatenate([np.zeros((1, levels.shape[1])), np.cumsum(levels, axis=0)])
    low = np.clip(middle - _SPAN // 2, 0, len(levels))
    high = np.clip(middle + _SPAN // 2, 0, len(levels))
    heard = (total[high] - total[low]) / np.maximum(high - low, 1)[..., None]
    return np.asarray(heard.reshape(len(at), -1), np.float64)


def lip_values(lips: Lips, at: F64) -> F64:
    """(n, 81) lip points (x, y) and jaw at each instant, canonical units, less their mean; NaN where
    unknown."""
    jaw = on_grid(lips.seconds, lips.jaw, at)
    jaw = jaw - np.nanmean(jaw) if np.isfinite(jaw).any() else jaw
    return np.concatenate([lips.shape_at(at).reshape(len(at), 2 * len(LIPS)), jaw[:, None]], 1)


@dataclass(frozen=True, slots=True, eq=False)
class SyncMeter:
    """Two directions of lip shape that sound predicts best, and what predicts them.

    mean, scale: (f,) of what is heard. heard: (f, 2) from that to the directions. seen: (81, 2) from
    lip_values.
    """

    mean: F64
    scale: F64
    heard: F64
    seen: F64

    @classmethod
    def load(cls, path: Path | None = None) -> SyncMeter:
        """From a safetensors file; the bundled one where path is None."""
        bundled = files("retalk_models").joinpath("weights", WEIGHTS_FILE)
        tensors = load(bundled.read_bytes() if path is None else path.read_bytes())
        return cls(*(tensors[name].astype(np.float64) for name in ("mean", "scale", "heard", "seen")))

    def score(self, lips: Lips, sound: F32) -> float:
        """How surely these lips speak this 16 kHz sound (time 0 of both the same): mean r of the directions,
        at the best lag within 40 ms.

        True footage gives 0.3 to 0.7, unrelated sound about 0 with a spread of 0.1 at ten seconds and more
        below; NaN under 1.5 s.
        """
        end = min(len(sound) / VOICE_RATE, float(lips.seconds[-1])) if len(lips.seconds) else 0.0
        at = np.arange(0.1, end - 0.1, 1 / RATE)
        if len(at) < _LEAST_S * RATE or not lips.found.any():
            return float("nan")
        levels = mel_levels(sound)
        seen = lip_values(lips, at)
        known = np.isfinite(seen).all(1)
        if known.sum() < _LEAST_S * RATE:
            return float("nan")
        shown = seen[known] @ self.seen
        best = -1.0
        for lag in _LAGS_S:
            said = ((listen(levels, at[known] - lag) - self.mean) / self.scale) @ self.heard
            best = max(
                best, float(np.mean([pearson(said[:, i], shown[:, i]) for i in range(shown.shape[1])]))
            )
        return best
