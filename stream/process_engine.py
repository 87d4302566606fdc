"""An engine in processes of its own, so that no session waits for another's turn in one interpreter."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing import Pipe
from typing import Any, TypeVar

from retalk_models.engine import Engine, EngineOptions, EngineResult, EngineWindow, load_engine
from stream.engine_process import Description, Reply, Request, receive, send

T = TypeVar("T")

logger = logging.getLogger(__name__)

_LEAVE_S = 5.0

_FREE = 2
"""Processes kept for the next sessions: one takes seconds to start, and a session stays where it began."""

_CHILD = "from stream.engine_process import main; main()"

_ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""A process does one call at a time on one core; what its libraries start besides would wait or spin."""


_LANED = ("talkin",)
"""Engines whose window is one core's work. Others batch the windows of all sessions in one place."""


def load_to_serve(name: str, device: str, processes: int | None = None) -> Engine:
    """Load an engine to serve many sessions at once.

    processes: how many it may run in; 0: in this one; None: one for every core where a window is one core's
    work, else in this one. Raises what load_engine raises.
    """
    if processes is None:
        processes = len(os.sched_getaffinity(0)) if name in _LANED else 0
    load = partial(load_engine, name, device)
    return ProcessEngine(load, processes) if processes else load()


def ask(engine: Engine, question: Callable[[Engine], T]) -> T:
    """What a picklable function of a loaded engine gives, wherever that engine is."""
    return engine.ask(question) if isinstance(engine, ProcessEngine) else question(engine)


class EngineProcessLost(RuntimeError):
    """The engine's process has ended; what its sessions knew is gone. A new session finds another."""


