"""Engines that are slow, raise, hang or have no memory: the source shows, sound goes on, the dub returns."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from retalk_models.engine import EngineResult, EngineWindow
from stream.clock import VirtualClock
from stream.runner import EngineRunner, InlineRunner
from stream.session import SessionConfig
from stream.stats import SessionState
from tests.stream.fakes import luma_of
from tests.stream.harness import running, tone

BUDGET_US = 400_000
BEGINS_US, ENDS_US = 1_000_000, 2_500_000
CONFIG = SessionConfig(mark=False, latency_budget_us=BUDGET_US, engine_timeout_us=600_000)

Fault = Callable[[VirtualClock], Awaitable[None]]


async def slow(clock: VirtualClock) -> None:
    """Twice the whole budget for one window."""
    await clock.sleep_until(clock.now_us() + 2 * BUDGET_US)


async def at_half_speed(clock: VirtualClock) -> None:
    """Twice the time that a window covers."""
    await clock.sleep_until(clock.now_us() + 80_000)


async def raising(clock: VirtualClock) -> None:
    raise RuntimeError("a kernel failed")


async def out_of_memory(clock: VirtualClock) -> None:
    raise MemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


async def hanging(clock: VirtualClock) -> None:
    await clock.sleep_until(clock.now_us() + 3_600_000_000)


class FaultyRunner(InlineRunner):
    """Every call between BEGINS_US and ENDS_US meets the fault; each takes 5 ms otherwise."""

    def __init__(self, clock: VirtualClock, fault: Fault) -> None:
        super().__init__()
        self._clock = clock
        self._fault = fault

    async def run(self, handle: int, window: EngineWindow, due_in_us: int) -> EngineResult:
        if BEGINS_US <= self._clock.now_us() < ENDS_US:
            await self._fault(self._clock)
        await self._clock.sleep_until(self._clock.now_us() + 5_000)
        return await super().run(handle, window, due_in_us)


@pytest.mark.parametrize("fault", [slow, at_half_speed, raising, out_of_memory, hanging])
async def test_a_faulty_engine_costs_the_dub_and_nothing_else(fault: Fault) -> None:
    def runner(clock: VirtualClock) -> EngineRunner:
        return FaultyRunner(clock, fault)

    async with running(CONFIG, runner=runner) as rig:
        rig.session.voice.push(tone(20_000))
        await rig.frames(45)
        during = rig.session.stats()
        await rig.frames(400)
        await rig.drain()
        stats = rig.session.stats()
    sink = rig.sink
    # The picture: every frame leaves, in order, within the budget, and by the source where there is no dub.
    assert len(sink.frames) == 445
    assert stats.dropped == 0
    waits = [at - frame.arrived_us for at, frame in zip(sink.frame_times, sink.frames, strict=True)]
    assert max(waits) <= BUDGET_US
    gaps = [b - a for a, b in itertools.pairwise(sink.frame_times)]
    assert max(gaps) <= 40_000 + 20_000, "the picture froze"
    assert all(luma_of(frame.picture) == 60 for frame in sink.frames if not frame.dubbed)
    if fault is not at_half_speed:
        # What was begun before may still be shown: it was captured at most one delay and one window ago.
        reached_us = BEGINS_US + during.playout_delay_ms * 1000 + 40_000
        shown = [frame for frame in sink.frames if reached_us < frame.due_us < ENDS_US]
        assert shown
        assert not any(frame.dubbed for frame in shown), "not the source within one window"
    # The sound: exact 20 ms on one grid, and never a hole in what is said.
    dues = [frame.due_us for frame in sink.sounds]
    assert dues == sink.sound_times == list(range(dues[0], dues[0] + 20_000 * len(dues), 20_000))
    heard = [frame.samples for frame in sink.sounds if 1_000_000 < frame.due_us < 17_000_000]
    assert min(int(np.abs(samples).max()) for samples in heard) > 5_000
    # The dub comes back by itself, and stays.
    assert all(frame.dubbed for frame in sink.frames[-100:])
    assert stats.state == SessionState.LIVE
    assert (stats.faults > 0) == (fault in (raising, out_of_memory, hanging, slow))
