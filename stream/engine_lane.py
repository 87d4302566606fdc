"""One process that an engine runs in, as the server holds it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from typing import Any

from retalk_models.engine import Engine
from stream.engine_line import EngineLine, shared_memory
from stream.engine_process import Description, Reply, Request

logger = logging.getLogger(__name__)

_LEAVE_S = 5.0
_LOAD_S = 120.0

_CHILD = "from stream.engine_process import main; main()"

_ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""A process does one call at a time; what its libraries start besides would wait or spin."""


class EngineProcessLost(RuntimeError):
    """The engine's process has ended; what its sessions knew is gone. A new session finds another."""


class EngineLane:
    """One process and the line to it. Calls come one at a time, whoever makes them."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.users = 0
        self.lost = False
        self.cpu_s = 0.0
        self._loading_s = 0.0
        self._turn = threading.Lock()
        ours, theirs = Pipe()
        with theirs, shared_memory() as shared:
            self._line = EngineLine(ours, shared.fileno())
            descriptors = (theirs.fileno(), shared.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CHILD, *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                env={
                    **os.environ,
                    **_ONE_CORE,
                    "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
                },
            )

    def call(
        self, verb: str, session: int = 0, argument: object = None, *, within_s: float | None = None
    ) -> Any:
        """One request and its answer. Raises what the engine raised, or EngineProcessLost.

        within_s: where it has not answered for so long the process is ended.
        """
        with self._turn:
            if self.lost:
                raise EngineProcessLost(f"engine process {self._process.pid} has ended")
            try:
                self._line.send(Request(verb, session, argument))
                if within_s is not None and not self._line.poll(within_s):
                    logger.warning("engine process %d hangs in %r and is ended", self.number, verb)
                    self.kill()
                reply: Reply = self._line.receive()
            except (EOFError, OSError) as error:
                self.lost = True
                self._line.close()
                code = self._ended()
                raise EngineProcessLost(f"engine process {self._process.pid} ended with {code}") from error
            self.cpu_s = reply.cpu_s - self._loading_s
        if reply.error is not None:
            raise reply.error
        return reply.value

    def load(self, load: Callable[[], Engine]) -> Description:
        """Load the engine; what that took is not counted, for no session did it."""
        described: Description = self.call("load", argument=load, within_s=_LOAD_S)
        self._loading_s, self.cpu_s = self.cpu_s, 0.0
        return described

    def kill(self) -> None:
        """End it at once, whatever it is at; a call that waits for it raises EngineProcessLost."""
        self._process.kill()

    def leave(self) -> None:
        """End it once it has done what it is at, or after five seconds."""
        if self._turn.acquire(timeout=_LEAVE_S):
            self.lost = True
            self._line.close()
            self._turn.release()
        else:
            self.kill()
        self._ended()

    def _ended(self) -> int:
        """Its exit status, within five seconds."""
        try:
            return self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()
