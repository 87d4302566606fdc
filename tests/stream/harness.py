"""A session on a virtual clock, fed by a script of its own time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np

from stream.clock import VirtualClock
from stream.media import I16, PLAYOUT_RATE
from stream.runner import EngineRunner, InlineRunner
from stream.session import Session, SessionConfig
from tests.stream.fakes import FakeEngine, KeepingSink, flat_picture


def tone(milliseconds: int, peak: int = 12_000, hertz: float = 200.0) -> I16:
    """A vowel-like sound: loud, and periodic enough for a voice detector."""
    t = np.arange(milliseconds * PLAYOUT_RATE // 1000) / PLAYOUT_RATE
    wave = sum(np.sin(2 * np.pi * hertz * k * t) / k for k in range(1, 12))
    return np.asarray(peak * wave / np.abs(wave).max(), np.int16)


class Rig:
    """A running session, the engine under it, and all that it released."""

    def __init__(self, session: Session, clock: VirtualClock, engine: FakeEngine, sink: KeepingSink) -> None:
        self.session = session
        self.clock = clock
        self.engine = engine
        self.sink = sink

    async def frames(self, count: int, step_us: int = 40_000, luma: int = 60, lag_us: int = 0) -> None:
        """Push frames at a steady pace, beginning now; each arrives `lag_us` after its capture."""
        start_us = self.clock.now_us()
        for index in range(count):
            time_us = start_us + index * step_us
            await self.clock.sleep_until(time_us + lag_us)
            self.session.source.push(flat_picture(luma), time_us)
        await self.clock.sleep_until(start_us + count * step_us)

    async def drain(self) -> None:
        """Let everything that was pushed come out."""
        await self.clock.sleep_until(self.clock.now_us() + 1_000_000)

    @property
    def sound(self) -> I16:
        return np.concatenate([frame.samples for frame in self.sink.sounds])


@asynccontextmanager
async def running(
    config: SessionConfig | None = None,
    engine: FakeEngine | None = None,
    runner: Callable[[VirtualClock], EngineRunner] | None = None,
) -> AsyncIterator[Rig]:
    """A session whose virtual time passes only while the test waits on the rig's clock."""
    clock = VirtualClock()
    task = asyncio.current_task()
    assert task is not None
    clock.adopt(task)
    engine = engine or FakeEngine()
    sink = KeepingSink(clock)
    session = Session(
        config or SessionConfig(mark=False),
        engine,
        clock=clock,
        runner=runner(clock) if runner else InlineRunner(),
        sink=sink,
    )
    run = asyncio.create_task(session.run())
    # The engine's session is open before the first frame, so that tests can count from the first.
    await clock.sleep_until(10_000)
    try:
        yield Rig(session, clock, engine, sink)
    finally:
        await session.close()
        await run
