"""Clients that connect and die without a word, and what a server holds afterwards."""

from __future__ import annotations

import asyncio
import gc
import threading
from dataclasses import dataclass

import psutil

from stream.memory import return_memory
from tests.server.conftest import LiveServer
from tests.server.duplex import duplex, kill
from tests.server.rtc import Camera, until

AT_ONCE = 4
WARM_UP = 8
"""The allocator's pools and every codec's tables are filled by then."""


@dataclass(frozen=True)
class Held:
    """What the process holds."""

    tasks: int
    threads: int
    descriptors: int
    memory_mb: float

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        # The last session's end does so in a thread of its own, sooner or later.
        return_memory()
        process = psutil.Process()
        # The default executor keeps up to a few idle threads, whatever anybody does.
        threads = [t for t in threading.enumerate() if not t.name.startswith("asyncio")]
        return cls(len(asyncio.all_tasks()), len(threads), process.num_fds(), process.memory_info().rss / 1e6)


async def die(server: LiveServer, phase: int) -> None:
    """Connect, and die at one of several moments."""
    session = await server.create()
    async with duplex(session, Camera(160, 120, fps=5)) as (peer, watcher, socket):
        if phase % 3 == 1:
            await until(lambda: bool(watcher.video), within_s=20)
        elif phase % 3 == 2:
            await asyncio.sleep(0.1)
        kill(peer)
        socket.transport.abort()


async def churn(server: LiveServer, deaths: int) -> tuple[Held, Held]:
    """Let so many clients die; what was held after the first few, and after all of them are forgotten."""
    before: Held | None = None
    for first in range(0, WARM_UP + deaths, AT_ONCE):
        await asyncio.gather(*(die(server, first + k) for k in range(AT_ONCE)))
        await until(lambda: len(server.registry) == 0, within_s=20)
        if before is None and first + AT_ONCE >= WARM_UP:
            await asyncio.sleep(0.5)
            before = Held.now()
    assert before is not None
    known = before

    def back() -> bool:
        now = Held.now()
        return (now.tasks, now.threads, now.descriptors) <= (known.tasks, known.threads, known.descriptors)

    await until(back, within_s=15)
    return before, Held.now()
