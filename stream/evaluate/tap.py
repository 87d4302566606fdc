"""An engine that lets its pictures be measured before anything encodes them."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

from retalk_models.engine import Engine, EngineOptions, EngineResult, EngineSession, EngineWindow
from retalk_models.evaluation.pictures import PictureMeter


class TapEngine:
    """One dub's engine, with a meter for its pictures. Opens sessions of the inner engine."""

    def __init__(self, inner: Engine, meter: PictureMeter) -> None:
        self._inner, self._meter = inner, meter
        self.stage_ms: dict[str, float] = {}
        self.busy_s = 0.0
        self.frames = 0

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def device(self) -> str:
        return self._inner.device

    @property
    def look_ahead_us(self) -> int:
        return self._inner.look_ahead_us

    @property
    def weights(self) -> Mapping[str, str]:
        return self._inner.weights

    def open_session(self, options: EngineOptions) -> EngineSession:
        return _TapSession(self, self._inner.open_session(options))

    def take(self, window: EngineWindow, result: EngineResult, seconds: float) -> None:
        """Measure one window's pictures; `seconds` is what the engine took for them."""
        self.busy_s += seconds
        for name, milliseconds in result.stage_ms.items():
            self.stage_ms[name] = self.stage_ms.get(name, 0.0) + milliseconds
        for frame, output in zip(window.frames, result.outputs, strict=True):
            self._meter.add(self.frames, frame.picture, output.picture)
            self.frames += 1


class _TapSession:
    def __init__(self, tap: TapEngine, inner: EngineSession) -> None:
        self._tap, self._inner = tap, inner

    def process(self, window: EngineWindow) -> EngineResult:
        began = perf_counter()
        result = self._inner.process(window)
        self._tap.take(window, result, perf_counter() - began)
        return result

    def close(self) -> None:
        self._inner.close()
