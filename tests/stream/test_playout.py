"""What changing the playout delay does to the sound."""

from __future__ import annotations

import numpy as np

from retalk_models.engine import Rung
from stream.session import SessionConfig
from tests.stream.fakes import SlowRunner
from tests.stream.harness import running, tone

PLAIN = SessionConfig(mark=False)


async def test_a_rise_amid_speech_holds_the_sound_without_a_tear() -> None:
    said = tone(4000, hertz=205.0)
    async with running(PLAIN, runner=lambda clock: SlowRunner(clock, lambda _: 115_000)) as rig:
        rig.session.voice.push(said)
        await rig.frames(20, 200_000)
        await rig.drain()
        raised_ms = rig.session.stats().playout_delay_ms - 100
        skew = rig.session.stats().skew_ms
    assert raised_ms >= 20
    heard = rig.sound[np.flatnonzero(rig.sound)[0] : np.flatnonzero(rig.sound)[-1] + 1].astype(int)
    # A cut would jump by far more than the wave itself ever does from one sample to the next.
    assert np.abs(np.diff(heard)).max() <= 1.15 * np.abs(np.diff(said.astype(int))).max()
    assert abs(heard.size - said.size - raised_ms * 48) <= 100
    assert skew.max < 21


async def test_a_fall_takes_nothing_but_silence() -> None:
    said = tone(300)
    async with running(PLAIN) as rig:
        for _ in range(12):
            rig.session.voice.push(said)
            rig.session.voice.end()
            await rig.frames(25)
        await rig.drain()
        stats = rig.session.stats()
    assert stats.playout_delay_ms < 100
    heard = rig.sound[rig.sound != 0]
    np.testing.assert_array_equal(heard, np.tile(said[said != 0], 12))
    positions = [frame.position for frame in rig.sink.sounds]
    assert set(np.diff(positions)) <= {960, 1920}


async def test_a_machine_that_slept_does_not_burst() -> None:
    async with running(PLAIN) as rig:
        await rig.frames(10)
        rig.clock._now_us += 30_000_000
        before = len(rig.sink.sounds)
        await rig.frames(10)
        await rig.drain()
    assert len(rig.sink.sounds) - before < 100
    ends = [frame.position for frame in rig.sink.sounds]
    assert ends == sorted(ends)
    # bug: it was counted, and no figure said so.
    assert 29_400 <= rig.session.stats().skipped_ms <= 30_000


async def test_the_delay_also_falls_in_pauses_that_are_not_digital_silence() -> None:
    """A microphone's pause is never zero: a delay that had risen once stayed for good."""
    rng = np.random.default_rng(0)
    room = rng.normal(0, 60, 48 * 700).astype(np.int16)
    async with running(PLAIN) as rig:
        for _ in range(6):
            rig.session.voice.push(np.concatenate([tone(300), room]))
            await rig.frames(25)
        await rig.drain()
        stats = rig.session.stats()
    assert stats.playout_delay_ms < 100
    assert stats.gaps == 0


async def test_late_frames_cost_no_rung_while_the_delay_can_rise() -> None:
    """Three late frames in a row once meant a worse picture at half the load that the machine could bear."""
    async with running(PLAIN, runner=lambda clock: SlowRunner(clock, lambda _: 30_000)) as rig:
        rig.session._playout._delay_us = 20_000
        await rig.frames(50, 40_000)
        await rig.drain()
        stats = rig.session.stats()
    assert stats.late > 3
    assert stats.rung == Rung.FULL
    assert stats.playout_delay_ms > 20
