from __future__ import annotations

import asyncio

from stream.clock import Bell, MonotonicClock, VirtualClock


async def test_virtual_time_passes_only_while_every_task_waits() -> None:
    clock = VirtualClock()
    seen: list[tuple[str, int]] = []

    async def sleeper(name: str, step_us: int) -> None:
        for _ in range(3):
            await clock.sleep_until(clock.now_us() + step_us)
            # Work that takes real time, and none of the session's.
            await asyncio.to_thread(sum, range(1000))
            seen.append((name, clock.now_us()))

    async with asyncio.TaskGroup() as group:
        clock.start(group, sleeper("a", 10), "a")
        clock.start(group, sleeper("b", 15), "b")
    assert seen == [("a", 10), ("b", 15), ("a", 20), ("b", 30), ("a", 30), ("b", 45)]


async def test_a_bell_wakes_before_the_time_comes() -> None:
    clock, bell = VirtualClock(), Bell()
    woken: list[tuple[bool, int]] = []

    async def waiter() -> None:
        woken.append((await clock.wait(bell, 1_000_000), clock.now_us()))
        woken.append((await clock.wait(bell, 1_000_000), clock.now_us()))

    async def ringer() -> None:
        await clock.sleep_until(300)
        bell.ring()

    async with asyncio.TaskGroup() as group:
        clock.start(group, waiter(), "waiter")
        clock.start(group, ringer(), "ringer")
    assert woken == [(True, 300), (False, 1_000_000)]


async def test_a_cancelled_sleeper_does_not_hold_time() -> None:
    clock = VirtualClock()

    async def forever() -> None:
        await clock.wait(Bell())

    async def other() -> None:
        await clock.sleep_until(50)
        task.cancel()
        await clock.sleep_until(100)

    async with asyncio.TaskGroup() as group:
        task = clock.start(group, forever(), "forever")
        clock.start(group, other(), "other")
    assert clock.now_us() == 100


async def test_the_monotonic_clock_never_wakes_early() -> None:
    clock = MonotonicClock()
    until_us = clock.now_us() + 3_000
    await clock.sleep_until(until_us)
    assert clock.now_us() >= until_us
    assert not await clock.wait(Bell(), clock.now_us() + 1_000)
