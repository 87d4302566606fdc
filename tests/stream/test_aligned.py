"""The aligned policy: a dub goes onto the face as it was when that was said which it dubs."""

from __future__ import annotations

import numpy as np
import pytest

from stream.session import Policy, SessionConfig
from tests.stream.fakes import luma_of
from tests.stream.harness import Rig, running, tone

HOLD_US = 3_000_000
CONFIG = SessionConfig(mark=False, policy=Policy.ALIGNED, latency_budget_us=HOLD_US)


def dubbed_times(rig: Rig) -> list[int]:
    """Capture times of the frames whose mouth moves."""
    return [frame.time_us for frame in rig.sink.frames if luma_of(frame.picture) > 60]


def heard_us(rig: Rig) -> tuple[int, int]:
    """When the first and the last sample of speech were heard."""
    loud = np.flatnonzero(np.abs(rig.sound) > 100)
    first_us = rig.sink.sounds[0].due_us
    return first_us + int(loud[0]) * 1_000_000 // 48_000, first_us + int(loud[-1]) * 1_000_000 // 48_000


@pytest.mark.parametrize("lag_us", [300_000, 1_000_000, 2_400_000])
async def test_a_dub_is_seen_and_heard_on_what_it_dubs_however_late_it_comes(lag_us: int) -> None:
    async with running(CONFIG) as rig:
        await rig.frames(25)
        said_us = rig.clock.now_us()
        await rig.frames(lag_us // 40_000)
        rig.session.voice.push(tone(1000), at_us=said_us)
        rig.session.voice.end()
        await rig.frames(100)
        await rig.clock.sleep_until(rig.clock.now_us() + HOLD_US)
        stats = rig.session.stats()
    times = dubbed_times(rig)
    assert abs(times[0] - said_us) <= 40_000
    assert abs(times[-1] - said_us - 1_000_000) <= 40_000
    begins_us, ends_us = heard_us(rig)
    assert abs(begins_us - said_us - HOLD_US) < 2_000
    assert abs(ends_us - said_us - HOLD_US - 1_000_000) < 2_000
    assert all(frame.due_us == frame.time_us + HOLD_US for frame in rig.sink.frames)
    assert stats.late == stats.gaps == 0
    assert stats.skew_ms.max < 1


async def test_a_dub_that_comes_in_pieces_keeps_its_place() -> None:
    async with running(CONFIG) as rig:
        await rig.frames(25)
        said_us = rig.clock.now_us()
        await rig.frames(40)
        for k in range(10):
            rig.session.voice.push(tone(100), at_us=said_us + k * 100_000 if k % 3 == 0 else None)
            await rig.frames(1)
        await rig.frames(100)
        await rig.clock.sleep_until(rig.clock.now_us() + HOLD_US)
    begins_us, ends_us = heard_us(rig)
    assert abs(begins_us - said_us - HOLD_US) < 2_000
    assert abs(ends_us - begins_us - 1_000_000) < 5_000


async def test_beyond_the_bound_a_dub_is_placed_as_early_as_it_can_be() -> None:
    async with running(CONFIG) as rig:
        await rig.frames(25)
        said_us = rig.clock.now_us()
        await rig.frames(100)
        came_us = rig.clock.now_us()
        rig.session.voice.push(tone(1000), at_us=said_us)
        await rig.frames(100)
        await rig.clock.sleep_until(rig.clock.now_us() + HOLD_US)
        stats = rig.session.stats()
    times = dubbed_times(rig)
    # Shown and heard soon after it came, together, and nothing waited for it.
    begins_us, _ = heard_us(rig)
    assert came_us < begins_us <= came_us + 500_000
    assert abs(times[0] + HOLD_US - begins_us) <= 80_000
    assert len(rig.sink.frames) == 225
    assert rig.session.voice.late_samples > 48_000 * (came_us - said_us - HOLD_US) // 1_000_000
    assert stats.late == 0


async def test_without_a_dub_the_source_is_shown_after_the_hold() -> None:
    async with running(CONFIG) as rig:
        await rig.frames(50)
        await rig.clock.sleep_until(rig.clock.now_us() + HOLD_US)
        stats = rig.session.stats()
    assert len(rig.sink.frames) == 50
    assert all(
        at == frame.time_us + HOLD_US for at, frame in zip(rig.sink.frame_times, rig.sink.frames, strict=True)
    )
    assert stats.late == 0


async def test_a_live_session_takes_no_stamps() -> None:
    async with running() as rig:
        with pytest.raises(ValueError, match="not aligned"):
            rig.session.voice.push(tone(100), at_us=0)


def test_a_hold_too_short_to_draw_in_is_refused() -> None:
    with pytest.raises(ValueError, match="600000"):
        SessionConfig(policy=Policy.ALIGNED, latency_budget_us=400_000)
