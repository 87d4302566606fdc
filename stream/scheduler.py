"""Runs all sessions' windows on one device: earliest deadline first, batched where the engine can, fairly."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from retalk_models.engine import (
    BatchEngine,
    Engine,
    EngineOptions,
    EngineResult,
    EngineSession,
    EngineWindow,
    LanedEngine,
    LanedSession,
)
from stream.batching import CostTable, Shares

T = TypeVar("T")

_COMPANY_S = 0.010
_OPENING_DUE_S = 1.0
_MOST_THREADS = 4
_TURN_S = 0.0005


def threads_for(engine: Engine) -> int:
    """How many threads an engine gets: one for each lane, where it has lanes; one for a GPU, whoever asks it.

    Else a window is one core's work, and one for every two cores: an engine's many short calls need the
    interpreter's lock, two at once wait for it most of the time, and encoders and the event loop need a core.
    """
    if isinstance(engine, LanedEngine):
        return engine.lanes
    if engine.device.startswith("cuda"):
        return 1
    return min(_MOST_THREADS, max(1, len(os.sched_getaffinity(0)) // 2))


def _take_short_turns() -> None:
    """Let no thread of this process keep the interpreter's lock for long while another waits.

    An engine gives it up at every picture operation; at Python's own 5 ms it then waits out another's turn so
    often that a window of 15 ms takes 40.
    """
    sys.setswitchinterval(min(_TURN_S, sys.getswitchinterval()))


class EngineStuck(RuntimeError):
    """Too many engine calls never returned; this scheduler starts no more."""


class BatchLost(RuntimeError):
    """Another session's window, in the same call of the engine, never returned."""


@dataclass(eq=False)
class _Job:
    """A call that waits. window: what may share a call with others; else `work` is called alone."""

    handle: int
    due_s: float
    order: int
    done: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    work: Callable[[], Any]
    window: EngineWindow | None = None
    closing: bool = False
    came_s: float = field(default_factory=time.monotonic)

    @property
    def opening(self) -> bool:
        return self.window is None and not self.closing


@dataclass(eq=False)
class _Open:
    """A session that is open; its engine where that takes windows of several at once, and its lane."""

    session: EngineSession
    batching: BatchEngine | None
    lane: int | None
    closing: bool = False


