"""An engine in processes of its own, so that no session waits for another's turn in one interpreter."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from retalk_models.engine import Engine, EngineOptions, EngineResult, EngineWindow, load_engine
from stream.changes import Changes, applied
from stream.engine_lane import EngineLane, EngineProcessLost
from stream.engine_process import Description

T = TypeVar("T")

logger = logging.getLogger(__name__)

_OPEN_S, _CLOSE_S = 15.0, 5.0
"""A process that takes longer over these is ended. A window's time is the scheduler's to watch."""

_COMING_S = 10.0
"""How long a session waits for a process that somebody else has begun to start."""

SPARE = 2
"""Processes kept for the next sessions: one takes seconds to start, and a session stays where it began."""

_LANED = ("talkin",)
"""Engines whose window is one core's work. Others batch the windows of all sessions in one place."""


def load_to_serve(
    name: str, device: str, processes: int | None = None, look_ahead_ms: int | None = None
) -> Engine:
    """Load an engine to serve many sessions at once.

    processes: how many it may run in; 0: in this one; None: one for every core where a window is one core's
    work, else in this one. look_ahead_ms: see load_engine. Raises what load_engine raises.
    """
    if processes is None:
        processes = len(os.sched_getaffinity(0)) if name in _LANED else 0
    load = partial(load_engine, name, device, look_ahead_ms)
    return ProcessEngine(load, processes) if processes else load()


def ask(engine: Engine, question: Callable[[Engine], T]) -> T:
    """What a picklable function of a loaded engine gives, wherever that engine is."""
    return engine.ask(question) if isinstance(engine, ProcessEngine) else question(engine)


class ProcessSession:
    """A session of an engine that lives in another process."""

    def __init__(self, lane: EngineLane, number: int, left: Callable[[EngineLane], None]) -> None:
        self._lane, self._number, self._left = lane, number, left
        self._closed = False

    @property
    def lane(self) -> int:
        """Which process it is in: sessions of one lane wait for each other."""
        return self._lane.number

    def process(self, window: EngineWindow) -> EngineResult:
        changes: Changes = self._lane.call("process", self._number, window)
        return applied(window, changes)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._left(self._lane)
        try:
            self._lane.call("close", self._number, within_s=_CLOSE_S)
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
        self._change = threading.Condition()
        self._lanes: list[EngineLane] = []
        self._loading: list[EngineLane] = []
        self._count = self._waiting = self._spares = 0
        self._coming = 1
        self._spent_s = 0.0
        self._starting: threading.Thread | None = None
        self._closed = False
        _, self._described = self._start()

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
        """A session in a process of its own, or where no more may be had in that with the fewest.

        Waits for a process that has to be started. Raises EngineProcessLost where none stays alive.
        """
        for _ in range(self._most + 1):
            lane = self._enter()
            try:
                number: int = lane.call("open", argument=options, within_s=_OPEN_S)
            except EngineProcessLost:
                continue  # found dead only now
            except BaseException:
                self._leave(lane)
                raise
            self.prepare()
            return ProcessSession(lane, number, self._leave)
        raise EngineProcessLost(f"no process of engine {self.name!r} stays alive")

    def prepare(self, free: int = SPARE, *, wait: bool = False) -> None:
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
        """Processor seconds of all its processes since they loaded, ended ones included, as last answered."""
        with self._change:
            return self._spent_s + sum(lane.cpu_s for lane in self._lanes)

    def close(self) -> None:
        """End the processes. Idempotent."""
        with self._change:
            self._closed = True
            starting = self._starting
            lanes, self._lanes = self._lanes, []
            for lane in self._loading:
                lane.kill()
            self._change.notify_all()
        # One takes a second, one that hangs ten; a machine of many cores is told to stop within less.
        leaving = [threading.Thread(target=lane.leave, name="engine-leave") for lane in lanes]
        for thread in leaving:
            thread.start()
        for thread in leaving:
            thread.join()
        if starting is not None:
            starting.join()

    def _start(self, users: int = 0) -> tuple[EngineLane, Description]:
        """One process more, entered by so many; the caller has counted it among those that are coming."""
        lane: EngineLane | None = None
        try:
            with self._change:
                self._count += 1
                number = self._count
            lane = EngineLane(number)
            with self._change:
                self._loading.append(lane)
                if self._closed:
                    lane.kill()
            described = lane.load(self._load)
            with self._change:
                lane.users = users
                if not self._closed:
                    self._lanes.append(lane)
                    return lane, described
            raise EngineProcessLost(f"engine {described.name!r} is closed")
        except BaseException:
            if lane is not None:
                lane.kill()
                lane.leave()
            raise
        finally:
            with self._change:
                self._coming -= 1
                if lane in self._loading:
                    self._loading.remove(lane)
                self._change.notify_all()

    def _start_spares(self, free: int) -> None:
        while True:
            with self._change:
                self._bury()
                unused = sum(not lane.users for lane in self._lanes)
                if self._closed or not self._more_may_come() or unused >= free:
                    return
                self._coming += 1
                self._spares += 1
            try:
                self._start()
            except Exception:  # the sessions that there are go on; the next one is told what is wrong
                if not self._closed:
                    logger.exception("no further engine process could be started")
                return
            finally:
                with self._change:
                    self._spares -= 1
                    self._change.notify_all()

    def _enter(self) -> EngineLane:
        """A process for one session more, entered.

        Sessions that share one share its core for life, so that comes last. Who waits here keeps a thread of
        the scheduler from others: never more of them than processes that are missing.
        """
        with self._change:
            lane = self._find()
            if lane is not None:
                lane.users += 1
                return lane
            self._coming += 1
        try:
            return self._start(users=1)[0]
        except EngineProcessLost:
            with self._change:
                if not self._lanes or self._closed:
                    raise
                logger.exception("a session has to share an engine process")
                lane = min(self._lanes, key=lambda each: each.users)
                lane.users += 1
                return lane

    def _find(self) -> EngineLane | None:
        """The one to go to, None where another is to be started. Under `_change`."""
        end_s = time.monotonic() + _COMING_S
        while True:
            self._bury()
            if self._closed:
                raise EngineProcessLost(f"engine {self.name!r} is closed")
            fewest = min(self._lanes, key=lambda each: each.users, default=None)
            left_s = end_s - time.monotonic()
            if fewest is not None and (not fewest.users or left_s <= 0):
                return fewest
            if self._spares > self._waiting or (fewest is None and self._coming >= self._most):
                self._waiting += 1
                self._change.wait(max(0.1, left_s))
                self._waiting -= 1
            else:
                return None if self._more_may_come() else fewest

    def _more_may_come(self) -> bool:
        return len(self._lanes) + self._coming < self._most

    def _leave(self, lane: EngineLane) -> None:
        with self._change:
            lane.users -= 1

    def _bury(self) -> None:
        for lane in [each for each in self._lanes if each.lost]:
            self._lanes.remove(lane)
            self._spent_s += lane.cpu_s
