from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.clock import Bell, MonotonicClock, RtpClock, VirtualClock


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


def _stamps(seconds: float, rate: int, first: int, drift_ppm: float = 0.0) -> list[tuple[int, int]]:
    """(RTP stamp, true session us) every 40 ms of a sender whose crystal is off."""
    out = []
    for k in range(int(seconds * 25)):
        media_s = k * 0.04
        out.append(((first + round(media_s * rate)) % 2**32, round(media_s * (1 + drift_ppm / 1e6) * 1e6)))
    return out


def test_jitter_is_removed_and_the_stamp_wraps() -> None:
    rng = random.Random(1)
    clock = RtpClock(90_000)
    worst = 0
    for k, (stamp, true_us) in enumerate(_stamps(60, 90_000, 2**32 - 90_000 * 20)):
        mapped = clock.to_session_us(stamp, true_us + 20_000 + rng.randrange(0, 60_000))
        if k > 100:
            worst = max(worst, abs(mapped - true_us - 20_000))
    assert clock.anchors == 1
    assert worst < 8_000


@pytest.mark.parametrize("drift_ppm", [-200.0, 200.0])
def test_drift_is_followed(drift_ppm: float) -> None:
    rng = random.Random(2)
    clock = RtpClock(48_000)
    last_error = 0
    for stamp, true_us in _stamps(600, 48_000, 5, drift_ppm):
        mapped = clock.to_session_us(stamp, true_us + rng.randrange(0, 30_000))
        last_error = mapped - true_us
        assert abs(last_error) < 40_000
    # Ten minutes at 200 ppm are 120 ms; none of it may be left.
    assert abs(last_error) < 15_000


@pytest.mark.parametrize("jump", [90_000 * 100, -90_000 * 100, 2**31 - 1])
def test_a_jump_anchors_anew(jump: int) -> None:
    clock = RtpClock(90_000)
    for k in range(50):
        clock.to_session_us(k * 3600, k * 40_000)
    assert clock.to_session_us((50 * 3600 + jump) % 2**32, 2_000_000) == 2_000_000
    assert clock.to_session_us((51 * 3600 + jump) % 2**32, 2_040_000) == 2_040_000
    assert clock.anchors == 2


def test_a_stalled_network_is_no_jump_of_time() -> None:
    clock = RtpClock(90_000)
    for k in range(50):
        clock.to_session_us(k * 3600, k * 40_000)
    for k in range(50, 75):
        assert abs(clock.to_session_us(k * 3600, 3_000_000) - k * 40_000) <= 1_000
    assert clock.anchors == 1


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 10**7)), max_size=60))
def test_nothing_is_captured_after_it_arrived(packets: list[tuple[int, int]]) -> None:
    clock = RtpClock(90_000)
    arrived_us = 0
    for stamp, gap_us in packets:
        arrived_us += gap_us
        mapped = clock.to_session_us(stamp, arrived_us)
        assert arrived_us - 1_500_001 <= mapped <= arrived_us


def test_a_first_frame_that_came_by_a_shorter_way_is_forgotten() -> None:
    """Else every later frame counts as captured that much too early, and playout has to pay for it."""
    clock = RtpClock(90_000)
    clock.to_session_us(0, 0)
    lateness = [
        index * 40_000 + 66_000 - clock.to_session_us(index * 3600, index * 40_000 + 66_000)
        for index in range(1, 500)
    ]
    assert lateness[0] == pytest.approx(106_000 - 40_000, abs=1000)
    assert lateness[-1] < 1000
