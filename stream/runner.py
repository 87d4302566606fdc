"""Where engines run: the seam between the event loop and whatever computes."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from retalk_models.engine import Engine, EngineOptions, EngineResult, EngineSession, EngineWindow

T = TypeVar("T")


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


@dataclass(order=True)
class _Job:
    due_s: float
    order: int
    work: Callable[[], Any] = field(compare=False)
    done: asyncio.Future[Any] = field(compare=False)
    loop: asyncio.AbstractEventLoop = field(compare=False)
    handle: int = field(compare=False, default=0)


class _Worker(threading.Thread):
    """One thread that takes the job due first; told to leave, it finishes what it is at and goes."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.jobs: list[_Job] = []
        self.changed = threading.Condition()
        self.leaving = False
        self.current = 0

    def submit(self, job: _Job) -> None:
        with self.changed:
            heapq.heappush(self.jobs, job)
            self.changed.notify()

    def leave(self) -> list[_Job]:
        """Stop after the current job; what had not begun is given back."""
        with self.changed:
            self.leaving = True
            left, self.jobs = self.jobs, []
            self.changed.notify()
        return left

    def run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.leaving or self.jobs)
                if self.leaving:
                    return
                job = heapq.heappop(self.jobs)
                self.current = job.handle
            if not job.done.cancelled():
                self._do(job)
            with self.changed:
                self.current = 0

    def _do(self, job: _Job) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = job.work()
        except (
            BaseException
        ) as raised:  # whatever an engine raises belongs to its session, not to this thread
            error = raised
        try:
            job.loop.call_soon_threadsafe(_settle, job.done, result, error)
        except RuntimeError:  # the loop has closed; nobody is left to be told
            return


def _settle(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.done():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(result)


class EngineStuck(RuntimeError):
    """Too many engine calls never returned; this runner starts no more."""


class ThreadRunner:
    """One thread for one device, shared by all its sessions, earliest deadline first.

    A call that does not return cannot be stopped in Python: its thread is left to itself and a new one takes
    over, at most `spare_threads` times.
    """

    def __init__(self, name: str = "engine", spare_threads: int = 4) -> None:
        self._name = name
        self._spare = spare_threads
        self._sessions: dict[int, EngineSession] = {}
        self._names = itertools.count(1)
        self._orders = itertools.count()
        self._worker: _Worker | None = None
        self._lost: list[_Worker] = []

    async def open(self, engine: Engine, options: EngineOptions) -> int:
        handle = next(self._names)
        unwanted = threading.Event()

        def opened() -> EngineSession:
            session = engine.open_session(options)
            if unwanted.is_set():
                session.close()
            return session

        try:
            self._sessions[handle] = await self._call(handle, opened, 1_000_000)
        except asyncio.CancelledError:
            unwanted.set()
            self.abandon(handle)
            raise
        return handle

    async def run(self, handle: int, window: EngineWindow, due_in_us: int) -> EngineResult:
        session = self._sessions[handle]
        return await self._call(handle, lambda: session.process(window), due_in_us)

    async def close(self, handle: int) -> None:
        session = self._sessions.pop(handle, None)
        if session is not None:
            await self._call(handle, session.close, 0)

    def abandon(self, handle: int) -> None:
        self._sessions.pop(handle, None)
        worker = self._worker
        if worker is None or worker.current != handle:
            return
        left = worker.leave()
        self._lost = [w for w in self._lost if w.is_alive()] + [worker]
        self._worker = None
        for job in left:
            if job.handle == handle:
                job.done.cancel()
            else:
                self._started().submit(job)

    async def shutdown(self) -> None:
        """Stop the thread after what it is at, and wait for it."""
        worker, self._worker = self._worker, None
        if worker is not None:
            for job in worker.leave():
                job.done.cancel()
            await asyncio.to_thread(worker.join, 5.0)

    async def _call(self, handle: int, work: Callable[[], T], due_in_us: int) -> T:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        due_s = time.monotonic() + due_in_us / 1e6
        self._started().submit(_Job(due_s, next(self._orders), work, done, loop, handle))
        return await done

    def _started(self) -> _Worker:
        if self._worker is None:
            self._lost = [w for w in self._lost if w.is_alive()]
            if len(self._lost) > self._spare:
                raise EngineStuck(f"{len(self._lost)} calls of engine {self._name!r} never returned")
            self._worker = _Worker(f"retalk-{self._name}")
            self._worker.start()
        return self._worker
