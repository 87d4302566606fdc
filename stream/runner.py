"""Where engines run: the seam between the event loop and whatever computes."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Protocol

from retalk_models.engine import (
    Engine,
    EngineOptions,
    EngineResult,
    EngineSession,
    EngineWindow,
    LanedEngine,
)


def processor_s(engine: Engine) -> float:
    """Processor seconds so far of this process, and of those that the engine has besides."""
    return time.process_time() + (engine.cpu_s() if isinstance(engine, LanedEngine) else 0.0)


class EngineRunner(Protocol):
    """Runs engine sessions. A handle names one; everything else that crosses is plain values and arrays."""

    async def open(self, engine: Engine, options: EngineOptions) -> int: ...

    async def run(self, handle: int, window: EngineWindow, due_in_us: int) -> EngineResult:
        """Dub one window. Of all sessions' windows the one due first goes first."""
        ...

    async def close(self, handle: int) -> None:
        """Close a session; unknown handles are fine."""
        ...

    def abandon(self, handle: int) -> None:
        """The session does not answer: never use it again, and let nobody else wait for it."""
        ...


class InlineRunner:
    """Runs engines where it is called: for files on a virtual clock, where nothing else is waiting."""

    def __init__(self) -> None:
        self._sessions: dict[int, EngineSession] = {}
        self._names = itertools.count(1)

    async def open(self, engine: Engine, options: EngineOptions) -> int:
        handle = next(self._names)
        self._sessions[handle] = engine.open_session(options)
        return handle

    async def run(self, handle: int, window: EngineWindow, due_in_us: int) -> EngineResult:
        return self._sessions[handle].process(window)

    async def close(self, handle: int) -> None:
        session = self._sessions.pop(handle, None)
        if session is not None:
            session.close()

    def abandon(self, handle: int) -> None:
        self._sessions.pop(handle, None)


class PreparedRunner:
    """A runner whose first session is open before anybody's clock runs: opening one takes its time."""

    def __init__(self, runner: EngineRunner) -> None:
        self._runner = runner
        self._opening: asyncio.Task[int] | None = None

    async def prepare(self, engine: Engine, options: EngineOptions) -> None:
        """Open what `open` gives first. A fault is kept for it."""
        self._opening = asyncio.create_task(self._runner.open(engine, options), name="engine opening")
        await asyncio.wait([self._opening])

    async def open(self, engine: Engine, options: EngineOptions) -> int:
        opening, self._opening = self._opening, None
        return await (self._runner.open(engine, options) if opening is None else opening)

    async def run(self, handle: int, window: EngineWindow, due_in_us: int) -> EngineResult:
        return await self._runner.run(handle, window, due_in_us)

    async def close(self, handle: int) -> None:
        await self._runner.close(handle)

    def abandon(self, handle: int) -> None:
        self._runner.abandon(handle)
