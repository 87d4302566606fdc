"""A session: one source, one voice, one engine; read it and you know the product."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from retalk_models.engine import Engine, EngineOptions, Film, Idle, Template
from retalk_models.picture import Picture
from stream.clock import Bell, Clock
from stream.encode import EncodedHub
from stream.ladder import QualityLadder
from stream.link import EngineLink, Finished
from stream.media import AUDIO_FRAME_SAMPLES
from stream.playout import Playout, Sink
from stream.runner import EngineRunner
from stream.source import SourceBuffer
from stream.stats import Counts, Figures, SessionState, SessionStats
from stream.voice import FIR_REACH, VoiceTrack, samples_to_us, us_to_samples
from stream.windows import WindowCutter

_DRAWING_RESERVE_US = 300_000
"""How long before it is shown an aligned frame goes to the engine, even if no dub has come for it."""


class Policy(StrEnum):
    """What a dub goes onto."""

    LIVE = "live"  # the face as it is when the dub comes
    ALIGNED = "aligned"  # the face as it was when that was said which the dub's time stamps name


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """What a session is asked to be, fixed for its life. Times in microseconds.

    latency_budget_us: the most that playout may delay a frame. playout_delay_us: where it starts.
    policy: aligned holds every frame for latency_budget_us, for the dub that is stamped with its time.
    voice_shift_us: S of the time model; None for look-ahead plus slack (live), 0 for files.
    adaptive: whether playout delay and quality follow the load; off for files. hurried: a session that is not
    adaptive, for which the engine has no more time than for one that is.
    engine_timeout_us: an engine that has not answered for so long has failed.
    person: weights adapted to the person shown, None for the bundled ones.
    film: what the source will show, where that is known beforehand.
    mark: whether the visible "made by a machine" mark is drawn.
    source_frames: how many frames may wait to be taken. figures_kept: values that percentiles are made of.
    """

    policy: Policy = Policy.LIVE
    latency_budget_us: int = 400_000
    playout_delay_us: int = 100_000
    window_us: int = 40_000
    voice_slack_us: int = 40_000
    voice_shift_us: int | None = None
    idle: Idle = Idle.SOURCE
    mark: bool = True
    seed: int = 0
    template: Template = Template.NEUTRAL
    person: Path | None = None
    film: Film | None = None
    adaptive: bool = True
    hurried: bool = False
    engine_timeout_us: int = 2_000_000
    source_frames: int = 8
    figures_kept: int = 500

    def __post_init__(self) -> None:
        if not 40_000 <= self.latency_budget_us <= 10_000_000:
            raise ValueError(f"latency_budget_us must be 40000..10000000, not {self.latency_budget_us}")
        if self.policy is Policy.ALIGNED and self.latency_budget_us < 2 * _DRAWING_RESERVE_US:
            raise ValueError(
                f"an aligned session holds frames for 600000 us or more, not {self.latency_budget_us}"
            )
        if not 10_000 <= self.window_us <= 1_000_000:
            raise ValueError(f"window_us must be 10000..1000000, not {self.window_us}")

    def engine_options(self) -> EngineOptions:
        """What the session asks of its engine."""
        return EngineOptions(
            self.idle,
            self.seed,
            self.template,
            patient=not (self.adaptive or self.hurried),
            person=self.person,
            film=self.film,
        )


class Session:
    """One dubbed stream. Everything of it lives inside `run`; when that returns nothing of it is left.

    Feed `source` and `voice`, watch through `hub` (or give a sink of your own), look at `stats()`.
    Used from one event loop's thread.
    """

    def __init__(
        self,
        config: SessionConfig,
        engine: Engine,
        *,
        clock: Clock,
        runner: EngineRunner,
        sink: Sink | None = None,
    ) -> None:
        self.config = config
        self.clock = clock
        self._bell = Bell()
        self._counts = Counts(config.figures_kept)
        self.source = SourceBuffer(clock, config.source_frames, self._bell)
        aligned = config.policy is Policy.ALIGNED
        slack_us, delay_us = config.voice_slack_us, config.playout_delay_us
        if aligned:
            delay_us = config.latency_budget_us
            slack_us = delay_us - engine.look_ahead_us - _DRAWING_RESERVE_US
        self.voice = VoiceTrack(clock, slack_us, self._bell, stamped=aligned)
        self.hub = EncodedHub(clock, self._counts)
        self._sink: Sink = self.hub if sink is None else sink
        self._shift_us = 0 if aligned else config.voice_shift_us
        if self._shift_us is None:
            # What the engine reads for a frame that has just come is then final: nothing waits for the voice.
            self._shift_us = engine.look_ahead_us + slack_us + samples_to_us(FIR_REACH + 1)
        self._cutter = WindowCutter(
            self.voice, config.window_us, engine.look_ahead_us, self._shift_us, slack_us
        )
        self._playout = Playout(
            clock,
            self.voice,
            self._sink,
            self._counts,
            delay_us=delay_us,
            least_delay_us=delay_us if aligned else 60_000,
            shift_us=self._shift_us,
            most_delay_us=config.latency_budget_us,
            adaptive=config.adaptive,
            finish=_mark() if config.mark else None,
        )
        self._ladder = QualityLadder(fixed=not config.adaptive)
        options = config.engine_options()
        self._link = EngineLink(clock, self._bell, runner, engine, options, config.engine_timeout_us)
        self._stop = asyncio.Event()
        self._finished = asyncio.Event()
        self._running = False
        self._closed = False

    async def run(self) -> None:
        """Dub until `close`, or until the source has ended and all of it is out."""
        if self._running or self._closed:
            raise RuntimeError("a session runs once")
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                sink = self.clock.start(group, self._sink.run(), "sink")
                playout = self.clock.start(group, self._playout.run(), "playout")
                director = self.clock.start(group, self._direct(group), "director")
                playout.add_done_callback(lambda _: self._stop.set())
                try:
                    await self._stop.wait()
                finally:
                    for task in (director, playout, sink):
                        task.cancel()
                    await self._link.close()
        finally:
            self._closed = True
            self.source.end()
            self._finished.set()

    async def close(self) -> None:
        """End the session and wait until nothing of it is left. Idempotent."""
        self._closed = True
        self._stop.set()
        if self._running:
            await self._finished.wait()

    def interrupt(self) -> int:
        """Silence the voice at once, drop everything made for what it was saying; the new epoch."""
        epoch = self.voice.interrupt()
        self._sink.interrupt(epoch)
        self._bell.ring()
        return epoch

    def take_figures(self) -> Figures:
        """Every latency, skew and stage time since this was last called."""
        return self._counts.take()

    def stats(self) -> SessionStats:
        counts, voice, now_us = self._counts, self.voice, self.clock.now_us()
        position = self._playout.position
        encoded = self._sink.counts()
        return SessionStats(
            state=self._state(),
            rung=self._ladder.rung,
            face=counts.face,
            faces=dict(counts.faces),
            rungs=dict(counts.rungs),
            stage_ms={name: recent.spread() for name, recent in counts.stages.items()},
            added_latency_ms=counts.latency_ms.spread(),
            skew_ms=counts.skew_ms.spread(),
            fps_in=counts.arrivals.per_second(now_us),
            fps_out=counts.releases.per_second(now_us),
            frames_in=self.source.accepted,
            frames_out=counts.frames_out,
            dubbed=counts.dubbed,
            late=counts.late,
            stale=counts.stale,
            dropped=self.source.dropped + counts.overflowed,
            rejected=self.source.rejected,
            gaps=voice.gaps,
            gap_ms=voice.gap_samples // 48,
            skipped_ms=counts.audio_skipped * AUDIO_FRAME_SAMPLES // 48,
            epoch=voice.epoch,
            speaking=voice.active(position - us_to_samples(100_000), position + us_to_samples(100_000)),
            playout_delay_ms=self._playout.delay_us // 1000,
            voice_shift_ms=(self._shift_us or 0) // 1000,
            voice_buffered_ms=voice.buffered_ms(),
            played_ms=voice.played // 48,
            faults=counts.faults,
            last_fault=counts.last_fault,
            queues={"source": len(self.source), "windows": len(self._cutter), "playout": len(self._playout)},
            encoded=encoded,
            drops={
                "source_full": self.source.dropped,
                "out_of_order": self.source.rejected,
                "playout_full": counts.overflowed,
                "encoder_behind": encoded.get("encode_dropped", 0),
                "encoder_refused": encoded.get("encode_refused", 0),
                "viewer_behind": encoded.get("viewer_dropped", 0),
            },
            rung_changes=dict(self._ladder.changes),
            engine_counts=dict(counts.engine),
        )

    def _state(self) -> SessionState:
        if self._closed:
            return SessionState.CLOSED
        if self._ladder.faulted:
            return SessionState.FAULTED
        return SessionState.LIVE if self.source.accepted else SessionState.WAITING

    async def _direct(self, group: asyncio.TaskGroup) -> None:
        """Take frames in, hand windows to the engine, hand results to playout; wait for nothing else."""
        self._link.open(group)
        while True:
            self._take_frames()
            finished = self._link.collect()
            if finished is not None:
                self._settle(finished)
            if not self._link.busy:
                self._give_work(group)
            if self.source.ended and not (len(self.source) or len(self._cutter) or self._link.busy):
                self._playout.end(self._end_us())
                return
            await self.clock.wait(self._bell, self._wake_us())

    def _take_frames(self) -> None:
        for frame in self.source.take_all():
            self._counts.arrivals.add(frame.arrived_us)
            self._playout.expect(frame)
            if self._wants_dub():
                self._cutter.add(frame)
            else:
                self._playout.undubbed(frame)

    def _wants_dub(self) -> bool:
        """Whether a frame that comes now has a chance to be dubbed."""
        may_run = self._ladder.may_run(self.clock.now_us())
        return may_run and (self._link.is_open or not self.config.adaptive)

    def _give_work(self, group: asyncio.TaskGroup) -> None:
        now_us = self.clock.now_us()
        if not self._ladder.may_run(now_us):
            self._cutter.clear()
            return
        if not self._link.is_open:
            self._link.open(group)
            return
        # What is bound to come too late only delays what need not; but something is always tried.
        delay_us = self._playout.delay_us
        cost_us = min(self._ladder.cost_us, delay_us - self._cutter.step_us) if self.config.adaptive else 0
        self._cutter.give_up_before(now_us + max(0, cost_us) - delay_us)
        window = self._cutter.cut(now_us, self._ladder.window_rung(), self.source.ended)
        if window is not None:
            due_us = window.frames[0].time_us + self._playout.delay_us
            self._link.run(group, window, due_us - now_us)

    def _settle(self, finished: Finished) -> None:
        now_us = self.clock.now_us()
        if finished.fault:
            self._counts.faults += 1
            self._counts.last_fault = finished.fault
            self._ladder.failed(now_us)
            self._cutter.clear()
            return
        window, result = finished.window, finished.result
        if window is None or result is None:
            return
        on_time = True
        for frame, output in zip(window.frames, result.outputs, strict=True):
            on_time &= self._playout.deliver(frame, output, window.engine.epoch, window.engine.rung)
        for stage, milliseconds in result.stage_ms.items():
            self._counts.stage(stage, milliseconds)
        self._counts.engine.update(result.counts)
        computed_ms = sum(result.stage_ms.values())
        self._counts.stage("queue", max(0.0, finished.cost_us / 1000 - computed_ms))
        if not finished.warm_up or self._ladder.faulted:
            span_us = self._cutter.step_us * len(window.frames)
            self._ladder.finished(now_us, finished.cost_us, span_us, on_time or self._playout.can_rise)

    def _end_us(self) -> int:
        if self.source.end_us is not None:
            return self.source.end_us
        last_us = self.source.last_time_us
        return 0 if last_us is None else last_us + self._cutter.step_us

    def _wake_us(self) -> int | None:
        if self._link.busy:
            return self._link.wake_us()
        waits = [self._cutter.wake_us(), self._ladder.wake_us()]
        due = [wait for wait in waits if wait is not None and wait > self.clock.now_us()]
        return min(due, default=None)


def _mark() -> Callable[[Picture], Picture]:
    from retalk_models.mark import apply_mark

    return apply_mark
