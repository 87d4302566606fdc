"""The voice as L-Net hears it: 80 mel bands, 80 columns a second, chunked or whole the same.

Column j is centred at sample 200 j of the 16 kHz voice and takes 400 samples to either side; silence precedes
the first sample. A frame takes the 16 columns that start at its own time, and so looks 212.5 ms ahead.
"""

from __future__ import annotations

import numpy as np

from retalk_models.picture import F32
from retalk_models.speech import MelSettings, mel_filters

HOP = 200
"""Samples between columns."""
SPAN = 800
"""Samples under one column."""
BANDS = 80
COLUMNS = 16
"""Columns of one frame's window."""
SILENCE = -4.0
EMPHASIS = 0.97
LOOK_AHEAD = (COLUMNS - 1) * HOP + SPAN // 2
"""Samples after a frame's own time that its window reaches: 3400, or 212.5 ms, at most."""


def first_column(voice_at: int) -> int:
    """The first column of the window of a frame heard at sample `voice_at`."""
    return voice_at // HOP


class VoiceMel:
    """Mel columns of contiguous 16 kHz sound, any chunking. Holds under SPAN samples."""

    def __init__(self) -> None:
        settings = MelSettings(bands=BANDS, low_hz=55.0, high_hz=7600.0, fft=SPAN)
        self._filters = mel_filters(settings).T.copy()
        self._taper = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(SPAN) / SPAN)).astype(np.float32)
        self.reset()

    def reset(self) -> None:
        """Start over: the next sample is sample 0."""
        self._last = np.float32(0)
        self._carry: F32 = np.zeros(SPAN // 2, np.float32)

    def push(self, pcm: F32) -> F32:
        """(n,) float32 samples in -1..1, following the last; returns (m, 80) float32 columns, -4..4."""
        pcm = np.asarray(pcm, np.float32)
        if len(pcm):
            before = np.concatenate([[self._last], pcm[:-1]])
            self._last = pcm[-1]
            self._carry = np.concatenate([self._carry, pcm - np.float32(EMPHASIS) * before])
        count = max(0, (len(self._carry) - SPAN) // HOP + 1)
        if count == 0:
            return np.zeros((0, BANDS), np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(self._carry, SPAN)[: count * HOP : HOP]
        magnitude = np.abs(np.fft.rfft(frames * self._taper, axis=1)).astype(np.float32)
        self._carry = self._carry[count * HOP :].copy()
        # One column at a time: a batched product may round otherwise, and chunks must equal the whole.
        bands = np.stack([row @ self._filters for row in magnitude])
        decibels = 20 * np.log10(np.maximum(bands, 1e-5)) - 20
        return np.asarray(np.clip(8 * (decibels + 100) / 100 + SILENCE, SILENCE, -SILENCE), np.float32)


def window(columns: F32, start: int) -> F32:
    """(m, 80) columns -> (1, 80, 16), those from `start` on; the last 16 where it would reach beyond.

    Raises ValueError where there are fewer than 16.
    """
    if len(columns) < COLUMNS:
        raise ValueError(f"{len(columns)} mel columns are there and {COLUMNS} are needed")
    start = min(start, len(columns) - COLUMNS)
    return np.ascontiguousarray(columns[start : start + COLUMNS].T[None])
