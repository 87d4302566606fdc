"""The session clock: real, and virtual for files and tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol


class Bell:
    """Wakes those who wait on it through a clock. Used from the event loop's thread only."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[bool]] = set()

    def ring(self) -> None:
        """Wake everybody who waits now; a ring that nobody waits for is forgotten."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(True)
        self._waiters.clear()


class Clock(Protocol):
    """Session time in integer microseconds, and the only ways to wait for it."""

    def now_us(self) -> int: ...

    async def sleep_until(self, until_us: int) -> None: ...

    async def wait(self, bell: Bell, until_us: int | None = None) -> bool:
        """Wait for the bell, at most until `until_us`. True if it rang, False if the time came."""
        ...

    def start(
        self, group: asyncio.TaskGroup, work: Coroutine[Any, Any, None], name: str
    ) -> asyncio.Task[None]:
        """Start a task whose work passes session time: a virtual clock stands still until it waits."""
        ...


async def _wait_for_bell(bell: Bell, waiter: asyncio.Future[bool]) -> bool:
    bell._waiters.add(waiter)
    try:
        return await waiter
    finally:
        bell._waiters.discard(waiter)


def _time_is_up(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)


class MonotonicClock:
    """Microseconds of the machine's monotonic clock since this clock was made."""

    def __init__(self) -> None:
        self._origin_ns = time.monotonic_ns()

    def now_us(self) -> int:
        return (time.monotonic_ns() - self._origin_ns) // 1000

    async def sleep_until(self, until_us: int) -> None:
        # A timer may fire up to its resolution early; whoever sleeps relies on the instant having come.
        silence = Bell()
        while self.now_us() < until_us:
            await self.wait(silence, until_us)

    async def wait(self, bell: Bell, until_us: int | None = None) -> bool:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        if until_us is None:
            return await _wait_for_bell(bell, waiter)
        left_us = until_us - self.now_us()
        if left_us <= 0:
            return False
        timer = loop.call_later(left_us / 1e6, _time_is_up, waiter)
        try:
            return await _wait_for_bell(bell, waiter)
        finally:
            timer.cancel()

    def start(
        self, group: asyncio.TaskGroup, work: Coroutine[Any, Any, None], name: str
    ) -> asyncio.Task[None]:
        return group.create_task(work, name=name)


@dataclass(eq=False)
class _Sleeper:
    until_us: int | None
    order: int
    waiter: asyncio.Future[bool]
    task: asyncio.Task[Any] | None


class VirtualClock:
    """A clock that stands still while any of its tasks works, then jumps to the next instant one waits for.

    Tasks started with `start` (or made part of it with `adopt`) hold time while they run, also while they
    await a thread or another task; only `sleep_until` and `wait` let it pass. So a file is dubbed as fast
    as the machine can, and exactly as it would be live on an infinitely fast one. Deterministic: of two
    sleepers for one instant, the one that began to wait first wakes first, and wakes alone if it can.
    """

    def __init__(self, start_us: int = 0) -> None:
        self._now_us = start_us
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sleepers: set[_Sleeper] = set()
        self._order = 0
        self._check_due = False

    def now_us(self) -> int:
        return self._now_us

    async def sleep_until(self, until_us: int) -> None:
        if until_us > self._now_us:
            await self._sleep(None, until_us)

    async def wait(self, bell: Bell, until_us: int | None = None) -> bool:
        if until_us is not None and until_us <= self._now_us:
            return False
        return await self._sleep(bell, until_us)

    def start(
        self, group: asyncio.TaskGroup, work: Coroutine[Any, Any, None], name: str
    ) -> asyncio.Task[None]:
        task = group.create_task(work, name=name)
        self.adopt(task)
        return task

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Make time stand still while `task` works; a test adopts itself to step through time."""
        self._tasks.add(task)
        task.add_done_callback(self._leave)

    def _leave(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._advance_if_all_wait(task.get_loop())

    async def _sleep(self, bell: Bell | None, until_us: int | None) -> bool:
        loop = asyncio.get_running_loop()
        self._order += 1
        sleeper = _Sleeper(until_us, self._order, loop.create_future(), asyncio.current_task())
        self._sleepers.add(sleeper)
        # A task that is woken counts as working from the instant it is woken, not from when it next runs.
        sleeper.waiter.add_done_callback(lambda _: self._sleepers.discard(sleeper))
        self._advance_if_all_wait(loop)
        try:
            if bell is None:
                return await sleeper.waiter
            return await _wait_for_bell(bell, sleeper.waiter)
        finally:
            self._sleepers.discard(sleeper)

    def _advance_if_all_wait(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._check_due:
            self._check_due = True
            loop.call_soon(self._advance)

    def _advance(self) -> None:
        self._check_due = False
        waiting = [s for s in self._sleepers if not s.waiter.done()]
        if not self._tasks <= {s.task for s in waiting}:
            return
        due = [s for s in waiting if s.until_us is not None]
        if not due:
            return
        first = min(due, key=lambda s: (s.until_us, s.order))
        assert first.until_us is not None
        self._now_us = max(self._now_us, first.until_us)
        first.waiter.set_result(False)
