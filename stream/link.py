"""A session's line to its engine: one call at a time, never waited for longer than agreed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from retalk_models.engine import Engine, EngineOptions, EngineResult
from stream.clock import Bell, Clock
from stream.runner import EngineRunner
from stream.windows import Window

_FIRST_CALL_PATIENCE = 10
_CLOSE_S = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A call that ended: with a result, or with what went wrong in one line.

    warm_up: the first window after an opening; what it cost says nothing about the next.
    """

    window: Window | None
    result: EngineResult | None
    fault: str
    cost_us: int
    warm_up: bool


class EngineLink:
    """Opens the engine's session, runs windows, and after a fault opens it anew; rings `bell` after a call.

    A call that takes longer than `timeout_us` (ten times that for an opening and the first window, which load
    and warm up) is given up: its thread is abandoned, and so is the engine's session.
    """

    def __init__(
        self,
        clock: Clock,
        bell: Bell,
        runner: EngineRunner,
        engine: Engine,
        options: EngineOptions,
        timeout_us: int,
    ) -> None:
        self._clock = clock
        self._bell = bell
        self._runner = runner
        self._engine = engine
        self._options = options
        self._timeout_us = timeout_us
        self._handle: int | None = None
        self._cold = True
        self._task: asyncio.Task[None] | None = None
        self._window: Window | None = None
        self._began_us = 0
        self._finished: Finished | None = None

    @property
    def busy(self) -> bool:
        """Whether a call is under way or has not been collected yet."""
        return self._task is not None or self._finished is not None

    @property
    def is_open(self) -> bool:
        return self._handle is not None

    def open(self, group: asyncio.TaskGroup) -> None:
        """Begin to open the engine's session."""
        self._begin(group, None, 0)

    def run(self, group: asyncio.TaskGroup, window: Window, due_in_us: int) -> None:
        """Begin to dub a window."""
        self._begin(group, window, due_in_us)

    def wake_us(self) -> int | None:
        """When the call under way is to be given up."""
        return None if self._task is None else self._began_us + self._patience_us()

    def collect(self) -> Finished | None:
        """What ended since the last look, if anything did. Gives up a call that takes too long."""
        now_us = self._clock.now_us()
        if self._task is not None and now_us >= self._began_us + self._patience_us():
            self._give_up(now_us)
        finished, self._finished = self._finished, None
        return finished

    async def close(self) -> None:
        """Give the engine's session back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._runner.close(handle)
        except TimeoutError:
            self._runner.abandon(handle)

    def _patience_us(self) -> int:
        return self._timeout_us * (_FIRST_CALL_PATIENCE if self._cold else 1)

    def _begin(self, group: asyncio.TaskGroup, window: Window | None, due_in_us: int) -> None:
        assert not self.busy
        self._window = window
        self._began_us = self._clock.now_us()
        self._task = self._clock.start(group, self._call(window, due_in_us), "engine call")

    async def _call(self, window: Window | None, due_in_us: int) -> None:
        result: EngineResult | None = None
        fault = ""
        try:
            if window is None:
                self._handle = await self._runner.open(self._engine, self._options)
            elif self._handle is not None:
                result = await self._runner.run(self._handle, window.engine, due_in_us)
                if len(result.outputs) != len(window.frames):
                    raise ValueError(f"{len(result.outputs)} outputs for {len(window.frames)} frames")
        except Exception as error:  # an engine's fault costs quality, never the stream
            result, fault = None, f"{type(error).__name__}: {error}".splitlines()[0]
            await self._discard()
        self._end(result, fault, self._clock.now_us())

    def _end(self, result: EngineResult | None, fault: str, now_us: int) -> None:
        self._finished = Finished(self._window, result, fault, now_us - self._began_us, self._cold)
        if result is not None:
            self._cold = False
        self._task = self._window = None
        self._bell.ring()

    async def _discard(self) -> None:
        """After a fault the session's state is anybody's guess: close it; a new one is opened to go on."""
        handle, self._handle = self._handle, None
        self._cold = True
        if handle is not None:
            try:
                await self._runner.close(handle)
            except asyncio.CancelledError:  # given up, or the session ends: nobody may wait for it either
                self._runner.abandon(handle)
                raise
            except Exception:  # it has failed before; that it cannot close either adds nothing
                self._runner.abandon(handle)

    def _give_up(self, now_us: int) -> None:
        assert self._task is not None
        self._task.cancel()
        handle, self._handle = self._handle, None
        self._cold = True
        if handle is not None:
            self._runner.abandon(handle)
        waited_ms = (now_us - self._began_us) // 1000
        self._end(None, f"no answer from the engine for {waited_ms} ms", now_us)
