"""Which process a session gets, and what becomes of one that hangs outside a window."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from retalk_models.engine import EngineOptions
from stream import engine_lane, process_engine
from stream.engine_lane import EngineProcessLost
from stream.process_engine import ProcessEngine, ProcessSession
from stream.scheduler import Scheduler
from tests.stream import engines_elsewhere
from tests.stream.engines_elsewhere import HANG, Slow, where
from tests.stream.test_process_engine import in_processes, is_alive, wait_until, window


async def test_sessions_that_come_at_once_get_a_process_each(tmp_path: Path) -> None:
    """They stay where they begin: those that crowd into the one that is ready share its core for life."""
    with in_processes(Slow(tmp_path, load_s=0.5), 3) as engine:
        engine.prepare()
        scheduler = Scheduler(workers=3)
        handles = await asyncio.gather(*(scheduler.open(engine, EngineOptions()) for _ in range(4)))
        lanes = [scheduler._open[handle].lane for handle in handles]
        assert len(set(lanes)) == 3
        await scheduler.shutdown()


def test_the_sessions_of_a_process_that_died_do_not_crowd_into_another() -> None:
    with in_processes(engines_elsewhere.fake, 2) as engine:
        engine.prepare(2, wait=True)
        dying, living = (engine.open_session(EngineOptions()) for _ in range(2))
        dying.abort()
        assert engine.open_session(EngineOptions()).lane not in (dying.lane, living.lane)


async def test_a_session_that_waits_for_its_process_does_not_hold_up_another(tmp_path: Path) -> None:
    with in_processes(Slow(tmp_path, load_s=1.5), 2) as engine:
        scheduler = Scheduler(workers=2)
        first = await scheduler.open(engine, EngineOptions())
        second = asyncio.create_task(scheduler.open(engine, EngineOptions()))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(1):
            await scheduler.run(first, window(), 0)
        assert not second.done()
        await second
        await scheduler.shutdown()


@pytest.mark.parametrize("at", ["open", "close"])
def test_a_process_that_hangs_outside_a_window_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    monkeypatch.setattr(process_engine, f"_{at.upper()}_S", 0.3)
    with in_processes(Slow(tmp_path, hangs=at)) as engine:
        child = engine.ask(where)
        began_s = time.monotonic()
        session = engine.open_session(EngineOptions())
        session.close()
        assert len(engine.open_session(EngineOptions()).process(window()).outputs) == 1
        assert time.monotonic() - began_s < 15
        wait_until(lambda: not is_alive(child))


def test_closing_waits_for_no_process_that_hangs_in_loading(tmp_path: Path) -> None:
    engine = ProcessEngine(Slow(tmp_path, hangs="load"), 2)
    engine.prepare()
    began_s = time.monotonic()
    closing = threading.Thread(target=engine.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    assert time.monotonic() - began_s < 8


def test_processes_are_left_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_lane, "_LEAVE_S", 1.0)
    with in_processes(engines_elsewhere.fake, 3) as engine:
        engine.prepare(3, wait=True)

        def hang(session: ProcessSession) -> None:
            with pytest.raises(EngineProcessLost):
                session.process(window(HANG))

        calls = []
        for session in [engine.open_session(EngineOptions()) for _ in range(3)]:
            calls.append(threading.Thread(target=hang, args=(session,), daemon=True))
            calls[-1].start()
            time.sleep(0.05)
        began_s = time.monotonic()
        engine.close()
        assert time.monotonic() - began_s < 2
        for call in calls:
            call.join(5)


def test_one_process_that_died_unnoticed_costs_no_fault_where_no_more_may_be() -> None:
    with in_processes(engines_elsewhere.fake) as engine:
        child = engine.ask(where)
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: not is_alive(child))
        assert len(engine.open_session(EngineOptions()).process(window()).outputs) == 1


def test_what_loading_cost_is_not_what_sessions_cost(tmp_path: Path) -> None:
    """It would come all at once, when the process is ready, and take the room of sessions for ten seconds."""
    with in_processes(engines_elsewhere.fake, 2) as engine:
        before_s = engine.cpu_s()
        engine.prepare(2, wait=True)
        assert engine.cpu_s() - before_s < 0.05
        engine.ask(partial(engines_elsewhere.burn, 0.2))
        assert engine.cpu_s() - before_s >= 0.19
