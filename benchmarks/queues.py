"""Live speech through our session and, beside it, through the queues that the field's usual design has.

Both get the same voice at its own pace, and a model that takes the same time per frame; nothing else is done.
The other design is simulated in steps of a millisecond, as its published sources have it: 20 ms chunks are
taken from a queue with 10 ms of patience, beyond which silence is made up; 32 of them make a batch of 16
frames, with ten chunks of look-ahead; two batches may wait for the model, 32 frames behind it and 100 before
playout; the taker sleeps for 0.8 of what five or more waiting frames last.

    python -m benchmarks.queues [--seconds 30] [--fps 120]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import deque

import numpy as np

from stream.clock import VirtualClock
from stream.media import PLAYOUT_RATE
from stream.session import Session, SessionConfig
from tests.stream.fakes import FakeEngine, KeepingSink, SlowRunner, flat_picture
from tests.stream.harness import tone

CHUNK_MS, PATIENCE_MS, BATCH_CHUNKS, LOOK_AHEAD = 20, 10, 32, 10
FEATURES, RESULTS, TRACK, FRAME_MS = 2, 32, 100, 40


class Queued:
    """The queues of the usual design, stepped by the millisecond. latencies_ms: of every chunk played."""

    def __init__(self, model_ms: float) -> None:
        self._batch_ms = model_ms * BATCH_CHUNKS / 2
        self._arrived: deque[int] = deque()
        self._ahead: deque[int | None] = deque([None] * LOOK_AHEAD)
        self._taken: list[int | None] = []
        self._patience = PATIENCE_MS
        self._asleep_until = 0.0
        self._features: deque[list[int | None]] = deque()
        self._model: tuple[float, list[int | None]] | None = None
        self._results: deque[tuple[int | None, int | None]] = deque()
        self._track: deque[tuple[int | None, int | None]] = deque()
        self.latencies_ms: list[int] = []
        self.made_up = 0

    def step(self, now_ms: int) -> None:
        if now_ms % CHUNK_MS == 0:
            self._arrived.append(now_ms)
        self._take(now_ms)
        self._infer(now_ms)
        while self._results and len(self._track) < TRACK:
            self._track.append(self._results.popleft())
        if now_ms % FRAME_MS == 0 and self._track:
            for chunk in self._track.popleft():
                if chunk is not None:
                    self.latencies_ms.append(now_ms - chunk)

    def _take(self, now_ms: int) -> None:
        while now_ms >= self._asleep_until and len(self._taken) < BATCH_CHUNKS:
            if self._arrived:
                self._add(self._arrived.popleft())
            elif self._patience > 0:
                self._patience -= 1
                return
            else:
                self.made_up += bool(self.latencies_ms)
                self._add(None)
        if len(self._taken) == BATCH_CHUNKS and len(self._features) < FEATURES:
            self._features.append(self._taken)
            self._taken = []
            if len(self._track) >= 5:
                self._asleep_until = now_ms + 0.8 * FRAME_MS * len(self._track)

    def _add(self, chunk: int | None) -> None:
        self._ahead.append(chunk)
        self._taken.append(self._ahead.popleft())
        self._patience = PATIENCE_MS

    def _infer(self, now_ms: int) -> None:
        if self._model is not None and now_ms >= self._model[0] and len(self._results) <= RESULTS // 2:
            batch = self._model[1]
            self._results.extend(zip(batch[::2], batch[1::2], strict=True))
            self._model = None
        if self._model is None and self._features:
            self._model = (now_ms + self._batch_ms, self._features.popleft())


def queued(seconds: float, model_ms: float) -> Queued:
    design = Queued(model_ms)
    for now_ms in range(round(seconds * 1000)):
        design.step(now_ms)
    return design


async def ours(seconds: float, model_ms: float) -> tuple[list[float], float]:
    """Milliseconds from a chunk's arrival to its being heard, and of holes in the speech."""
    clock = VirtualClock()
    sink = KeepingSink(clock)
    runner = SlowRunner(clock, lambda _: round(model_ms * 1000))
    engine = FakeEngine(look_ahead_us=120_000)
    session = Session(SessionConfig(mark=False), engine, clock=clock, runner=runner, sink=sink)
    placed: list[tuple[int, int]] = []

    async def feed() -> None:
        voice = tone(1000)
        for k in range(round(seconds * 50)):
            await clock.sleep_until(k * 20_000)
            session.voice.push(voice[(k % 50) * 960 : (k % 50 + 1) * 960])
            placed.append((clock.now_us(), session.voice.written - 960))
            if k % 2 == 0:
                session.source.push(flat_picture(), clock.now_us())
        session.source.end()

    async with asyncio.TaskGroup() as group:
        clock.start(group, feed(), "feed")
        group.create_task(session.run())
    heard = {sound.position: sound.due_us for sound in sink.sounds}
    starts = np.array(sorted(heard))
    latencies = []
    for arrived_us, position in placed:
        index = int(np.searchsorted(starts, position, side="right")) - 1
        if index >= 0 and position - starts[index] < 960:
            into_us = (position - int(starts[index])) * 1_000_000 / PLAYOUT_RATE
            latencies.append((heard[int(starts[index])] + into_us - arrived_us) / 1000)
    return latencies, session.voice.gap_samples / 48


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--fps", type=float, default=120.0, help="frames per second that the model makes")
    args = parser.parse_args()
    other = queued(args.seconds, 1000 / args.fps)
    latencies, holes_ms = asyncio.run(ours(args.seconds, 1000 / args.fps))
    rows = (
        ("queued", np.array(other.latencies_ms, float), other.made_up * CHUNK_MS),
        ("retalk", np.array(latencies), holes_ms),
    )
    print(
        f"{'':8}first   p50   p95  ms from a sample's arrival to its being heard; silence put into speech, ms"
    )
    for name, values, holes in rows:
        p50, p95 = np.percentile(values, (50, 95))
        print(f"{name:8}{values[0]:5.0f} {p50:5.0f} {p95:5.0f}   {holes:.0f}")
    ratio = float(np.median(rows[0][1]) / np.median(rows[1][1]))
    print(f"at the median {ratio:.1f} times lower")
    return 0 if ratio >= 4 else 1


if __name__ == "__main__":
    sys.exit(main())