class _Lane:
    """One process and the line to it. Calls come one at a time, whoever makes them."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.users = 0
        self.lost = False
        self.cpu_s = 0.0
        self._turn = threading.Lock()
        self._line, theirs = Pipe()
        with theirs:
            descriptor = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CHILD, str(descriptor)],
                pass_fds=(descriptor,),
                stdin=subprocess.DEVNULL,
                env={
                    **os.environ,
                    **_ONE_CORE,
                    "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
                },
            )

    def call(self, verb: str, session: int = 0, argument: object = None) -> Any:
        """One request and its answer. Raises what the engine raised, or EngineProcessLost."""
        with self._turn:
            if self.lost:
                raise EngineProcessLost(f"engine process {self._process.pid} has ended")
            try:
                send(self._line, Request(verb, session, argument))
                reply: Reply = receive(self._line)
            except (EOFError, OSError) as error:
                self.lost = True
                self._line.close()
                code = self._process.wait()
                raise EngineProcessLost(f"engine process {self._process.pid} ended with {code}") from error
            self.cpu_s = reply.cpu_s
        if reply.error is not None:
            raise reply.error
        return reply.value

    def kill(self) -> None:
        """End it at once, whatever it is at; a call that waits for it raises EngineProcessLost."""
        self._process.kill()

    def leave(self) -> None:
        """End it once it has done what it is at, or after five seconds."""
        if self._turn.acquire(timeout=_LEAVE_S):
            self.lost = True
            self._line.close()
            self._turn.release()
        try:
            self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()


class ProcessSession:
    """A session of an engine that lives in another process."""

    def __init__(self, lane: _Lane, number: int, left: Callable[[_Lane], None]) -> None:
        self._lane, self._number, self._left = lane, number, left
        self._closed = False

    @property
    def lane(self) -> int:
        """Which process it is in: sessions of one lane wait for each other."""
        return self._lane.number

    def process(self, window: EngineWindow) -> EngineResult:
        result: EngineResult = self._lane.call("process", self._number, window)
        return result

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._left(self._lane)
        try:
            self._lane.call("close", self._number)
        except EngineProcessLost:
            return

    def abort(self) -> None:
        """End a call that does not return, and with it the process."""
        logger.warning("engine process %d does not answer and is ended", self._lane.number)
        self._lane.kill()


class ProcessEngine:
    """Loads an engine in up to `lanes` processes, each with weights of its own, ahead of who comes.

    load: what loads it, picklable; what it raises in the first process is raised here. A session stays in its
    process. A process that ends takes its sessions with it: their calls raise EngineProcessLost, and sessions
    opened from then on get another. Blocks until the first one has loaded.
    """

    def __init__(self, load: Callable[[], Engine], lanes: int) -> None:
        if lanes < 1:
            raise ValueError(f"lanes is {lanes}; at least 1 process is needed")
        self._load, self._most = load, lanes
        self._change = threading.Lock()
        self._lanes: list[_Lane] = []
        self._count = 0
        self._spent_s = 0.0
        self._starting: threading.Thread | None = None
        self._closed = False
        self._described = self._start()

    @property
    def name(self) -> str:
        return self._described.name

    @property
    def device(self) -> str:
        return self._described.device

    @property
    def look_ahead_us(self) -> int:
        return self._described.look_ahead_us

    @property
    def weights(self) -> Mapping[str, str]:
        return dict(self._described.weights)

    @property
    def lanes(self) -> int:
        """How many calls can be under way at once, of different sessions."""
        return self._most

    def open_session(self, options: EngineOptions) -> ProcessSession:
        """A session in the process with the fewest. Raises EngineProcessLost where none stays alive."""
        for _ in range(self._most):
            lane = self._enter()
            try:
                number: int = lane.call("open", argument=options)
            except EngineProcessLost:
                continue  # found dead only now
            except BaseException:
                self._leave(lane)
                raise
            self.prepare()
            return ProcessSession(lane, number, self._leave)
        raise EngineProcessLost(f"no process of engine {self.name!r} stays alive")

    def prepare(self, free: int = _FREE, *, wait: bool = False) -> None:
        """Begin to start processes until so many have no session, or there are as many as may be."""
        with self._change:
            if self._starting is None or not self._starting.is_alive():
                self._starting = threading.Thread(
                    target=self._start_spares, args=(free,), name="engine-process", daemon=True
                )
                self._starting.start()
            starting = self._starting
        if wait:
            starting.join()

    def ask(self, question: Callable[[Engine], T]) -> T:
        """What a picklable function of the loaded engine gives, in the oldest process."""
        with self._change:
            lane = self._lanes[0]
        answer: T = lane.call("ask", argument=question)
        return answer

    def cpu_s(self) -> float:
        """Processor seconds of all its processes, ended ones included, as of their last answers."""
        with self._change:
            return self._spent_s + sum(lane.cpu_s for lane in self._lanes)

    def close(self) -> None:
        """End the processes. Idempotent."""
        with self._change:
            self._closed = True
            starting = self._starting
            lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.leave()
        if starting is not None:
            starting.join()

    def _start(self) -> Description:
        with self._change:
            self._count += 1
            lane = _Lane(self._count)
        try:
            described: Description = lane.call("load", argument=self._load)
        except BaseException:
            lane.kill()
            lane.leave()
            raise
        with self._change:
            if not self._closed:
                self._lanes.append(lane)
                return described
        lane.leave()
        return described

    def _start_spares(self, free: int) -> None:
        while True:
            with self._change:
                self._bury()
                enough = len(self._lanes) >= self._most or sum(not lane.users for lane in self._lanes) >= free
                if self._closed or enough:
                    return
            try:
                self._start()
            except Exception:  # the sessions that there are go on; the next one is told what is wrong
                logger.exception("no further engine process could be started")
                return

    def _enter(self) -> _Lane:
        with self._change:
            self._bury()
            none = not self._lanes
        if none:
            self._start()
        with self._change:
            if not self._lanes:
                raise EngineProcessLost(f"engine {self.name!r} is closed")
            lane = min(self._lanes, key=lambda each: each.users)
            lane.users += 1
            return lane

    def _leave(self, lane: _Lane) -> None:
        with self._change:
            lane.users -= 1

    def _bury(self) -> None:
        for lane in [each for each in self._lanes if each.lost]:
            self._lanes.remove(lane)
            self._spent_s += lane.cpu_s
