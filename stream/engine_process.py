"""A process that an engine runs in, told what to do over a line whose descriptors it is given.

The other end is engine_lane.py.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from retalk_models.engine import Engine, EngineOptions, EngineSession, EngineWindow
from stream.changes import changes_of
from stream.engine_line import EngineLine
from stream.memory import return_memory

_LAST_S = 1.0
"""How long a process outlives its server at most, whatever it is at."""


@dataclass(frozen=True, slots=True)
class Description:
    """What an engine says of itself, see Engine."""

    name: str
    device: str
    look_ahead_us: int
    weights: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What to do: with the engine, or with the session of that number."""

    verb: str
    session: int = 0
    argument: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """What came of it. cpu_s: processor seconds of this process so far, of all its threads."""

    value: Any
    error: BaseException | None
    cpu_s: float


class _Host:
    """The engine and its sessions, by number."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._sessions: dict[int, EngineSession] = {}
        self._count = 0

    def answer(self, request: Request) -> Any:
        match request.verb:
            case "load":
                load: Callable[[], Engine] = request.argument
                engine = self._engine = load()
                return Description(engine.name, engine.device, engine.look_ahead_us, dict(engine.weights))
            case "ask":
                ask: Callable[[Engine | None], Any] = request.argument
                return ask(self._engine)
            case "open":
                return self._open(request.argument)
            case "process":
                window: EngineWindow = request.argument
                return changes_of(window, self._sessions[request.session].process(window))
            case "close":
                session = self._sessions.pop(request.session, None)
                if session is not None:
                    session.close()
                    del session
                    return_memory()
                return None
        raise ValueError(f"unknown request {request.verb!r}")

    def _open(self, options: EngineOptions) -> int:
        assert self._engine is not None
        if self._sessions:
            # To look at a film takes seconds, for which those that are here already would wait.
            options = replace(options, film=None)
        self._count += 1
        self._sessions[self._count] = self._engine.open_session(options)
        return self._count


def serve(line: EngineLine) -> None:
    """Do what is asked for until nobody asks any more."""
    host = _Host()
    while True:
        try:
            request: Request = line.receive()
        except (EOFError, OSError):
            return
        value, error = None, None
        try:
            value = host.answer(request)
        except Exception as raised:  # whatever an engine raises belongs to who asked
            error = _portable(raised)
        try:
            line.send(Reply(value, error, time.process_time()))
        except OSError:
            return


def _portable(error: Exception) -> BaseException:
    """The same error, or one that says the same where it cannot cross."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error may define its own pickling, and that may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_server(line: int) -> None:
    """Wait until nobody is at the other end of this descriptor, then end, even in a call that hangs."""
    # Not PR_SET_PDEATHSIG: the parent it means is the thread that started this process, and that one ends.
    hang_up = select.poll()
    hang_up.register(line, 0)
    hang_up.poll()
    time.sleep(_LAST_S)
    os._exit(1)


def main() -> None:
    # Ctrl-C goes to the whole group, a service's SIGTERM to all its processes; but sessions may still be
    # finishing, and when to stop is the server's to say, by closing the line.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    import cv2

    # One core is what this process is for.
    cv2.setNumThreads(1)
    line, shared = (int(descriptor) for descriptor in sys.argv[1:3])
    threading.Thread(target=_end_with_server, args=(line,), name="server-watch", daemon=True).start()
    serve(EngineLine(Connection(line), shared))