class Scheduler:
    """An EngineRunner of one thread for a device, or of several where the engine's own work is one thread's.

    workers: how many windows are dubbed at once. Where sessions have lanes there may be a thread more: what
    opens goes to a lane that nobody knows yet, and may wait there for another's call, but never keeps the
    thread of a lane that is in use.

    A window waits at most 10 ms for company, and only where company may come and its deadline allows it. A
    session that has used more than its share of the device lets those go first that have not, whatever their
    deadlines: who is always late would otherwise always be first. Calls of one session never overlap.
    A call that does not return cannot be stopped in Python: its thread is left to itself and a new one takes
    over, at most `spare_threads` times. That of a LanedSession is ended. Only what has not returned for
    `stuck_s` counts: a session that leaves while it opens is given up, too.
    """

    def __init__(
        self, name: str = "engine", workers: int = 1, spare_threads: int = 4, stuck_s: float = 30.0
    ) -> None:
        _take_short_turns()
        self._name = name
        self._most = workers
        self._spare = spare_threads
        self._stuck_s = stuck_s
        self._open: dict[int, _Open] = {}
        self._names = itertools.count(1)
        self._orders = itertools.count()
        self._workers: list[_Worker] = []
        self._lost_s: dict[_Worker, float] = {}
        self.changed = threading.Condition()
        self.jobs: list[_Job] = []
        self.running: set[int] = set()
        self.costs = CostTable()
        self.shares = Shares()

    # --- from the event loop

    async def open(self, engine: Engine, options: EngineOptions) -> int:
        handle = next(self._names)
        unwanted = False
        made: list[EngineSession] = []

        def opened() -> EngineSession:
            session = engine.open_session(options)
            with self.changed:
                made.append(session)
                if not unwanted:
                    return session
            session.close()
            return session

        try:
            session = await self._call(handle, opened, _OPENING_DUE_S)
        except asyncio.CancelledError:
            with self.changed:
                unwanted = True
            if made:
                self._enter(handle, engine, made[0])
                self._close_unasked(handle)
            else:
                self.abandon(handle)
            raise
        self._enter(handle, engine, session)
        return handle

    async def run(self, handle: int, window: EngineWindow, due_in_us: int) -> EngineResult:
        session = self._open[handle].session
        return await self._call(handle, lambda: session.process(window), due_in_us / 1e6, window)

    async def close(self, handle: int) -> None:
        closed = self._begin_closing(handle)
        if closed is not None:
            # Who no longer waits for it still wants it closed.
            await asyncio.shield(closed)

    def abandon(self, handle: int) -> None:
        with self.changed:
            stuck = next((w for w in self._workers if handle in w.handles), None)
            for job in [job for job in self.jobs if job.handle == handle]:
                if stuck is not None or not job.closing:
                    self.jobs.remove(job)
                    job.done.cancel()
            if stuck is None:
                self._close_unasked(handle)
                return
            opened = self._forget(handle)
            stuck.leaving = True
            self._workers.remove(stuck)
            self._lost_s[stuck] = time.monotonic()
            self.running -= stuck.handles
            for job in stuck.batch:
                if job.handle != handle:
                    # Its state is in the hands of a thread that may yet go on.
                    self._forget(job.handle)
                    job.loop.call_soon(_settle, job.done, None, BatchLost(self._name))
            waiting = bool(self.jobs)
            self.changed.notify_all()
        # A closing ends by itself; to end its lane would cost the others that are in it.
        closes = any(job.closing for job in stuck.batch)
        if opened is not None and isinstance(opened.session, LanedSession) and not closes:
            opened.session.abort()
        if waiting:
            # Who gives up has nothing to do with those that wait; they are told when they next ask.
            with contextlib.suppress(EngineStuck):
                self._ensure_worker()

    def load(self) -> Mapping[int, float]:
        """Seconds of the device per second that each open session took lately, by its handle."""
        with self.changed:
            return self.shares.loads(time.monotonic())

    async def shutdown(self) -> None:
        """Stop every thread after what it is at, and wait for it."""
        with self.changed:
            workers, self._workers = self._workers, []
            left, self.jobs = self.jobs, []
            for worker in workers:
                worker.leaving = True
            self.changed.notify_all()
        for job in left:
            job.done.cancel()
        for worker in workers:
            await asyncio.to_thread(worker.join, 5.0)

    async def _call(
        self, handle: int, work: Callable[[], T], due_in_s: float, window: EngineWindow | None = None
    ) -> T:
        return await self._submit(handle, work, due_in_s, window)

    def _submit(
        self,
        handle: int,
        work: Callable[[], T],
        due_in_s: float,
        window: EngineWindow | None = None,
        closing: bool = False,
    ) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        due_s = time.monotonic() + due_in_s
        self._ensure_worker(handle)
        with self.changed:
            self.jobs.append(_Job(handle, due_s, next(self._orders), done, loop, work, window, closing))
            self.changed.notify_all()
        return done

    def _enter(self, handle: int, engine: Engine, session: EngineSession) -> None:
        batching = engine if isinstance(engine, BatchEngine) else None
        lane = session.lane if isinstance(session, LanedSession) else None
        with self.changed:
            self._open[handle] = _Open(session, batching, lane)
            self.shares.join(handle)

    def _begin_closing(self, handle: int) -> asyncio.Future[None] | None:
        """Close a session after its call under way; None where there is none, or it closes already.

        It stays known until then: where that call hangs, `abandon` has to know what to end.
        """
        with self.changed:
            opened = self._open.get(handle)
            if opened is None or opened.closing:
                return None
            opened.closing = True
            self.shares.leave(handle)
            try:
                return self._submit(handle, opened.session.close, 0.0, closing=True)
            except EngineStuck:
                self._forget(handle)
                raise

    def _close_unasked(self, handle: int) -> None:
        """Close a session for which nobody waits any more."""
        with contextlib.suppress(EngineStuck):
            closed = self._begin_closing(handle)
            if closed is not None:
                closed.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    def _forget(self, handle: int) -> _Open | None:
        with self.changed:
            self.shares.leave(handle)
            return self._open.pop(handle, None)

    def _ensure_worker(self, *newcomer: int) -> None:
        with self.changed:
            # One that is being opened keeps a thread too, perhaps for seconds.
            handles = {*self._open, *self.running, *(job.handle for job in self.jobs), *newcomer}
            if len(self._workers) >= min(self._threads(), len(handles)):
                return
            self._lost_s = {lost: since_s for lost, since_s in self._lost_s.items() if lost.is_alive()}
            before_s = time.monotonic() - self._stuck_s
            stuck = sum(since_s <= before_s for since_s in self._lost_s.values())
            if stuck > self._spare:
                raise EngineStuck(f"{stuck} calls of engine {self._name!r} never returned")
            worker = _Worker(self, f"retalk-{self._name}")
            self._workers.append(worker)
        worker.start()

    # --- from the workers' threads, under `changed`

    def next_batch(self, now_s: float) -> tuple[list[_Job], float | None]:
        """The jobs of the next call, or none and for how many seconds to wait (None: until told)."""
        under_way = [job for worker in self._workers for job in worker.batch]
        taken = {self._lane(job) for job in under_way} - {None}
        opening = sum(job.opening for job in under_way)
        may_open = opening < max(1, self._threads() - len(self._lanes_in_use()))
        ready = [
            job
            for job in self.jobs
            if job.handle not in self.running
            and self._lane(job) not in taken
            and (may_open or not job.opening)
        ]
        if not ready:
            return [], None
        greedy = self.shares.greedy(now_s, max(1, min(self._most, len(self._workers))))
        ready.sort(key=lambda job: (job.handle in greedy, job.due_s, job.order))
        first = ready[0]
        engine = self.batching(first)
        if engine is None:
            self.jobs.remove(first)
            return [first], None
        mates = [job for job in ready if self.batching(job) is engine][: engine.most_windows]
        slack_s = min(job.due_s for job in mates) - now_s
        count = self.costs.best(len(mates), slack_s)
        if count == len(mates) < engine.most_windows and self._company_may_come(engine):
            until_s = min(first.came_s + _COMPANY_S, now_s + slack_s - self.costs.seconds(count + 1))
            if until_s > now_s:
                return [], until_s - now_s
        for job in mates[:count]:
            self.jobs.remove(job)
        return mates[:count], None

    def batching(self, job: _Job) -> BatchEngine | None:
        """The engine that takes this job's window together with others; None where it is called alone."""
        opened = self._open.get(job.handle)
        return None if job.window is None or opened is None else opened.batching

    def _lane(self, job: _Job) -> int | None:
        opened = self._open.get(job.handle)
        return None if opened is None else opened.lane

    def _lanes_in_use(self) -> set[int]:
        return {opened.lane for opened in self._open.values() if opened.lane is not None}

    def _threads(self) -> int:
        return self._most + bool(self._lanes_in_use())

    def finish(self, batch: list[_Job], spent_s: float) -> None:
        """A call has ended, with a result or without."""
        now_s = time.monotonic()
        self.running -= {job.handle for job in batch}
        for job in batch:
            self.shares.spend(job.handle, spent_s / len(batch), now_s)
            if job.closing:
                self._forget(job.handle)
        self.changed.notify_all()

    def _company_may_come(self, engine: BatchEngine) -> bool:
        busy = self.running | {job.handle for job in self.jobs}
        return any(one.batching is engine for handle, one in self._open.items() if handle not in busy)

    def dub_together(self, batch: list[_Job]) -> list[Any]:
        """One call for several windows; each job's result or exception."""
        with self.changed:
            opened = [self._open.get(job.handle) for job in batch]
        present = [(job, one) for job, one in zip(batch, opened, strict=True) if one is not None]
        if not present:
            return [BatchLost(self._name)] * len(batch)
        engine = present[0][1].batching
        assert engine is not None
        work = [(one.session, job.window) for job, one in present if job.window is not None]
        began_s = time.perf_counter()
        try:
            results = list(engine.process_many(work))
            if len(results) != len(work):
                raise ValueError(f"{len(results)} results for {len(work)} windows")
        except MemoryError:
            self.costs.limit(len(work) // 2)
            raise
        except RuntimeError as error:
            # torch's out-of-memory error is a RuntimeError; this room knows no torch.
            if "out of memory" in str(error).lower():
                self.costs.limit(len(work) // 2)
            raise
        self.costs.note(len(work), time.perf_counter() - began_s)
        by_job = dict(zip((id(job) for job, _ in present), results, strict=True))
        return [by_job.get(id(job), BatchLost(self._name)) for job in batch]


class _Worker(threading.Thread):
    """Takes what the scheduler says is next; told to leave, it finishes what it is at and goes."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._scheduler = scheduler
        self.batch: list[_Job] = []
        self.leaving = False

    @property
    def handles(self) -> set[int]:
        return {job.handle for job in self.batch}

    def run(self) -> None:
        scheduler = self._scheduler
        while True:
            with scheduler.changed:
                while not self.leaving:
                    self.batch, wait_s = scheduler.next_batch(time.monotonic())
                    if self.batch:
                        break
                    scheduler.changed.wait(wait_s)
                if self.leaving:
                    return
                scheduler.running |= self.handles
            began_s = time.monotonic()
            self._do([job for job in self.batch if not job.done.cancelled()])
            spent_s = time.monotonic() - began_s
            with scheduler.changed:
                if self.leaving:
                    return  # given up meanwhile: what it held belongs to others now
                scheduler.finish(self.batch, spent_s)
                self.batch = []

    def _do(self, batch: list[_Job]) -> None:
        if not batch:
            return
        try:
            together = self._scheduler.batching(batch[0]) is not None
            results = self._scheduler.dub_together(batch) if together else [batch[0].work()]
        except BaseException as raised:  # whatever an engine raises belongs to its sessions alone
            results = [raised] * len(batch)
        for job, result in zip(batch, results, strict=True):
            if isinstance(result, BaseException):
                self._tell(job, None, result)
            else:
                self._tell(job, result, None)

    def _tell(self, job: _Job, result: Any, error: BaseException | None) -> None:
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
