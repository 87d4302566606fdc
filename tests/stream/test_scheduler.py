from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from retalk_models.engine import EngineFrame, EngineOptions, EngineResult, EngineSession, EngineWindow
from stream.batching import CostTable
from stream.clock import Bell, MonotonicClock
from stream.link import EngineLink, Finished
from stream.scheduler import BatchLost, EngineStuck, Scheduler, threads_for
from stream.windows import Window
from tests.stream.fakes import FakeEngine, flat_picture


def window(time_us: int) -> EngineWindow:
    frame = EngineFrame(flat_picture(), time_us, 0, False)
    return EngineWindow((frame,), np.zeros(640, np.float32), 0, 0)


async def test_what_is_due_first_goes_first() -> None:
    gate = threading.Event()
    order: list[int] = []

    def before(w: EngineWindow) -> None:
        if w.frames[0].time_us == 0:
            gate.wait(5)
        order.append(w.frames[0].time_us)

    engine, runner = FakeEngine(before), Scheduler()
    handles = [await runner.open(engine, EngineOptions()) for _ in range(3)]
    runs = [asyncio.create_task(runner.run(handles[0], window(0), 0))]
    await asyncio.sleep(0.05)
    for handle, due_us in ((handles[0], 900_000), (handles[1], 300_000), (handles[2], 600_000)):
        runs.append(asyncio.create_task(runner.run(handle, window(due_us), due_us)))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*runs)
    assert order == [0, 300_000, 600_000, 900_000]
    for handle in handles:
        await runner.close(handle)
    await runner.close(12345)
    await runner.shutdown()
    assert engine.opened == engine.closed == 3


async def test_a_fault_stays_with_its_session() -> None:
    def before(w: EngineWindow) -> None:
        if w.frames[0].time_us == 1:
            raise MemoryError("none left")

    runner = Scheduler()
    handle = await runner.open(FakeEngine(before), EngineOptions())
    with pytest.raises(MemoryError, match="none left"):
        await runner.run(handle, window(1), 0)
    assert len((await runner.run(handle, window(2), 0)).outputs) == 1
    await runner.shutdown()


async def test_calls_that_never_return_are_left_behind_but_not_without_end() -> None:
    release = threading.Event()

    def before(w: EngineWindow) -> None:
        release.wait(20)

    engine, runner = FakeEngine(before), Scheduler(spare_threads=2, stuck_s=0.0)
    try:
        for _ in range(3):
            handle = await runner.open(engine, EngineOptions())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(runner.run(handle, window(0), 0), 0.05)
            runner.abandon(handle)
        with pytest.raises(EngineStuck, match="never returned"):
            await runner.open(engine, EngineOptions())
    finally:
        release.set()
    for _ in range(100):
        await asyncio.sleep(0.01)
        try:
            await runner.open(engine, EngineOptions())
            break
        except EngineStuck:
            continue
    else:
        pytest.fail("the runner does not recover when the calls return")
    await runner.shutdown()


async def test_openings_that_nobody_waits_for_do_not_count_as_calls_that_never_return() -> None:
    """bug: clients that came and went while their sessions opened stopped the sessions of the others."""
    began, release = threading.Semaphore(0), threading.Event()

    def opening() -> None:
        began.release()
        _wait(release)

    live, leaving = FakeEngine(), FakeEngine(opening=opening)
    runner = Scheduler(spare_threads=2)
    handle = await runner.open(live, EngineOptions())
    for _ in range(6):
        given_up = asyncio.create_task(runner.open(leaving, EngineOptions()))
        assert await asyncio.to_thread(began.acquire, timeout=5)
        given_up.cancel()
        await asyncio.wait([given_up])
        async with asyncio.timeout(5):
            assert len((await runner.run(handle, window(0), 0)).outputs) == 1
    release.set()
    await runner.shutdown()


