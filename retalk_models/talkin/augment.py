"""Variation of speech: of the sound itself before anything hears it, and of what was heard of it."""

from __future__ import annotations

import numpy as np
from scipy.signal import fftconvolve

from retalk_models.engine import VOICE_RATE
from retalk_models.picture import F32
from retalk_models.speech import LevelTracker


def colour(sound: F32, rng: np.random.Generator) -> F32:
    """Random tilt, equaliser, band limits and gain, without going beyond full scale."""
    spectrum = np.fft.rfft(sound)
    hertz = np.fft.rfftfreq(len(sound), 1 / VOICE_RATE)
    # From 60 Hz to 7.6 kHz, about as the ear divides it.
    axis = np.clip(np.log1p(hertz / 700) / np.log1p(7600 / 700), 0, 1) - 0.5
    decibels = rng.normal(0, 5) * axis
    decibels += np.interp(axis, np.linspace(-0.5, 0.5, 6), rng.normal(0, 3, 6))
    if rng.random() < 0.25:
        decibels[hertz > rng.uniform(3300, 7000)] -= 30
    if rng.random() < 0.2:
        decibels[hertz < rng.uniform(100, 350)] -= 25
    out = np.fft.irfft(spectrum * 10 ** (decibels / 20), len(sound))
    gain = min(10 ** (rng.uniform(-22, 10) / 20), 0.99 / (np.abs(out).max() + 1e-9))
    return np.asarray(out * gain, np.float32)


def reverberate(sound: F32, rng: np.random.Generator) -> F32:
    """Add a room's tail: noise that has lost 60 dB after 0.2 to 0.7 s, 4 to 18 dB under the sound."""
    seconds = rng.uniform(0.2, 0.7)
    at = np.arange(round(seconds * VOICE_RATE)) / VOICE_RATE
    tail = rng.normal(0, 1, len(at)) * 10 ** (-3 * at / seconds)
    tail *= 10 ** (rng.uniform(-18, -4) / 20) / np.sqrt((tail**2).sum())
    return np.asarray(sound + fftconvolve(sound, tail)[: len(sound)], np.float32)


def add_noise(sound: F32, babble: F32 | None, rng: np.random.Generator) -> F32:
    """Coloured noise, 8 to 50 dB under the loud parts, and perhaps babble, 4 to 30 dB under them."""
    loud = _loud(sound)
    spectrum = np.fft.rfft(rng.normal(0, 1, len(sound)))
    axis = np.linspace(-0.5, 0.5, len(spectrum))
    noise = np.fft.irfft(spectrum * 10 ** (rng.normal(-4, 6) * axis / 10), len(sound))
    out = sound + noise * (loud * 10 ** (-rng.uniform(8, 50) / 20) / (noise.std() + 1e-9))
    if babble is not None:
        other = babble[np.arange(len(sound)) % len(babble)]
        out = out + other * (loud * 10 ** (-rng.uniform(4, 30) / 20) / (_loud(other) + 1e-9))
    return np.asarray(np.clip(out, -1, 1), np.float32)


def _loud(sound: F32) -> float:
    """Root mean square that a tenth of the pieces of 10 ms exceed."""
    pieces = sound[: len(sound) // 160 * 160].reshape(-1, 160)
    return float(np.sqrt(np.quantile((pieces**2).mean(1), 0.9))) if len(pieces) else 0.0


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


def blank(said: F32, rng: np.random.Generator) -> F32:
    """Two spans of one to three runs of every row of (batch, runs, ...) become the row's mean."""
    out = said.copy()
    for row in out:
        for _ in range(2):
            start = int(rng.integers(len(row)))
            row[start : start + int(rng.integers(1, 4))] = row.mean(0)
    return out
