"""Variation of speech in the mel-power domain: cheap enough to make anew for every training step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retalk_models.phones import RunningMean, batch_scores, cepstra
from retalk_models.picture import F32
from retalk_models.speech import LevelTracker

_FRAMES_PER_STEP = 2


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """power: (frames, bands) mel powers at 100 Hz; targets: (frames / 2, n) on the same start, 50 Hz."""

    power: F32
    targets: F32


def _lookup(rows: F32, at: F32) -> F32:
    """Rows at fractional indices."""
    low = np.clip(at.astype(np.intp), 0, len(rows) - 1)
    high = np.minimum(low + 1, len(rows) - 1)
    share = (at - low).astype(np.float32)[:, None]
    return np.asarray(rows[low] * (1 - share) + rows[high] * share, np.float32)


def warp_time(power: F32, targets: F32, start: int, frames: int, rng: np.random.Generator) -> Window:
    """Cut `frames` from frame `start` with the tempo wandering by up to 18 %, sound and lips together."""
    knots = rng.uniform(-0.18, 0.18, max(3, frames // 60))
    tempo = 1 + np.interp(np.linspace(0, 1, frames), np.linspace(0, 1, len(knots)), knots)
    at = (start + np.concatenate([[0.0], np.cumsum(tempo)[:-1]])).astype(np.float32)
    at = np.minimum(at, len(power) - 1)
    return Window(_lookup(power, at), _lookup(targets, at[::_FRAMES_PER_STEP] / _FRAMES_PER_STEP))


def warp_formants(power: F32, length: float) -> F32:
    """As if the vocal tract were `length` times as long: resonances move down above 1, up below."""
    bands = power.shape[1]
    centre = np.arange(bands, dtype=np.float32)
    # On the mel axis a constant factor in frequency is nearly a constant shift above 1 kHz.
    shift = np.log(length) / np.log(6.4) * 27 * (bands / 37.0)
    at = np.clip(centre + shift * np.clip(centre / (bands * 0.35), 0.2, 1.0), 0, bands - 1)
    return _lookup(power.T.copy(), at.astype(np.float32)).T


def colour(power: F32, rng: np.random.Generator) -> F32:
    """Random tilt, equaliser, band limit and gain."""
    bands = power.shape[1]
    axis = np.linspace(-0.5, 0.5, bands)
    decibels = rng.normal(0, 5) * axis
    knots = rng.normal(0, 3, 6)
    decibels = decibels + np.interp(axis, np.linspace(-0.5, 0.5, 6), knots)
    if rng.random() < 0.25:
        cut = int(rng.integers(26, bands))
        decibels[cut:] -= 30
    if rng.random() < 0.2:
        decibels[: int(rng.integers(1, 5))] -= 25
    decibels = decibels + rng.uniform(-22, 10)
    return np.asarray(power * 10 ** (decibels / 10), np.float32)


def reverberate(power: F32, rng: np.random.Generator) -> F32:
    """Add an exponentially decaying tail of earlier frames' power."""
    decay = 10 ** (-6 / rng.uniform(20, 70))
    wet = 10 ** (rng.uniform(-18, -4) / 10)
    tail = np.empty_like(power)
    run = np.zeros(power.shape[1], np.float32)
    for index, row in enumerate(power):
        tail[index] = run
        run = run * np.float32(decay) + row * np.float32(1 - decay)
    return np.asarray(power + wet * tail, np.float32)


def add_noise(power: F32, babble: F32 | None, rng: np.random.Generator) -> F32:
    """Coloured noise and perhaps babble, 8 to 50 dB under the loud frames."""
    frames, bands = power.shape
    loud = float(np.quantile(power.mean(1), 0.9)) + 1e-9
    snr = rng.uniform(8, 50)
    tilt = 10 ** (rng.normal(-4, 6) * np.linspace(-0.5, 0.5, bands) / 10)
    noise = (tilt / tilt.mean()) * rng.gamma(3.0, 1 / 3.0, (frames, bands))
    out = power + loud * 10 ** (-snr / 10) * noise
    if babble is not None:
        level = float(babble.mean()) + 1e-9
        out = out + babble * (loud / level * 10 ** (-rng.uniform(4, 30) / 10))
    return np.asarray(out, np.float32)


def batch_phones(power: F32, rng: np.random.Generator) -> F32:
    """(batch, frames, bands) powers to (batch, frames / 2, width) phone scores.

    Half of the rows start with the voice's mean already about known, as in mid-stream. Two short spans of
    time are blanked in every row.
    """
    means = []
    for heard in cepstra(power):
        if rng.random() < 0.5:
            loud = heard[:, 0] > np.quantile(heard[:, 0], 0.2)
            known = heard[loud].mean(0) + rng.normal(0, 1, heard.shape[1]).astype(np.float32)
            means.append(RunningMean(known, rng.uniform(100, 500)))
        else:
            means.append(RunningMean())
    scores = batch_scores(power, means)
    for row in scores:
        for _ in range(2):
            start, length = int(rng.integers(len(row))), int(rng.integers(1, 5))
            row[start : start + length] = row.mean(0)
    return scores


def batch_features(power: F32, rng: np.random.Generator) -> F32:
    """(batch, frames, bands) powers to (batch, frames, bands + 1) features, as `speech.features` does.

    Half of the rows start with the level already near the speech's own, as in mid-stream.
    """
    decibels = 10 * np.log10(np.maximum(power, 1e-9))
    loud = 10 * np.log10(np.maximum(power.mean(2), 1e-9))
    level = np.full(len(power), LevelTracker.START_DB)
    warm = rng.random(len(power)) < 0.5
    level[warm] = (np.quantile(loud, 0.9, axis=1) + rng.uniform(-4, 6, len(power)))[warm]
    tracked = np.empty_like(loud)
    for index in range(loud.shape[1]):
        now = loud[:, index]
        fall = np.where(now > level - LevelTracker.PAUSE_DB, LevelTracker.FALL_DB, LevelTracker.FALL_DB / 5)
        risen = level + LevelTracker.RISE * (now - level)
        level = np.where(now > level, risen, np.maximum(level - fall, LevelTracker.FLOOR_DB))
        tracked[:, index] = level
    relative = np.clip((decibels - tracked[:, :, None]) / 12.0 + 0.5, -4.0, 3.0)
    own = np.clip((loud + 30) / 20.0, -3.0, 2.0)
    return np.asarray(np.concatenate([relative, own[:, :, None]], 2), np.float32)


def mask(heard: F32, rng: np.random.Generator) -> F32:
    """Blank two bands of frequencies and two short spans of time in every row of (batch, frames, bands)."""
    out = heard.copy()
    frames, bands = heard.shape[1:]
    for row in out:
        for _ in range(2):
            low, high = int(rng.integers(bands)), int(rng.integers(1, 9))
            row[:, low : low + high] = row[:, low : low + high].mean()
            start, length = int(rng.integers(frames)), int(rng.integers(2, 9))
            row[start : start + length] = row.mean(0)
    return out