async def test_giving_up_the_last_call_that_may_hang_ends_no_session() -> None:
    """bug: whoever gave it up while others waited was told EngineStuck, which ended its stream."""
    began, release = threading.Event(), threading.Event()

    def before(w: EngineWindow) -> None:
        began.set()
        _wait(release)

    engine, runner = FakeEngine(before), Scheduler(spare_threads=0, stuck_s=0.0)
    stuck, other = [await runner.open(engine, EngineOptions()) for _ in range(2)]
    hung = asyncio.create_task(runner.run(stuck, window(0), 0))
    assert await asyncio.to_thread(began.wait, 5)
    behind = asyncio.create_task(runner.run(other, window(1), 0))
    await asyncio.sleep(0)
    runner.abandon(stuck)
    with pytest.raises(EngineStuck):
        await runner.open(engine, EngineOptions())
    release.set()
    for lost in runner._lost_s:
        await asyncio.to_thread(lost.join, 5)
    await runner.open(engine, EngineOptions())
    assert len((await asyncio.wait_for(behind, 5)).outputs) == 1
    hung.cancel()
    await runner.shutdown()


async def test_work_waiting_behind_a_stuck_call_is_done_by_the_next_thread() -> None:
    release = threading.Event()
    engine = FakeEngine(lambda w: None if w.frames[0].time_us else _wait(release))
    runner = Scheduler()
    stuck, other = [await runner.open(engine, EngineOptions()) for _ in range(2)]
    hung = asyncio.create_task(runner.run(stuck, window(0), 0))
    await asyncio.sleep(0.05)
    behind = asyncio.create_task(runner.run(other, window(1), 0))
    await asyncio.sleep(0)
    runner.abandon(stuck)
    assert len((await asyncio.wait_for(behind, 2)).outputs) == 1
    hung.cancel()
    release.set()
    await runner.shutdown()


async def test_a_session_given_up_in_the_instant_that_it_opened_is_closed() -> None:
    engine, runner = FakeEngine(), Scheduler()
    opening = asyncio.create_task(runner.open(engine, EngineOptions()))
    await asyncio.sleep(0)
    while not engine.opened:
        time.sleep(0.01)  # noqa: ASYNC251  the loop itself is not to learn of it yet
    time.sleep(0.05)  # noqa: ASYNC251
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await until_closed(engine)
    await runner.shutdown()
    assert engine.closed == 1


async def until_closed(engine: FakeEngine) -> None:
    for _ in range(100):
        if engine.closed:
            return
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("closes", [False, True])
async def test_a_session_given_up_behind_anothers_call_is_closed(closes: bool) -> None:
    """Its engine never heard of it: nothing is stuck, and nothing else will ever close it."""
    release = threading.Event()
    engine = FakeEngine(lambda w: _wait(release))
    runner = Scheduler()
    busy, waiting = [await runner.open(engine, EngineOptions()) for _ in range(2)]
    call = asyncio.create_task(runner.run(busy, window(0), 0))
    await asyncio.sleep(0.05)
    given_up = asyncio.create_task(runner.close(waiting) if closes else runner.run(waiting, window(1), 0))
    await asyncio.sleep(0)
    given_up.cancel()
    runner.abandon(waiting)
    release.set()
    await call
    await until_closed(engine)
    await runner.shutdown()
    assert engine.closed == 1
    assert len(engine.windows) == 1


async def collected(link: EngineLink) -> Finished:
    for _ in range(200):
        finished = link.collect()
        if finished is not None:
            return finished
        await asyncio.sleep(0.01)
    pytest.fail("the call never ended")


async def test_a_session_that_raises_and_then_hangs_in_closing_stops_nobody_else() -> None:
    """One thread for the device: whoever keeps it unnoticed keeps it from everybody for good."""
    release = threading.Event()

    def fail(w: EngineWindow) -> None:
        raise RuntimeError("a kernel failed")

    class HangsInClosing(FakeEngine):
        def open_session(self, options: EngineOptions) -> EngineSession:
            session = super().open_session(options)
            session.close = lambda: _wait(release)  # type: ignore[method-assign]
            return session

    runner, clock = Scheduler(), MonotonicClock()
    link = EngineLink(clock, Bell(), runner, HangsInClosing(fail), EngineOptions(), 30_000)
    try:
        async with asyncio.TaskGroup() as group:
            link.open(group)
            await collected(link)
            link.run(group, Window(window(0), ()), 0)
            assert "no answer" in (await collected(link)).fault
        other = await asyncio.wait_for(runner.open(FakeEngine(), EngineOptions()), 2)
        assert len((await asyncio.wait_for(runner.run(other, window(1), 0), 2)).outputs) == 1
    finally:
        release.set()
    await runner.shutdown()


def _wait(event: threading.Event) -> None:
    event.wait(20)


