"""A whole session for simulated hours on the virtual clock, its camera 200 ppm fast, its voice 200 ppm slow.

Every frame goes through RTP time, session, engine and playout, the voice through the voice time line. Once
a simulated minute it compares when the sound said at an instant was heard with when the picture of that
instant was shown, and prints how far apart they went.

    python -m benchmarks.eight_hours [--hours 8] [--fps 5] [--ppm 200]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import deque

import numpy as np

from stream.clock import VirtualClock
from stream.media import AudioFrame, DubbedFrame
from stream.rtp_time import RtpClock
from stream.runner import InlineRunner
from stream.session import Session, SessionConfig
from stream.voice import VoiceFormat
from tests.stream.fakes import FakeEngine, flat_picture
from tests.stream.harness import tone

CHUNK_S = 0.1
RATE = 16_000


class LastSink:
    """Keeps what was released last: this runs for hours."""

    def __init__(self) -> None:
        self.frames: deque[DubbedFrame] = deque(maxlen=64)
        self.sounds: deque[AudioFrame] = deque(maxlen=256)

    def video(self, frame: DubbedFrame) -> None:
        self.frames.append(frame)

    def audio(self, frame: AudioFrame) -> None:
        self.sounds.append(frame)

    def interrupt(self, epoch: int) -> None: ...

    def counts(self) -> dict[str, int]:
        return {}

    async def run(self) -> None: ...


async def run(hours: float, fps: float, ppm: float) -> list[float]:
    """Milliseconds between sound and picture of one instant, less the voice's shift, once a minute."""
    clock, sink, engine = VirtualClock(), LastSink(), FakeEngine()
    session = Session(SessionConfig(mark=False), engine, clock=clock, runner=InlineRunner(), sink=sink)
    chance = random.Random(1)
    rtp = RtpClock(90_000)
    shown: deque[tuple[float, int]] = deque(maxlen=64)
    said: deque[tuple[float, int]] = deque(maxlen=64)
    apart: list[float] = []
    end_us = hours * 3600e6

    async def camera() -> None:
        index = 0
        while (true_us := index * 1e6 / fps / (1 + ppm / 1e6)) < end_us:
            await clock.sleep_until(round(true_us) + 20_000 + chance.randrange(10_000))
            time_us = rtp.to_session_us(round(index * 90_000 / fps), clock.now_us())
            session.source.push(flat_picture(), time_us)
            shown.append((true_us, time_us))
            engine.windows.clear()
            index += 1
        session.source.end()

    async def microphone() -> None:
        chunk = np.resize(tone(1000)[::3], round(RATE * CHUNK_S))
        index = 1
        while (true_us := index * CHUNK_S * 1e6 / (1 - ppm / 1e6)) < end_us:
            await clock.sleep_until(round(true_us) + 20_000 + chance.randrange(10_000))
            session.voice.push(chunk, VoiceFormat(RATE))
            said.append((true_us, session.voice.written))
            index += 1

    async def judge() -> None:
        for minute in range(1, int(hours * 60)):
            await clock.sleep_until(minute * 60_000_000)
            heard = heard_after_us()
            seen = seen_after_us()
            if heard is not None and seen is not None:
                # A chunk comes when its last sample has been said: its first is that much late for good.
                apart.append((heard - seen) / 1000 - session.stats().voice_shift_ms - CHUNK_S * 1000)

    def heard_after_us() -> float | None:
        for true_us, position in reversed(said):
            for sound in sink.sounds:
                if 0 < position - sound.position <= 960:
                    return sound.due_us + (position - sound.position) / 0.048 - true_us
        return None

    def seen_after_us() -> float | None:
        captured = {time_us: true_us for true_us, time_us in shown}
        for frame in reversed(sink.frames):
            if frame.time_us in captured:
                return frame.due_us - captured[frame.time_us]
        return None

    async with asyncio.TaskGroup() as group:
        for work, name in ((camera(), "camera"), (microphone(), "microphone"), (judge(), "judge")):
            clock.start(group, work, name)
        group.create_task(session.run())
    return apart


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--fps", type=float, default=5.0)
    parser.add_argument("--ppm", type=float, default=200.0)
    args = parser.parse_args()
    apart = np.array(asyncio.run(run(args.hours, args.fps, args.ppm)))
    print(
        f"{args.hours:g} hours, camera +{args.ppm:g} ppm, voice -{args.ppm:g} ppm, {apart.size} looks: "
        f"sound minus picture {apart.min():+.1f} to {apart.max():+.1f} ms, "
        f"first {apart[0]:+.1f}, last {apart[-1]:+.1f}"
    )
    return 0 if np.abs(apart).max() <= 40 else 1


if __name__ == "__main__":
    sys.exit(main())
