"""What this machine can carry: the real session and the real engine, measured alone and then live.

Alone: one session on a virtual clock with nothing beside it, so that the processor time of each call is that
call's own. Live: any number of sessions in real time, each with one viewer, as a server would run them.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import av
from av.video.codeccontext import VideoCodecContext

from retalk_models.engine import Engine, EngineOptions, EngineResult, EngineWindow
from stream.clock import Clock, MonotonicClock, VirtualClock
from stream.encode import Codec, Subscription, SubscriptionClosed, VideoEncoder
from stream.frames import picture_of
from stream.material import VOICE_CHUNK, Material
from stream.media import PLAYOUT_RATE, AudioFrame, DubbedFrame
from stream.runner import InlineRunner, processor_s
from stream.scheduler import Scheduler, threads_for
from stream.session import Session, SessionConfig
from stream.stats import Recent, SessionStats, Spread

_COST_WARM_UP_S = 4.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one core per second of video, of one session measured alone.

    stages: the engine's, each its share by wall time of what the engine's calls took.
    session: everything else that a session does: windows, voice, playout, the mark.
    window_ms: wall milliseconds of one call of the engine.
    """

    decode: float
    stages: Mapping[str, float]
    session: float
    encode: float
    window_ms: Spread

    @property
    def total(self) -> float:
        return self.decode + sum(self.stages.values()) + self.session + self.encode


@dataclass(frozen=True, slots=True)
class Live:
    """What the sessions did in real time, worst session first where they differ.

    cpu: seconds of one core per second of video and session, all but decoding.
    fps: frames that each session's viewer was given per second.
    rungs: frames of all sessions by rung; unlike in `stats`, those of the warm-up are not counted.
    """

    sessions: int
    seconds: float
    cpu: float
    fps: Sequence[float]
    stats: Sequence[SessionStats] = field(repr=False)
    rungs: Mapping[str, int] = field(default_factory=dict)


class _NoSink:
    """Takes everything, keeps nothing."""

    def video(self, frame: DubbedFrame) -> None: ...

    def audio(self, frame: AudioFrame) -> None: ...

    def interrupt(self, epoch: int) -> None: ...

    def counts(self) -> dict[str, int]:
        return {}

    async def run(self) -> None: ...


class _MeteredRunner:
    """An InlineRunner that notes the processor time, of all threads, of every window."""

    def __init__(self) -> None:
        self._runner = InlineRunner()
        self.cpu_s: list[float] = []
        self.wall_ms: list[float] = []
        self.stage_ms: dict[str, float] = {}

    async def open(self, engine: Engine, options: EngineOptions) -> int:
        return await self._runner.open(engine, options)

    async def run(self, handle: int, window: EngineWindow, due_in_us: int) -> EngineResult:
        cpu, wall = time.process_time(), time.perf_counter()
        result = await self._runner.run(handle, window, due_in_us)
        self.cpu_s.append(time.process_time() - cpu)
        self.wall_ms.append((time.perf_counter() - wall) * 1000)
        for stage, milliseconds in result.stage_ms.items():
            self.stage_ms[stage] = self.stage_ms.get(stage, 0.0) + milliseconds
        return result

    async def close(self, handle: int) -> None:
        await self._runner.close(handle)

    def abandon(self, handle: int) -> None:
        self._runner.abandon(handle)

    def forget(self) -> None:
        """What came so far was loading and warming up."""
        self.cpu_s.clear()
        self.wall_ms.clear()
        self.stage_ms.clear()


def measure_cost(
    engine: Engine,
    material: Material,
    seconds: float = 8.0,
    codec: Codec = "H264",
    warm_up_s: float = _COST_WARM_UP_S,
) -> Cost:
    """Processor time of one session by what it is spent on. Blocks for about the cost it finds."""
    return asyncio.run(_measure_cost(engine, material, seconds, codec, warm_up_s))


async def _measure_cost(
    engine: Engine, material: Material, seconds: float, codec: Codec, warm_up_s: float
) -> Cost:
    runner = _MeteredRunner()
    clock = VirtualClock()
    session = Session(_config(adaptive=False), engine, clock=clock, runner=runner, sink=_NoSink())
    began_s = 0.0

    async def feed() -> None:
        nonlocal began_s
        await _feed(session, material, warm_up_s)
        runner.forget()
        began_s = time.process_time()
        await _feed(session, material, seconds)
        session.source.end()

    async with asyncio.TaskGroup() as group:
        clock.start(group, feed(), "bench feed")
        group.create_task(session.run())
    total_s = time.process_time() - began_s
    if not runner.cpu_s:
        fault = session.stats().last_fault or "no window ever closed"
        raise RuntimeError(f"the engine was never called: {fault}")
    engine_s, wall_ms = sum(runner.cpu_s), sum(runner.stage_ms.values())
    encode, decode = _codec_cost(material, codec)
    return Cost(
        decode=decode,
        stages={name: engine_s / seconds * ms / wall_ms for name, ms in runner.stage_ms.items()},
        session=max(0.0, total_s - engine_s) / seconds,
        encode=encode,
        window_ms=_spread(runner.wall_ms),
    )


