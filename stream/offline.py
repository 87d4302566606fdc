"""File in, file out, through the very same session as live, on a virtual clock."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from retalk_models.engine import Engine, Idle, Template, adapted, load_engine
from stream.clock import Clock, MonotonicClock, VirtualClock
from stream.errors import InputError
from stream.files import AudioFile, FilmOf, VideoFile
from stream.filesink import FileShape, FileSink
from stream.media import PLAYOUT_RATE
from stream.outputs import check_film, check_report, partial_beside
from stream.presenter import FrameReader
from stream.runner import EngineRunner, InlineRunner, PreparedRunner
from stream.scheduler import Scheduler
from stream.session import Session, SessionConfig
from stream.stats import SessionStats, Spread
from stream.stereo import StereoSound
from stream.voice import samples_to_us, us_to_samples

Progress = Callable[[int, int | None], None]
"""Called with the frames that are out and how many there will be, where that is known."""

_AHEAD_US = 1_500_000
_STRIDE_US = 5_000_000
_FIGURES = 50_000


def dub(
    video: str | Path,
    audio: str | Path,
    out: str | Path,
    *,
    engine: Engine | str = "talkin",
    device: str = "auto",
    idle: Idle | str = Idle.REST,
    mark: bool = True,
    seed: int = 0,
    template: Template | str = Template.NEUTRAL,
    realtime: bool = False,
    progress: Progress | None = None,
    report: str | Path | None = None,
) -> dict[str, Any]:
    """Dub VIDEO with AUDIO into OUT (MP4: H.264 and AAC) and return the report.

    Frame count, each frame's own time, size, rotation and colour tags stay. Where AUDIO is longer VIDEO is
    held by ping-pong looping, where it is shorter the rest is silence. VIDEO may be a still image.
    realtime: keep to the wall clock, and lower quality before falling behind, as a live session does.
    report: also write the report there, as JSON.
    AUDIO's left and right stay apart, more channels become those two; in real time all are heard as one.
    An odd width or height needs full colour resolution (yuv444p), which some players cannot show.
    OUT appears only when it is complete. Raises InputError for whatever is wrong with an input.
    """
    target, source, voice = Path(out), Path(video), Path(audio)
    check_film(target, (source, voice))
    if report is not None:
        check_report(Path(report), target, (source, voice))
    with VideoFile(source) as frames, AudioFile(voice) as sound:
        loaded = load_engine(engine, device) if isinstance(engine, str) else engine
        partial = partial_beside(target)
        config = SessionConfig(
            voice_shift_us=0,
            idle=Idle(idle),
            mark=mark,
            seed=seed,
            template=Template(template),
            person=adapted(source),
            film=FilmOf.file(source),
            adaptive=realtime,
            figures_kept=_FIGURES,
        )
        job = _Dub(frames, sound, loaded, config, partial, realtime, progress)
        try:
            result = _run(job, target)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    if report is not None:
        _write(Path(report), json.dumps(result, indent=2) + "\n")
    return result


def _run(job: _Dub, target: Path) -> dict[str, Any]:
    try:
        return asyncio.run(job.run())
    except BaseException as error:
        fault = _first(error)
        # Inputs were opened and the engine's faults are caught: what is left to fail is writing.
        if isinstance(fault, OSError):
            raise _unwritten(target, fault) from fault
        raise fault from None


def _write(report: Path, text: str) -> None:
    try:
        report.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritten(report, error) from error


def _unwritten(path: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(path, f"it cannot be written ({reason})", "free some space or choose another place")


def _first(error: BaseException) -> BaseException:
    """The fault that ended a group of tasks, without the group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Dub:
    """One run: a session, what feeds it, and what keeps its output."""

    def __init__(
        self,
        frames: VideoFile,
        sound: AudioFile,
        engine: Engine,
        config: SessionConfig,
        partial: Path,
        realtime: bool,
        progress: Progress | None,
    ) -> None:
        self._frames = frames
        self._sound = sound.pieces()
        # In real time playout may stretch the sound, and only the voice's one channel is stretched.
        self._stereo = StereoSound(sound.path) if sound.channels > 1 and not realtime else None
        self._sound_us = sound.expected_us()
        self._engine = engine
        self._config = config
        self._partial = partial
        self._realtime = realtime
        self._progress = progress
        self._sound_end: int | None = None
        self._pts: dict[int, int] = {}

    async def run(self) -> dict[str, Any]:
        if not self._realtime:
            return await self._dub(InlineRunner())
        scheduler = Scheduler("dub")
        try:
            # Time begins to pass when the engine is there to use it.
            prepared = PreparedRunner(scheduler)
            await prepared.prepare(self._engine, self._config.engine_options())
            return await self._dub(prepared)
        finally:
            await scheduler.shutdown()

    async def _dub(self, runner: EngineRunner) -> dict[str, Any]:
        clock: Clock = MonotonicClock() if self._realtime else VirtualClock()
        frames = self._frames
        shape = FileShape(
            frames.width,
            frames.height,
            frames.rotation,
            frames.time_base,
            frames.rate,
            frames.colour,
            frames.sample_aspect_ratio,
        )
        sink = FileSink(self._partial, shape, self._pts.pop, self._stereo)
        session = Session(self._config, self._engine, clock=clock, runner=runner, sink=sink)
        session.voice.begin_at(0)
        began = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                clock.start(group, self._feed(session, sink, clock), "feed")
                await session.run()
            stats = session.stats()
            await asyncio.to_thread(sink.finish)
        except BaseException:
            sink.abort()
            raise
        finally:
            # While its file is still open: left to the collector, it would end on any thread, after that.
            self._sound.close()
            if self._stereo is not None:
                self._stereo.close()
        return self._report(stats, sink, time.perf_counter() - began)

    async def _feed(self, session: Session, sink: FileSink, clock: Clock) -> None:
        """Push each frame at its own time, with the voice always well ahead of it."""
        frames = self._frames
        reader = FrameReader(frames, frames.once())
        count, time_us, end_pts, held = 0, -1, 0, False
        try:
            while True:
                frame = await reader.read()
                if frame is None and not held:
                    held = True
                    reader.go_on(frames.held())
                    # Only now is the file's own length known, and with it whether it must be held.
                    self._speak(session, time_us + _AHEAD_US)
                    if self._sound_is_over(frames.time_us(end_pts)):
                        break
                    continue
                if frame is None or (held and self._sound_is_over(frames.time_us(frame.pts + frames.lead))):
                    break
                # The voice begins where the film does, which need not be where its picture does.
                pts = frame.pts + frames.lead
                due_us = max(frames.time_us(pts), time_us + 1)
                await self._pass_time(session, clock, due_us)
                time_us = due_us
                self._pts[time_us] = pts
                end_pts = pts + frames.step
                if not session.source.push(frame.picture, time_us):
                    raise RuntimeError(f"frame {count} was refused")
                count += 1
                if self._progress is not None:
                    self._progress(count, self._expected(count))
        finally:
            reader.close(wait=True)
        end_us = max(frames.time_us(end_pts), samples_to_us(self._sound_end or 0))
        await self._pass_time(session, clock, time_us)
        sink.end_at(us_to_samples(end_us), frames.step)
        session.source.end(end_us)

    async def _pass_time(self, session: Session, clock: Clock, until_us: int) -> None:
        """Let session time come to `until_us`, with speech laid down ahead of it all the way."""
        while True:
            stop_us = min(until_us, max(0, clock.now_us()) + _STRIDE_US)
            self._speak(session, stop_us + _AHEAD_US)
            await clock.sleep_until(stop_us)
            if stop_us >= until_us:
                return

    def _speak(self, session: Session, until_us: int) -> None:
        voice = session.voice
        while samples_to_us(voice.written) < until_us:
            piece = None if self._sound_end is not None else next(self._sound, None)
            if piece is not None:
                voice.push(*piece)
            elif self._sound_end is None:
                voice.end()
                self._sound_end = voice.written
            else:
                voice.push(np.zeros(PLAYOUT_RATE // 10, np.int16))

    def _sound_is_over(self, time_us: int) -> bool:
        """Whether no speech is left for a frame at this time, give or take half a frame."""
        half_us = self._frames.time_us(self._frames.step) // 2
        return self._sound_end is not None and time_us + half_us >= samples_to_us(self._sound_end)

    def _expected(self, count: int) -> int | None:
        whole = self._frames.expected_frames()
        if whole is None or self._sound_us is None:
            return None
        step_us = max(1, self._frames.time_us(self._frames.step))
        return max(whole, round(self._sound_us / step_us), count)

    def _report(self, stats: SessionStats, sink: FileSink, wall_s: float) -> dict[str, Any]:
        seconds = sink.seconds
        return {
            "engine": self._engine.name,
            "device": self._engine.device,
            "weights": dict(self._engine.weights),
            "frames": sink.frames,
            "frames_in": stats.frames_in,
            "dubbed": stats.dubbed,
            "late": stats.late,
            "fps_in": round(float(self._frames.rate), 3),
            "fps_out": round(sink.frames / seconds, 3) if seconds else 0.0,
            "seconds": round(seconds, 3),
            "wall_seconds": round(wall_s, 3),
            "frames_per_wall_second": round(sink.frames / wall_s, 2),
            "width": self._frames.width,
            "height": self._frames.height,
            "stage_ms": {name: _rounded(spread) for name, spread in stats.stage_ms.items()},
            "rungs": dict(stats.rungs),
            "faces": dict(stats.faces),
            "engine_counts": dict(stats.engine_counts),
            "skew_ms": _rounded(stats.skew_ms),
            "faults": stats.faults,
            "last_fault": stats.last_fault,
        }


def _rounded(spread: Spread) -> dict[str, float]:
    return {name: round(value, 2) for name, value in asdict(spread).items()}
