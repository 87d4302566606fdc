"""The voice of a session as mel columns, by position: restarted at every epoch and jump, bounded."""

from __future__ import annotations

import numpy as np

from retalk_models.engine import EngineWindow
from retalk_models.picture import F32
from retalk_models.videoretalking.mel import BANDS, COLUMNS, HOP, SILENCE, VoiceMel


class VoiceColumns:
    """Holds the columns from the last window's first frame on, or from the last frame's that was drawn."""

    def __init__(self) -> None:
        self._mel = VoiceMel()
        self._epoch: int | None = None
        self._heard_until = 0
        self._columns: F32 = np.zeros((0, BANDS), np.float32)
        self._first_at = 0

    def hear(self, window: EngineWindow) -> None:
        """Take in a window's voice; begin anew where it does not continue the last one.

        What only frames before this window's could hear is let go, whether or not any of them was drawn.
        """
        if window.epoch != self._epoch or window.voice_start != self._heard_until:
            self._mel.reset()
            self._columns = np.zeros((0, BANDS), np.float32)
            self._first_at = window.voice_start
        self._epoch, self._heard_until = window.epoch, window.voice_start + len(window.voice)
        self._columns = np.concatenate([self._columns, self._mel.push(window.voice)])
        if window.frames:
            self._pass(window.frames[0].voice_at)

    def at(self, voice_at: int, loudness: float = 1.0) -> F32:
        """(1, 80, 16) for a frame heard at this sample; frames come in order, and older columns are let go.

        loudness: 0 hears silence, 1 the voice. What has not been said yet is silence.
        """
        self._pass(voice_at)
        out = np.full((COLUMNS, BANDS), SILENCE, np.float32)
        heard = self._columns[:COLUMNS]
        out[: len(heard)] += np.float32(loudness) * (heard - np.float32(SILENCE))
        return np.ascontiguousarray(out.T[None])

    def _pass(self, voice_at: int) -> None:
        """Let go of the columns that frames from this sample on do not hear."""
        passed = max(0, min((voice_at - self._first_at) // HOP, len(self._columns)))
        self._columns = self._columns[passed:]
        self._first_at += passed * HOP
