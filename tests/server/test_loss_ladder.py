"""The loss ladder on a virtual clock: sender and path in memory, our reordering, our session; all seeded."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from server.inlet import MAX_CONCEALED
from server.rtp_receiver import KEY_REQUEST_INTERVAL_US
from server.rtp_reorder import AudioReorderer, EncodedFrame, Packet, VideoAssembler
from stream.rtp_time import RtpClock
from tests.stream.fakes import flat_picture
from tests.stream.harness import Rig, running, tone

FRAME_US, SOUND_US, PACKETS = 40_000, 20_000, 4
LOSSY_US, CALM_US, END_US = 3_000_000, 6_000_000, 10_000_000
SPOKEN = np.resize(tone(1000), 48_000)


@dataclass
class Path:
    """A camera and a microphone, a path that loses and delays, and what stands at our end of it."""

    rig: Rig
    loss: float
    way_us: int
    chance: random.Random
    events: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.order = itertools.count()
        self.video = VideoAssembler(lambda data: data.startswith(b"K"))
        self.audio = AudioReorderer()
        self.rtp = RtpClock(90_000)
        self.sent: dict[int, Packet] = {}
        self.key_next = True
        self.key_asked_us = -KEY_REQUEST_INTERVAL_US
        self.heard_to: int | None = None
        self.asked = 0

    @property
    def now_us(self) -> int:
        return self.rig.clock.now_us()

    def at(self, time_us: int, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (time_us, next(self.order), what))

    def travel(self, what: Callable[[], None]) -> None:
        """One packet, either way."""
        if LOSSY_US <= self.now_us < CALM_US and self.chance.random() < self.loss:
            return
        self.at(self.now_us + self.way_us + self.chance.randrange(4_000), what)

    async def run(self) -> None:
        for k in range(END_US // FRAME_US):
            self.at(10_000 + k * FRAME_US, lambda k=k: self.show(k))  # type: ignore[misc]
        for k in range(END_US // SOUND_US):
            self.at(10_000 + k * SOUND_US, lambda k=k: self.say(k))  # type: ignore[misc]
        for k in range(END_US // SOUND_US):
            self.at(15_000 + k * SOUND_US, self.tick)
        while self.events:
            time_us, _, what = heapq.heappop(self.events)
            await self.rig.clock.sleep_until(time_us)
            what()

    # --- the sender

    def show(self, index: int) -> None:
        kind, self.key_next = (b"K" if self.key_next or index % 100 == 0 else b"P"), False
        for part in range(PACKETS):
            sequence = index * PACKETS + part
            data = kind + str(index).encode() if part == 0 else b""
            self.sent[sequence] = Packet(sequence % 65536, index * 3600, part == PACKETS - 1, data, 0)
            self.travel(lambda sequence=sequence: self.arrives(sequence))  # type: ignore[misc]

    def say(self, index: int) -> None:
        packet = Packet(index % 65536, index * 960, False, b"sound", 0)
        self.travel(lambda: self.hear(self.audio.add(self.stamped(packet))))

    def key_frame(self) -> None:
        self.key_next = True

    # --- our end

    def stamped(self, packet: Packet) -> Packet:
        return Packet(packet.sequence, packet.timestamp, packet.marker, packet.data, self.now_us)

    def arrives(self, sequence: int) -> None:
        self.take(self.video.add(self.stamped(self.sent[sequence])))

    def tick(self) -> None:
        self.take(self.video.expire(self.now_us))
        self.hear(self.audio.expire(self.now_us))

    def take(self, frames: list[EncodedFrame]) -> None:
        for frame in frames:
            self.rig.session.source.push(
                flat_picture(), self.rtp.to_session_us(frame.timestamp, frame.arrived_us), frame.arrived_us
            )
        for missing in self.video.nacks(self.now_us):
            self.asked += 1
            self.travel(lambda missing=missing: self.travel(lambda: self.arrives(missing)))  # type: ignore[misc]
        if self.now_us - self.key_asked_us >= KEY_REQUEST_INTERVAL_US and self.video.take_key_request():
            self.key_asked_us = self.now_us
            self.travel(self.key_frame)

    def hear(self, frames: list[EncodedFrame]) -> None:
        for frame in frames:
            lost = 0 if self.heard_to is None else frame.timestamp - self.heard_to
            if 0 < lost <= MAX_CONCEALED:
                self.rig.session.voice.push(np.zeros(lost, np.int16), realtime=True)
            self.heard_to = frame.timestamp + 960
            start = frame.timestamp % 48_000
            self.rig.session.voice.push(SPOKEN[start : start + 960], realtime=True)


@pytest.mark.parametrize("round_trip_us", [0, 100_000])
@pytest.mark.parametrize("loss", [0.0, 0.01, 0.02, 0.05, 0.10])
async def test_loss_costs_quality_for_as_long_as_it_lasts(loss: float, round_trip_us: int) -> None:
    async with running() as rig:
        path = Path(rig, loss, round_trip_us // 2, random.Random(round(1000 * loss) + round_trip_us))
        await path.run()
        await rig.drain()
        stats = rig.session.stats()
    sink = rig.sink
    # From a frame's capture (which `show` began at) to its release.
    took_us: list[tuple[int, int]] = []
    for frame, at_us in zip(sink.frames, sink.frame_times, strict=True):
        took_us.append((at_us, at_us - frame.time_us))

    def median_ms(since_us: int, until_us: int) -> float:
        return float(np.median([took for at_us, took in took_us if since_us <= at_us < until_us])) / 1000

    before, worst = median_ms(2_000_000, LOSSY_US), max(took for _, took in took_us) / 1000
    after = median_ms(CALM_US + 2_000_000, END_US)
    shown = sum(LOSSY_US <= at_us < CALM_US for at_us, _ in took_us) / ((CALM_US - LOSSY_US) / FRAME_US)
    print(
        f"loss {loss:4.0%} round trip {round_trip_us // 1000:3} ms: latency {before:.0f} ms, "
        f"at most {worst:.0f}, afterwards {after:.0f}; {shown:.0%} of frames, {path.asked} requests, "
        f"{stats.late} late"
    )
    assert after <= before + 20
    assert worst <= 400
    assert shown > (0.98 if loss <= 0.02 else 0.8)
    assert stats.faults == 0
    dues = [sound.due_us for sound in sink.sounds]
    assert dues == sink.sound_times == list(range(dues[0], dues[0] + SOUND_US * len(dues), SOUND_US))
    # What was lost on the way is silence of its own length; the time line itself has no hole.
    assert stats.gaps <= (0 if loss == 0 else 3)
