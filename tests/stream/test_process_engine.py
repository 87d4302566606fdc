"""Engines in processes of their own: the same results, side by side, and nobody left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from retalk_models.engine import (
    Engine,
    EngineFrame,
    EngineOptions,
    EngineWindow,
    LanedEngine,
    LanedSession,
    UnknownEngineError,
)
from stream.engine_lane import EngineProcessLost
from stream.files import FilmOf
from stream.process_engine import ProcessEngine, ask, load_to_serve
from stream.runner import processor_s
from stream.scheduler import Scheduler
from tests.stream import engines_elsewhere
from tests.stream.engines_elsewhere import DIE, HANG, RAISE, RAISE_ODDLY, Meeting, where
from tests.stream.fakes import FakeEngine, flat_picture
from tests.stream.media_files import write_video


def window(time_us: int = 0) -> EngineWindow:
    voice = np.linspace(-1, 1, 640, dtype=np.float32)
    return EngineWindow((EngineFrame(flat_picture(), time_us, 0, True),), voice, 0, 0)


@contextmanager
def in_processes(load: Callable[[], Engine], lanes: int = 1) -> Iterator[ProcessEngine]:
    engine = ProcessEngine(load, lanes)
    try:
        yield engine
    finally:
        engine.close()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(pid: int, threads: int) -> bool:
    # The one that waits for this to be true may be new.
    return not is_alive(pid) and threading.active_count() <= threads + 1


def wait_until(done: Callable[[], bool], seconds: float = 20.0) -> None:
    end_s = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.02)


def test_an_engine_elsewhere_gives_what_it_gives_here() -> None:
    here = FakeEngine()
    with in_processes(engines_elsewhere.fake) as engine:
        assert (engine.name, engine.device, engine.look_ahead_us) == ("fake", "cpu", here.look_ahead_us)
        assert engine.weights == here.weights
        assert isinstance(engine, LanedEngine)
        assert ask(engine, where) != os.getpid()
        assert ask(here, where) == os.getpid()
        session = engine.open_session(EngineOptions())
        assert isinstance(session, LanedSession)
        theirs = session.process(window())
        ours = here.open_session(EngineOptions()).process(window())
        for their, our in zip(theirs.outputs, ours.outputs, strict=True):
            assert np.array_equal(their.picture.planes, our.picture.planes)
            assert their.region == our.region
        assert theirs.outputs[0].picture.planes.flags.writeable
        assert engine.cpu_s() > 0
        assert processor_s(engine) > processor_s(here)
        session.close()
        session.close()


@pytest.mark.parametrize(("what", "error"), [(RAISE, "none left"), (RAISE_ODDLY, "Odd: odd error")])
def test_an_engines_error_crosses_and_its_process_goes_on(what: int, error: str) -> None:
    with in_processes(engines_elsewhere.fake) as engine:
        session = engine.open_session(EngineOptions())
        with pytest.raises(MemoryError if what == RAISE else RuntimeError, match=error):
            session.process(window(what))
        assert len(session.process(window()).outputs) == 1


def test_what_cannot_be_loaded_says_so_and_leaves_no_process() -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="no such weights"):
        ProcessEngine(engines_elsewhere.refused, 2)
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="at least 1"):
        ProcessEngine(engines_elsewhere.fake, 0)
    with pytest.raises(UnknownEngineError, match="unknown engine"):
        load_to_serve("nobody", "cpu")


async def test_sessions_of_two_processes_run_side_by_side(tmp_path: Path) -> None:
    with in_processes(Meeting(tmp_path, 2), 2) as engine:
        engine.prepare(2, wait=True)
        scheduler = Scheduler(workers=engine.lanes)
        handles = [await scheduler.open(engine, EngineOptions()) for _ in range(2)]
        await asyncio.gather(*(scheduler.run(handle, window(), 0) for handle in handles))
        await scheduler.shutdown()
    assert len(tuple(tmp_path.iterdir())) == 2  # noqa: ASYNC240


async def test_a_third_session_never_keeps_a_thread_from_one_whose_process_is_free() -> None:
    """Two threads, two processes: with both threads waiting for one process the other would stand idle."""
    with in_processes(engines_elsewhere.fake, 2) as engine:
        engine.prepare(2, wait=True)
        scheduler = Scheduler(workers=2)
        handles = [await scheduler.open(engine, EngineOptions()) for _ in range(3)]
        first, second, third = handles
        stuck = [asyncio.create_task(scheduler.run(first, window(HANG), 0))]
        await asyncio.sleep(0.05)
        stuck.append(asyncio.create_task(scheduler.run(third, window(), 0)))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            await scheduler.run(second, window(), 900_000)
        assert not any(task.done() for task in stuck)
        scheduler.abandon(first)
        for task in stuck:
            task.cancel()
        await asyncio.wait(stuck)
        await scheduler.shutdown()


def test_sessions_go_where_the_fewest_are_and_processes_are_kept_ahead() -> None:
    with in_processes(engines_elsewhere.fake, 3) as engine:
        engine.prepare(wait=True)
        lanes = [engine.open_session(EngineOptions()).lane for _ in range(2)]
        engine.prepare(wait=True)
        sessions = [engine.open_session(EngineOptions()) for _ in range(2)]
        lanes += [session.lane for session in sessions]
        assert len(set(lanes[:3])) == 3
        sessions[0].close()
        assert engine.open_session(EngineOptions()).lane == lanes[2]


@pytest.mark.parametrize("closes", [False, True])
async def test_a_call_that_hangs_is_ended_and_the_session_can_be_opened_anew(closes: bool) -> None:
    with in_processes(engines_elsewhere.fake) as engine:
        scheduler = Scheduler(workers=1, spare_threads=0)
        before = threading.active_count()
        for _ in range(3):
            handle = await scheduler.open(engine, EngineOptions())
            child = engine.ask(where)
            hung = asyncio.create_task(scheduler.run(handle, window(HANG), 0))
            await asyncio.sleep(0.1)
            hung.cancel()
            if closes:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(scheduler.close(handle), 0.01)
            scheduler.abandon(handle)
            await asyncio.to_thread(wait_until, partial(gone, child, before))
        handle = await scheduler.open(engine, EngineOptions())
        assert len((await scheduler.run(handle, window(), 0)).outputs) == 1
        await scheduler.shutdown()


async def test_a_process_that_dies_takes_only_its_own_sessions() -> None:
    with in_processes(engines_elsewhere.fake, 2) as engine:
        engine.prepare(2, wait=True)
        scheduler = Scheduler(workers=2)
        dying, living, mate = [await scheduler.open(engine, EngineOptions()) for _ in range(3)]
        with pytest.raises(EngineProcessLost, match="ended with 7"):
            await scheduler.run(dying, window(DIE), 0)
        with pytest.raises(EngineProcessLost):
            await scheduler.run(mate, window(), 0)
        assert len((await scheduler.run(living, window(), 0)).outputs) == 1
        await scheduler.close(dying)
        again = await scheduler.open(engine, EngineOptions())
        assert len((await scheduler.run(again, window(), 0)).outputs) == 1
        spent_s = engine.cpu_s()
        engine.prepare(2, wait=True)
        assert engine.cpu_s() >= spent_s
        await scheduler.shutdown()


def test_a_process_that_died_unnoticed_is_replaced_when_the_next_session_opens() -> None:
    with in_processes(engines_elsewhere.fake, 2) as engine:
        child = engine.ask(where)
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: not is_alive(child))
        assert len(engine.open_session(EngineOptions()).process(window()).outputs) == 1


def test_no_signal_but_closing_ends_a_process_in_order() -> None:
    engine = ProcessEngine(engines_elsewhere.fake, 1)
    child = engine.ask(where)
    os.kill(child, signal.SIGINT)
    os.kill(child, signal.SIGTERM)
    session = engine.open_session(EngineOptions())
    assert len(session.process(window()).outputs) == 1
    engine.close()
    engine.close()
    assert not is_alive(child)
    with pytest.raises(EngineProcessLost):
        session.process(window())
    session.close()
    with pytest.raises(EngineProcessLost, match="closed"):
        engine.open_session(EngineOptions())


def _engine_process_ends_with_its_server(script: str, repository: Path) -> None:
    """script: of a server that prints its engine process's number and kills itself."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=repository, stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: not is_alive(int(done.stdout)))


