from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from retalk_models.engine import EngineFrame, EngineOptions, EngineWindow
from stream.runner import EngineStuck, ThreadRunner
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

    engine, runner = FakeEngine(before), ThreadRunner()
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

    runner = ThreadRunner()
    handle = await runner.open(FakeEngine(before), EngineOptions())
    with pytest.raises(MemoryError, match="none left"):
        await runner.run(handle, window(1), 0)
    assert len((await runner.run(handle, window(2), 0)).outputs) == 1
    await runner.shutdown()


async def test_calls_that_never_return_are_left_behind_but_not_without_end() -> None:
    release = threading.Event()

    def before(w: EngineWindow) -> None:
        release.wait(20)

    engine, runner = FakeEngine(before), ThreadRunner(spare_threads=2)
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


async def test_work_waiting_behind_a_stuck_call_is_done_by_the_next_thread() -> None:
    release = threading.Event()
    engine = FakeEngine(lambda w: None if w.frames[0].time_us else _wait(release))
    runner = ThreadRunner()
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


def _wait(event: threading.Event) -> None:
    event.wait(20)