def measure_live(
    engine: Engine,
    material: Material,
    *,
    sessions: int,
    seconds: float,
    latency_budget_us: int = 400_000,
    codec: Codec = "H264",
    warm_up_s: float = 4.0,
    on_progress: Callable[[float], None] = lambda seconds: None,
) -> Live:
    """Run sessions side by side in real time. on_progress: told the seconds measured, once a second."""
    return asyncio.run(
        _measure_live(engine, material, sessions, seconds, latency_budget_us, codec, warm_up_s, on_progress)
    )


async def _measure_live(
    engine: Engine,
    material: Material,
    count: int,
    seconds: float,
    budget_us: int,
    codec: Codec,
    warm_up_s: float,
    on_progress: Callable[[float], None],
) -> Live:
    runner = Scheduler(workers=threads_for(engine))
    config = _config(adaptive=True, budget_us=budget_us)
    sessions = [Session(config, engine, clock=MonotonicClock(), runner=runner) for _ in range(count)]
    viewers = [session.hub.subscribe(codec) for session in sessions]
    seen = [0] * count

    async def watch(index: int, viewer: Subscription) -> None:
        with _until_closed():
            while True:
                await viewer.next_video()
                seen[index] += 1

    async def listen(viewer: Subscription) -> None:
        with _until_closed():
            while True:
                await viewer.next_audio()

    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(session.run()) for session in sessions]
            feeds = [
                group.create_task(_feed(session, material, warm_up_s + seconds + 5)) for session in sessions
            ]
            for index, viewer in enumerate(viewers):
                group.create_task(watch(index, viewer))
                group.create_task(listen(viewer))
            await asyncio.sleep(warm_up_s)
            began, cpu, before = time.monotonic(), processor_s(engine), list(seen)
            warming = _rungs(sessions)
            while (left := began + seconds - time.monotonic()) > 0:
                await asyncio.sleep(min(1.0, left))
                on_progress(time.monotonic() - began)
            passed, cpu = time.monotonic() - began, processor_s(engine) - cpu
            fps = [(now - then) / passed for now, then in zip(seen, before, strict=True)]
            stats = [session.stats() for session in sessions]
            rungs = _rungs(sessions) - warming
            for feed in feeds:
                feed.cancel()
            for session in sessions:
                await session.close()
            await asyncio.wait(running)
    finally:
        await runner.shutdown()
    return Live(count, passed, cpu / passed / count, fps, stats, rungs)


def _rungs(sessions: Sequence[Session]) -> Counter[str]:
    return sum((Counter(session.stats().rungs) for session in sessions), Counter())


@contextmanager
def _until_closed() -> Iterator[None]:
    try:
        yield
    except SubscriptionClosed:
        return


def _config(adaptive: bool, budget_us: int = 400_000) -> SessionConfig:
    return SessionConfig(latency_budget_us=budget_us, adaptive=adaptive, hurried=True)


async def _feed(session: Session, material: Material, seconds: float) -> None:
    """Push frames and voice at their own pace on the session's clock, from now on."""
    clock: Clock = session.clock
    start_us, step_us = clock.now_us(), 1e6 / material.fps
    voice, pictures = material.chunks(), material.pictures()
    said = 0
    for index in range(round(seconds * material.fps)):
        while said * 1e6 < index * step_us * PLAYOUT_RATE:
            session.voice.push(next(voice))
            said += VOICE_CHUNK
        session.source.push(next(pictures), clock.now_us())
        await clock.sleep_until(start_us + round((index + 1) * step_us))


def _codec_cost(material: Material, codec: Codec) -> tuple[float, float]:
    """Processor seconds per second of video to encode and to decode it."""
    encoder = VideoEncoder(codec, round(material.fps))
    decoder = av.CodecContext.create("h264" if codec == "H264" else "vp8", "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.thread_count = 1
    count = max(50, min(len(material.frames), 250))
    step_us = 1e6 / material.fps
    encode_s = decode_s = 0.0
    for index, picture in enumerate(itertools.islice(material.pictures(), count)):
        due_us = round(index * step_us)
        began = time.process_time()
        packet = encoder.encode(picture, due_us, due_us, index == 0, None)
        encoded = time.process_time()
        encode_s += encoded - began
        if packet is not None:
            for frame in decoder.decode(av.Packet(packet.data)):
                picture_of(frame)
        decode_s += time.process_time() - encoded
    return encode_s / count * material.fps, decode_s / count * material.fps


def _spread(values: Sequence[float]) -> Spread:
    recent = Recent(len(values))
    for value in values:
        recent.add(value)
    return recent.spread()
