"""A small engine of known behaviour, for tests of the edge."""

from __future__ import annotations

from collections.abc import Mapping

from retalk_models.engine import (
    EngineOptions,
    EngineOutput,
    EngineResult,
    EngineSession,
    EngineWindow,
    FaceState,
)
from retalk_models.picture import Box, Picture

LIGHT = 235
QUIET = 16


class PatchEngine:
    """Paints a square into each frame's middle: bright while the voice is active, dark while it is not.

    So a test sees in the received picture whether a frame was dubbed, and with which part of the voice.
    """

    name = "patch"
    device = "cpu"
    look_ahead_us = 40_000
    weights: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.open_sessions = 0

    def open_session(self, options: EngineOptions) -> EngineSession:
        self.open_sessions += 1
        return _PatchSession(self)


class _PatchSession:
    def __init__(self, engine: PatchEngine) -> None:
        self._engine: PatchEngine | None = engine

    def process(self, window: EngineWindow) -> EngineResult:
        outputs = []
        for frame in window.frames:
            box = middle(frame.picture.width, frame.picture.height)
            picture = frame.picture.copy()
            picture.y[box.top : box.bottom, box.left : box.right] = LIGHT if frame.voice_active else QUIET
            outputs.append(EngineOutput(picture, FaceState.TRACKED, box, 1.0))
        return EngineResult(tuple(outputs), {"patch": 0.1})

    def close(self) -> None:
        if self._engine is not None:
            self._engine.open_sessions -= 1
            self._engine = None


def middle(width: int, height: int) -> Box:
    """The square that the engine paints."""
    left, top = (width // 2 - 24) & ~1, (height // 2 - 24) & ~1
    return Box(left, top, left + 48, top + 48)


def mean_of(picture: Picture) -> float:
    """The mean luma of that square in a picture."""
    box = middle(picture.width, picture.height)
    return float(picture.y[box.top + 8 : box.bottom - 8, box.left + 8 : box.right - 8].mean())
