"""Engines for processes of their own: what loads them, and what their windows do there, can be pickled."""

from __future__ import annotations

import os
import time
from pathlib import Path

from retalk_models.engine import EngineWindow
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


def where(engine: object) -> int:
    return os.getpid()