class BatchingFake(FakeEngine):
    """Takes several windows at once and notes how many; each call lasts as the script says."""

    def __init__(self, call_s: Callable[[int], float] = lambda count: 0.002, most: int = 8) -> None:
        super().__init__()
        self._call_s = call_s
        self.most_windows = most
        self.batches: list[list[int]] = []
        self.raises: Exception | None = None
        self.spoils: set[int] = set()
        self.gate: threading.Event | None = None
        self.began = threading.Event()

    def process_many(
        self, work: Sequence[tuple[EngineSession, EngineWindow]]
    ) -> Sequence[EngineResult | Exception]:
        self.batches.append([w.frames[0].time_us for _, w in work])
        self.began.set()
        if self.gate is not None:
            self.gate.wait(5)
        if self.raises is not None:
            raise self.raises
        time.sleep(self._call_s(len(work)))
        return [
            ValueError("spoiled") if w.frames[0].time_us in self.spoils else session.process(w)
            for session, w in work
        ]


async def opened(engine: FakeEngine, count: int, workers: int = 1) -> tuple[Scheduler, list[int]]:
    scheduler = Scheduler(workers=workers)
    return scheduler, [await scheduler.open(engine, EngineOptions()) for _ in range(count)]


async def test_windows_of_several_sessions_go_in_one_call() -> None:
    engine = BatchingFake()
    scheduler, handles = await opened(engine, 4)
    results = await asyncio.gather(
        *(scheduler.run(handle, window(k), 200_000) for k, handle in enumerate(handles))
    )
    assert [len(r.outputs) for r in results] == [1, 1, 1, 1]
    assert engine.batches == [[0, 1, 2, 3]]
    await scheduler.shutdown()


async def test_a_window_waits_for_company_only_briefly_and_only_where_some_may_come() -> None:
    engine = BatchingFake()
    scheduler, handles = await opened(engine, 2)
    began = time.monotonic()
    await scheduler.run(handles[0], window(0), 200_000)
    waited = time.monotonic() - began
    assert waited >= 0.010, "it did not wait for the other session"
    began = time.monotonic()
    await scheduler.run(handles[0], window(1), 0)
    assert time.monotonic() - began < waited, "what is due now must not wait"
    await scheduler.close(handles[1])
    began = time.monotonic()
    await scheduler.run(handles[0], window(2), 200_000)
    assert time.monotonic() - began < 0.010 + 0.005, "there was nobody to wait for"
    await scheduler.shutdown()


def test_the_batch_is_as_large_as_the_first_deadline_allows() -> None:
    table = CostTable()
    for count, seconds in ((1, 0.010), (2, 0.012), (4, 0.020), (8, 0.080)):
        table.note(count, seconds)
    assert table.best(8, 1.0) == 4, "eight cost more each than four"
    assert table.best(8, 0.015) == 2
    assert table.best(1, 1.0) == 1
    assert table.best(4, -1.0) == 4, "what is late in any case goes the cheapest way"
    table.limit(2)
    assert table.best(8, 1.0) == 2
    for _ in range(60):
        table.note(2, 0.100)
    assert table.best(8, 1.0) == 1, "the table is refreshed while running"


def test_batches_grow_again_long_after_memory_was_short() -> None:
    """bug: once out of memory, whoever else used it then, batches stayed small for the server's life."""
    table = CostTable()
    for count in (1, 2, 4, 8):
        table.note(count, 0.01)
    table.limit(2)
    for _ in range(20_000):
        table.note(1, 0.01)
    assert table.best(8, 1.0) == 2, "nothing was learnt of larger ones"
    for _ in range(10_000):
        assert table.best(8, 1.0) == 2
        table.note(2, 0.01)
    assert table.best(8, 1.0) == 4
    table.limit(2)
    assert table.best(8, 1.0) == 2


async def test_a_spoiled_window_costs_its_own_session_alone() -> None:
    engine = BatchingFake()
    engine.spoils = {1}
    scheduler, handles = await opened(engine, 3)
    results = await asyncio.gather(
        *(scheduler.run(handle, window(k), 200_000) for k, handle in enumerate(handles)),
        return_exceptions=True,
    )
    assert engine.batches == [[0, 1, 2]]
    assert isinstance(results[1], ValueError)
    assert all(isinstance(results[k], EngineResult) for k in (0, 2))
    await scheduler.shutdown()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate")])
