"""Streaming speech features: log-mel whose chunks equal the whole, and a level that only looks back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retalk_models.engine import VOICE_RATE
from retalk_models.picture import F32

HOP = 160
"""Samples between feature frames: 10 ms at 16 kHz."""

WINDOW = 400
"""Samples under one feature frame: 25 ms at 16 kHz."""


@dataclass(frozen=True, slots=True)
class MelSettings:
    """The mel filter bank; defaults are those of the shipped expression net.

    bands: filters (Slaney scale and area normalisation, as librosa's default).
    low_hz, high_hz: the span that they cover.
    fft: points of the transform; the Hann window of WINDOW samples sits in its middle.
    """

    bands: int = 40
    low_hz: float = 60.0
    high_hz: float = 7600.0
    fft: int = 512


def _hz_to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's scale: linear below 1 kHz, logarithmic above."""
    linear = hz * 3 / 200
    log = 15 + np.log(np.maximum(hz, 1e-9) / 1000) / (np.log(6.4) / 27)
    return np.where(hz < 1000, linear, log)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27)))


def _edges(settings: MelSettings) -> NDArray[np.float64]:
    ends = _hz_to_mel(np.array([settings.low_hz, settings.high_hz]))
    return _mel_to_hz(np.linspace(ends[0], ends[1], settings.bands + 2))


def band_centres(settings: MelSettings) -> NDArray[np.float64]:
    """(bands,) where each filter lets most through, in Hz."""
    return _edges(settings)[1:-1]


def triangles(edges: NDArray[np.float64], hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, len(hertz)) filters: each rises from one of n + 2 edges to 1 at the next and falls to the third."""
    rise = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.maximum(0, np.minimum(rise, fall)))


def mel_filters(settings: MelSettings) -> F32:
    """(bands, fft / 2 + 1) float32 triangular filters, each of unit area in Hz."""
    edges = _edges(settings)
    bins = np.arange(settings.fft // 2 + 1) * VOICE_RATE / settings.fft
    area = 2 / (edges[2:] - edges[:-2])
    return np.asarray(triangles(edges, bins) * area[:, None], np.float32)


class MelStream:
    """Mel powers of contiguous 16 kHz sound, any chunking.

    Frame i covers samples [i * HOP, i * HOP + fft) with the window in the middle, as
    librosa.feature.melspectrogram(center=False, win_length=WINDOW) has it. Holds under fft samples.
    """

    def __init__(self, settings: MelSettings | None = None) -> None:
        self.settings = settings or MelSettings()
        self._filters = mel_filters(self.settings).T.copy()
        # Periodic Hann, centred in the transform's frame.
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
        self._taper = np.zeros(self.settings.fft, np.float32)
        left = (self.settings.fft - WINDOW) // 2
        self._taper[left : left + WINDOW] = hann
        self._carry: F32 = np.zeros(0, np.float32)

    def reset(self) -> None:
        """Start over: the next sample is sample 0."""
        self._carry = np.zeros(0, np.float32)

    def push(self, pcm: F32) -> F32:
        """(n,) float32 samples in -1..1, following the last; returns (m, bands) float32 powers, m >= 0."""
        held = np.concatenate([self._carry, np.asarray(pcm, np.float32)])
        count = max(0, (len(held) - self.settings.fft) // HOP + 1)
        if count == 0:
            self._carry = held
            return np.zeros((0, self.settings.bands), np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(held, self.settings.fft)[: count * HOP : HOP]
        # One frame at a time in the same order whatever the chunk: a batched product may round otherwise.
        spectrum = np.fft.rfft(frames * self._taper, axis=1)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
        self._carry = held[count * HOP :].copy()
        # Not `@`: a threaded BLAS wakes its threads for each of these, milliseconds on a busy machine.
        return np.stack([np.einsum("j,jk->k", row, self._filters) for row in power])


class LevelTracker:
    """A causal running speech level in dB: rises within 50 ms, falls slowly, so that loudness drops out.

    It falls by 2 dB/s while something within PAUSE_DB is heard, and by a fifth of that in a pause, so that
    a long pause does not turn the room's noise into speech.
    """

    RISE = 0.3
    FALL_DB = 0.02
    PAUSE_DB = 30.0
    FLOOR_DB = -60.0
    START_DB = -30.0

    def __init__(self) -> None:
        self._level = self.START_DB

    def reset(self) -> None:
        self._level = self.START_DB

    def push(self, frame_db: F32) -> F32:
        """(n,) frame levels in dB to (n,) tracked levels in dB, one per 10 ms frame."""
        out = np.empty(len(frame_db), np.float32)
        level = self._level
        for index, value in enumerate(frame_db):
            if value > level:
                level += self.RISE * (float(value) - level)
            else:
                fall = self.FALL_DB if value > level - self.PAUSE_DB else self.FALL_DB / 5
                level = max(level - fall, self.FLOOR_DB)
            out[index] = level
        self._level = level
        return out


def features(power: F32, tracker: LevelTracker) -> F32:
    """What the expression net hears: (n, bands) mel powers to (n, bands + 1) float32, about -3..2.

    The bands are in tens of dB relative to the tracked level, clipped; the last column is the level
    itself, so that true silence differs from quiet speech.
    """
    decibels = 10 * np.log10(np.maximum(power, 1e-9))
    loud = 10 * np.log10(np.maximum(power.mean(1), 1e-9))
    level = tracker.push(loud.astype(np.float32))
    relative = np.clip((decibels - level[:, None]) / 12.0 + 0.5, -4.0, 3.0)
    own = np.clip((loud + 30) / 20.0, -3.0, 2.0)
    return np.asarray(np.concatenate([relative, own[:, None]], 1), np.float32)
