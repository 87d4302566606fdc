"""Engines for processes of their own: what loads them, and what their windows do there, can be pickled."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from retalk_models.engine import EngineOptions, EngineSession, EngineWindow
from tests.stream.fakes import FakeEngine

RAISE, RAISE_ODDLY, HANG, DIE = 1, 2, 3, 4
"""What a window whose first frame is that many microseconds old does."""

WAIT_S = 20.0


class Odd(Exception):
    """An error that cannot be unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def misbehave(window: EngineWindow) -> None:
    match window.frames[0].time_us:
        case 1:
            raise MemoryError("none left")
        case 2:
            raise Odd("odd", "error")
        case 3:
            time.sleep(600)
        case 4:
            os._exit(7)


def fake() -> FakeEngine:
    return FakeEngine(misbehave)


def refused() -> FakeEngine:
    raise ValueError("no such weights")


class Meeting:
    """An engine whose windows go on only once as many processes as were invited are in one."""

    def __init__(self, folder: Path, invited: int) -> None:
        self.folder, self.invited = folder, invited

    def __call__(self) -> FakeEngine:
        return FakeEngine(self.meet)

    def meet(self, window: EngineWindow) -> None:
        (self.folder / str(os.getpid())).touch()
        end_s = time.monotonic() + WAIT_S
        while len(list(self.folder.iterdir())) < self.invited:
            if time.monotonic() > end_s:
                raise TimeoutError("nobody came")
            time.sleep(0.01)


class Slow:
    """Takes its time to load, though not in the first process; `hangs` says at what it hangs, once."""

    def __init__(self, folder: Path, load_s: float = 0.0, hangs: str = "") -> None:
        self.folder, self.load_s, self.hangs = folder, load_s, hangs

    def __call__(self) -> FakeEngine:
        first = self.is_first("load")
        if not first:
            time.sleep(self.load_s)
            if self.hangs == "load":
                time.sleep(600)
        return _SlowToClose(self)

    def is_first(self, what: str) -> bool:
        """Whether this was asked never before, in whichever process."""
        try:
            (self.folder / what).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def hang_once(self, at: str) -> None:
        if self.hangs == at and self.is_first(at):
            time.sleep(600)


class _SlowToClose(FakeEngine):
    def __init__(self, script: Slow) -> None:
        super().__init__(opening=partial(script.hang_once, "open"))
        self._script = script

    def open_session(self, options: EngineOptions) -> EngineSession:
        session = super().open_session(options)
        close = session.close

        def slowly() -> None:
            self._script.hang_once("close")
            close()

        session.close = slowly  # type: ignore[method-assign]
        return session


def where(engine: object) -> int:
    return os.getpid()


def burn(seconds: float, engine: object) -> None:
    """Use the processor for so long."""
    end_s = time.process_time() + seconds
    while time.process_time() < end_s:
        pass