async def test_out_of_memory_makes_batches_smaller(error: Exception) -> None:
    engine = BatchingFake()
    engine.raises = error
    scheduler, handles = await opened(engine, 4)
    runs = (scheduler.run(handle, window(k), 200_000) for k, handle in enumerate(handles))
    results = await asyncio.gather(*runs, return_exceptions=True)
    assert all(isinstance(result, type(error)) for result in results)
    engine.raises = None
    await asyncio.gather(*(scheduler.run(handle, window(k), 200_000) for k, handle in enumerate(handles)))
    assert [len(batch) for batch in engine.batches] == [4, 2, 2]
    await scheduler.shutdown()


async def test_a_call_that_hangs_lets_its_company_go() -> None:
    engine = BatchingFake()
    engine.gate = threading.Event()
    scheduler, handles = await opened(engine, 3)
    runs = [
        asyncio.create_task(scheduler.run(handle, window(k), 200_000)) for k, handle in enumerate(handles)
    ]
    assert await asyncio.to_thread(engine.began.wait, 5)
    scheduler.abandon(handles[0])
    for run in runs[1:]:
        with pytest.raises(BatchLost):
            await asyncio.wait_for(run, 1)
    runs[0].cancel()
    engine.gate.set()
    fresh = await scheduler.open(FakeEngine(), EngineOptions())
    assert len((await asyncio.wait_for(scheduler.run(fresh, window(9), 0), 2)).outputs) == 1
    await scheduler.shutdown()


@pytest.mark.parametrize("late_by_us", [0, 1_000_000])
async def test_a_greedy_session_never_starves_another(late_by_us: int) -> None:
    """One takes 40 ms a window and is always due before the other, which takes 1 ms."""
    slow = FakeEngine(lambda w: time.sleep(0.04))
    quick = FakeEngine(lambda w: time.sleep(0.001))
    scheduler = Scheduler()
    heavy = [await scheduler.open(slow, EngineOptions()) for _ in range(2)]
    light = await scheduler.open(quick, EngineOptions())
    stop = asyncio.Event()

    async def load(handle: int) -> None:
        while not stop.is_set():
            await scheduler.run(handle, window(0), -late_by_us)

    hogs = [asyncio.create_task(load(handle)) for handle in heavy]
    await asyncio.sleep(0.6)
    waits = []
    for _ in range(20):
        began = time.monotonic()
        await asyncio.wait_for(scheduler.run(light, window(1), 100_000), 2)
        waits.append(time.monotonic() - began)
        await asyncio.sleep(0.005)
    stop.set()
    await asyncio.gather(*hogs)
    # It waits for the call under way, and never for a second one before it. A test machine may stutter.
    assert sorted(waits)[len(waits) * 3 // 4] < 0.08
    assert len(slow.windows) > 20, "the others starve instead"
    await scheduler.shutdown()


async def test_two_threads_share_sessions_and_never_one_session() -> None:
    at_once: set[int] = set()
    most, overlaps = 0, 0

    def before(w: EngineWindow) -> None:
        nonlocal most, overlaps
        name = w.voice_start
        overlaps += name in at_once
        at_once.add(name)
        most = max(most, len(at_once))
        time.sleep(0.01)
        at_once.discard(name)

    scheduler, handles = await opened(FakeEngine(before), 3, workers=2)

    def of(session: int, k: int) -> EngineWindow:
        frame = EngineFrame(flat_picture(), k, 0, False)
        return EngineWindow((frame,), np.zeros(0, np.float32), session, 0)

    await asyncio.gather(*(scheduler.run(handle, of(handle, k), 0) for handle in handles for k in range(6)))
    assert most == 2
    assert overlaps == 0
    loads = scheduler.load()
    assert set(loads) == set(handles)
    assert all(load > 0.02 for load in loads.values())
    await scheduler.shutdown()


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (4, 2), (64, 4)])
def test_engine_threads_leave_cores_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert threads_for(FakeEngine()) == threads

    class OnCuda(FakeEngine):
        device = "cuda:0"

    class Laned(FakeEngine):
        lanes = 7

        def cpu_s(self) -> float:
            return 0.0

    assert threads_for(OnCuda()) == 1
    assert threads_for(Laned()) == 7


def test_no_thread_keeps_the_interpreter_for_milliseconds_beside_an_engine() -> None:
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.005)
        Scheduler()
        assert sys.getswitchinterval() == pytest.approx(0.0005)
    finally:
        sys.setswitchinterval(before)