def test_no_engine_process_outlives_a_server_that_was_killed(repository: Path) -> None:
    script = (
        "from functools import partial; import os, signal\n"
        "from stream.process_engine import ProcessEngine\n"
        "from tests.stream.engines_elsewhere import fake, where\n"
        "print(ProcessEngine(fake, 1).ask(where), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    _engine_process_ends_with_its_server(script, repository)


def test_no_engine_process_that_hangs_outlives_a_server_that_was_killed(repository: Path) -> None:
    """bug: it looked for its server only between calls, and SIGTERM it does not hear."""
    script = (
        "import os, signal, threading\n"
        "from retalk_models.engine import EngineOptions\n"
        "from stream.process_engine import ProcessEngine\n"
        "from tests.stream.engines_elsewhere import HANG, fake, where\n"
        "from tests.stream.test_process_engine import wait_until, window\n"
        "engine = ProcessEngine(fake, 1)\n"
        "print(engine.ask(where), flush=True)\n"
        "session = engine.open_session(EngineOptions())\n"
        "threading.Thread(target=session.process, args=(window(HANG),), daemon=True).start()\n"
        "wait_until(engine._lanes[0]._turn.locked)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    _engine_process_ends_with_its_server(script, repository)


def test_the_shipped_engine_dubs_elsewhere_as_here() -> None:
    here, elsewhere = load_to_serve("talkin", "cpu", 0), load_to_serve("talkin", "cpu")
    try:
        assert isinstance(elsewhere, ProcessEngine)
        assert elsewhere.lanes == len(os.sched_getaffinity(0))
        assert elsewhere.weights == here.weights
        open_here, open_there = (engine.open_session(EngineOptions()) for engine in (here, elsewhere))
        for k in range(3):
            ours, theirs = (session.process(window(40_000 * k)) for session in (open_here, open_there))
            assert ours.outputs[0].face == theirs.outputs[0].face
            assert np.array_equal(ours.outputs[0].picture.planes, theirs.outputs[0].picture.planes)
        open_here.close()
        open_there.close()
        assert ask(elsewhere, partial(getattr_of, "name")) == "talkin"
    finally:
        elsewhere.close()  # type: ignore[attr-defined]


def test_a_film_is_looked_at_only_where_nobody_waits_meanwhile(tmp_path: Path) -> None:
    """Bug: looking took the other sessions of a process longer than an engine may be without an answer."""
    path = tmp_path / "in.mp4"
    write_video(path, 3)
    film = FilmOf.file(path)
    assert film is not None
    with in_processes(engines_elsewhere.fake) as engine:
        sessions = [engine.open_session(EngineOptions(film=film)) for _ in range(2)]
        assert [one.film for one in ask(engine, partial(getattr_of, "options"))] == [film, None]  # type: ignore[attr-defined]
        for session in sessions:
            session.close()


def getattr_of(name: str, engine: object) -> object:
    return getattr(engine, name)
