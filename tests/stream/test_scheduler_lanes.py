"""The scheduler before an engine whose sessions live in lanes; here those are locks and not processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from retalk_models.engine import (
    EngineFrame,
    EngineOptions,
    EngineResult,
    EngineSession,
    EngineWindow,
    LanedEngine,
    LanedSession,
)
from stream import link as link_module
from stream.clock import Bell, MonotonicClock
from stream.link import EngineLink, Finished
from stream.scheduler import Scheduler
from stream.windows import Window
from tests.stream.fakes import FakeEngine, flat_picture

PATIENCE_S = 10.0


def window() -> EngineWindow:
    frame = EngineFrame(flat_picture(), 0, 0, False)
    return EngineWindow((frame,), np.zeros(640, np.float32), 0, 0)


class Call:
    """One that hangs, holding its lane, until it is released."""

    def __init__(self) -> None:
        self.came, self.released = threading.Event(), threading.Event()

    async def happens(self) -> None:
        assert await asyncio.to_thread(self.came.wait, PATIENCE_S)


class LanedFake(FakeEngine):
    """Session k, counted from 1, goes to places[k - 1]; a lane does one call at a time."""

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__()
        self._places = places
        self._turns = {lane: threading.Lock() for lane in places}
        self._calls: dict[tuple[str, int], Call] = {}
        self._count = 0
        self.aborted: list[int] = []

    @property
    def lanes(self) -> int:
        return len(self._turns)

    def cpu_s(self) -> float:
        return 0.0

    def expect(self, verb: str, number: int, *, hangs: bool = False) -> Call:
        """That call of a session, to be waited for; it hangs where that is said."""
        call = self._calls[verb, number] = Call()
        if not hangs:
            call.released.set()
        return call

    def do(self, verb: str, number: int) -> None:
        call = self._calls.get((verb, number))
        if call is not None:
            call.came.set()
        with self._turns[self.lane(number)]:
            if call is not None:
                assert call.released.wait(PATIENCE_S)

    def lane(self, number: int) -> int:
        return self._places[number - 1]

    def open_session(self, options: EngineOptions) -> EngineSession:
        self._count += 1
        number = self._count
        self.do("open", number)
        return LanedFakeSession(self, number, super().open_session(options))

    def abort(self, number: int) -> None:
        self.aborted.append(number)
        for (_, other), call in self._calls.items():
            if self.lane(other) == self.lane(number):
                call.released.set()


class LanedFakeSession:
    def __init__(self, engine: LanedFake, number: int, inner: EngineSession) -> None:
        self._engine, self._number, self._inner = engine, number, inner

    @property
    def lane(self) -> int:
        return self._engine.lane(self._number)

    def process(self, window: EngineWindow) -> EngineResult:
        self._engine.do("process", self._number)
        return self._inner.process(window)

    def close(self) -> None:
        self._engine.do("close", self._number)
        self._inner.close()

    def abort(self) -> None:
        self._engine.abort(self._number)


_: type[LanedEngine] = LanedFake
__: type[LanedSession] = LanedFakeSession


async def test_a_call_that_hangs_when_its_session_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """bug: once closing had been tried nothing ended it, and later sessions of its lane hung with it."""
    monkeypatch.setattr(link_module, "_CLOSE_S", 0.02)
    engine, scheduler = LanedFake([1, 1]), Scheduler()
    clock, bell = MonotonicClock(), Bell()
    link = EngineLink(clock, bell, scheduler, engine, EngineOptions(), 10_000_000)

    async def collected() -> Finished:
        while (finished := link.collect()) is None:
            await clock.wait(bell)
        return finished

    hung = engine.expect("process", 1, hangs=True)
    async with asyncio.TaskGroup() as group:
        link.open(group)
        await collected()
        link.run(group, Window(window(), ()), 0)
        await hung.happens()
        await link.close()
    assert engine.aborted == [1]
    async with asyncio.timeout(PATIENCE_S):
        other = await scheduler.open(engine, EngineOptions())
        assert len((await scheduler.run(other, window(), 0)).outputs) == 1
        await scheduler.close(other)
    await scheduler.shutdown()


async def test_a_closing_that_nobody_waits_for_any_more_does_not_end_its_lane() -> None:
    """It ends by itself, and the lane is others', too."""
    engine, scheduler = LanedFake([1]), Scheduler()
    handle = await scheduler.open(engine, EngineOptions())
    slow = engine.expect("close", 1, hangs=True)
    closing = asyncio.create_task(scheduler.close(handle))
    await slow.happens()
    closing.cancel()
    scheduler.abandon(handle)
    scheduler.abandon(handle)
    assert engine.aborted == []
    slow.released.set()
    await scheduler.shutdown()


async def test_sessions_that_open_in_a_busy_lane_keep_no_thread_from_an_idle_one() -> None:
    """bug: with one thread in an opening and another in a window behind it, every other lane stood still."""
    engine, scheduler = LanedFake([1, 2, 1, 1]), Scheduler(workers=2)
    first, second = [await scheduler.open(engine, EngineOptions()) for _ in range(2)]
    slow, behind = engine.expect("open", 3, hangs=True), engine.expect("process", 1)
    openings = [asyncio.create_task(scheduler.open(engine, EngineOptions())) for _ in range(2)]
    await slow.happens()
    waits = asyncio.create_task(scheduler.run(first, window(), 0))
    await behind.happens()
    async with asyncio.timeout(PATIENCE_S / 2):
        for _ in range(3):
            await scheduler.run(second, window(), 0)
    assert not waits.done()
    slow.released.set()
    await asyncio.gather(waits, *openings)
    await scheduler.shutdown()


async def test_sessions_that_close_behind_a_call_keep_no_thread_from_another_lane() -> None:
    """bug: a closing waited for its lane's turn in a thread."""
    engine, scheduler = LanedFake([1, 2, 1, 1]), Scheduler(workers=2)
    first, second, *leaving = [await scheduler.open(engine, EngineOptions()) for _ in range(4)]
    slow = engine.expect("process", 1, hangs=True)
    waits = asyncio.create_task(scheduler.run(first, window(), 0))
    await slow.happens()
    closings = [asyncio.create_task(scheduler.close(handle)) for handle in leaving]
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_S / 2):
        await scheduler.run(second, window(), 900_000)
    assert not any(closing.done() for closing in closings)
    slow.released.set()
    await asyncio.gather(waits, *closings)
    assert engine.closed == 2
    await scheduler.shutdown()


async def test_sessions_open_side_by_side_while_no_lane_is_in_use() -> None:
    engine, scheduler = LanedFake([1, 2]), Scheduler(workers=2)
    slow = [engine.expect("open", number, hangs=True) for number in (1, 2)]
    openings = [asyncio.create_task(scheduler.open(engine, EngineOptions())) for _ in slow]
    for call in slow:
        await call.happens()
    for call in slow:
        call.released.set()
    await asyncio.gather(*openings)
    await scheduler.shutdown()
