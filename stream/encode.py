"""Encodes a session's output once per codec in demand and hands the same packets to every viewer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import av

from stream.clock import Bell, Clock
from stream.codecs import MOST_BPS, Codec, EncodedAudio, EncodedVideo, OpusEncoder, VideoEncoder
from stream.media import AudioFrame, DubbedFrame
from stream.stats import Counts

__all__ = [
    "Codec",
    "EncodedAudio",
    "EncodedHub",
    "EncodedVideo",
    "OpusEncoder",
    "Subscription",
    "SubscriptionClosed",
    "VideoEncoder",
]

_QUEUE_VIDEO = 30
_QUEUE_AUDIO = 50
_WAITING = 3
_KEYFRAME_EVERY_US = 1_000_000
_GROUP_US = 2_000_000
"""No group of pictures lasts longer: an encoder counts pictures, and a camera may give few a second."""

_YIELDING, _NICEST = 5, 19
"""How much nicer encoders are than the rest: a quarter of a core where an engine wants the same one, else all
that is free. No thread is nicer than the second."""

_LEAST_BPS = 150_000
_STEADY = 0.05
_SHARP_FALL = 0.15


def _yield_to_engines() -> None:
    """Let this thread wait where cores are scarce: what is drawn late is lost, what is encoded late is late.

    Elsewhere than on Linux niceness is the whole process's.
    """
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    # Where that is forbidden it goes on as it is.
    with contextlib.suppress(OSError):
        nice = os.getpriority(os.PRIO_PROCESS, thread) + _YIELDING
        os.setpriority(os.PRIO_PROCESS, thread, min(_NICEST, nice))


class SubscriptionClosed(Exception):
    """The subscription or its session has ended; nothing more will come."""


class Subscription:
    """One viewer's end of the hub. Used from the event loop's thread only.

    Queues are bounded: a viewer that does not fetch loses the oldest sound, and pictures until a key frame.
    """

    def __init__(self, hub: EncodedHub, codec: Codec) -> None:
        self._hub = hub
        self.codec: Codec = codec
        self._video: deque[EncodedVideo] = deque()
        self._audio: deque[EncodedAudio] = deque(maxlen=_QUEUE_AUDIO)
        self._video_bell = asyncio.Event()
        self._audio_bell = asyncio.Event()
        self._needs_keyframe = True
        self.bit_rate: int | None = None
        self.paused = False
        self.closed = False

    async def next_video(self) -> EncodedVideo:
        """The next encoded frame; the first one is a key frame. Raises SubscriptionClosed at the end."""
        while not self._video:
            if self.closed:
                raise SubscriptionClosed
            self._video_bell.clear()
            await self._video_bell.wait()
        return self._video.popleft()

    async def next_audio(self) -> EncodedAudio:
        """The next 20 ms. Raises SubscriptionClosed at the end."""
        while not self._audio:
            if self.closed:
                raise SubscriptionClosed
            self._audio_bell.clear()
            await self._audio_bell.wait()
        return self._audio.popleft()

    def request_keyframe(self) -> None:
        """Ask for a key frame, which all viewers of this codec get; at most one per second is made."""
        self._hub.request_keyframe(self.codec)

    def set_bitrate(self, bits_per_second: int | None) -> None:
        """What this viewer's path can carry; the least of all viewers' is used. None: no opinion."""
        self.bit_rate = bits_per_second

    def pause(self) -> None:
        """Receive nothing until `resume`: what waits for a viewer who is not connected yet only grows old."""
        self.paused = True

    def resume(self) -> None:
        """Receive from now on, beginning with a key frame, which is made at once. Idempotent."""
        if self.paused:
            self.paused = False
            self.start_over()

    def close(self) -> None:
        """Stop receiving. Idempotent."""
        self._hub.unsubscribe(self)
        self.finish()

    def finish(self) -> None:
        self.closed = True
        self._video_bell.set()
        self._audio_bell.set()

    def put_video(self, packet: EncodedVideo) -> None:
        if self.paused:
            return
        if len(self._video) >= _QUEUE_VIDEO:
            # No key frame at once: one slow viewer is not to cost all others their picture's sharpness.
            self._hub.viewer_dropped += len(self._video)
            self._video.clear()
            self._needs_keyframe = True
        if packet.keyframe:
            self._needs_keyframe = False
        if self._needs_keyframe:
            self._hub.request_keyframe(self.codec)
            return
        self._video.append(packet)
        self._video_bell.set()

    def put_audio(self, packet: EncodedAudio) -> None:
        if self.paused:
            return
        self._audio.append(packet)
        self._audio_bell.set()

    def interrupt(self) -> None:
        """Forget the sound and the pictures that were not fetched."""
        self._audio.clear()
        if self._video:
            self._video.clear()
            self.start_over()

    def start_over(self) -> None:
        """Deliver no picture until a key frame, without which none can be decoded. It is made at once."""
        self._needs_keyframe = True
        self._hub.request_keyframe(self.codec, at_once=True)

    def __len__(self) -> int:
        return len(self._video) + len(self._audio)


class _Lane:
    """One codec in demand: its encoder, and what its viewers ask of it."""

    def __init__(self, codec: Codec) -> None:
        self.encoder = VideoEncoder(codec)
        self.keyframe_wanted = True
        self.keyframe_us = -_KEYFRAME_EVERY_US
        self.bit_rate: int | None = None

    def want_keyframe(self, at_once: bool) -> None:
        """Make a key frame next. at_once: however soon after the last one; else a second after it."""
        self.keyframe_wanted = True
        if at_once:
            self.keyframe_us = -_KEYFRAME_EVERY_US

    def worth(self, bit_rate: int | None, keyframe: bool, spaced: bool) -> bool:
        """Whether to go to another bit rate with the next frame.

        keyframe: it is to be a key frame. spaced: it may be one. An encoder that cannot be retuned is made
        anew and begins with a key frame: at once for a sharp fall, else where one comes anyway.
        """
        now, then = self.encoder.bit_rate, self.encoder.reachable(bit_rate)
        if not now or now == then:
            return True
        change = then / now - 1
        free = self.encoder.retunes or keyframe or self.encoder.keyframe_due
        return (free and abs(change) > _STEADY) or (spaced and change < -_SHARP_FALL)


class EncodedHub:
    """A session's live output: `subscribe`, then fetch packets. Nothing is encoded that nobody watches."""

    def __init__(self, clock: Clock, counts: Counts | None = None) -> None:
        self._clock = clock
        self._counts = counts or Counts()
        self._subscriptions: list[Subscription] = []
        self._lanes: dict[Codec, _Lane] = {}
        self._waiting: deque[DubbedFrame] = deque()
        self._bell = Bell()
        self._opus: OpusEncoder | None = None
        self._closed = False
        self._epoch = 0
        self.dropped = 0
        self.viewer_dropped = 0
        self.refused = 0
        self.encoded = 0

    def subscribe(self, codec: Codec = "H264") -> Subscription:
        """Begin to watch. Raises ValueError for a codec that is not made here."""
        if codec not in ("H264", "VP8"):
            raise ValueError(f"no encoder for {codec!r}; the codecs are: H264, VP8")
        subscription = Subscription(self, codec)
        if self._closed:
            subscription.finish()
            return subscription
        self._subscriptions.append(subscription)
        self._lanes.setdefault(codec, _Lane(codec))
        subscription.start_over()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        if all(other.codec != subscription.codec for other in self._subscriptions):
            self._lanes.pop(subscription.codec, None)

    def request_keyframe(self, codec: Codec, at_once: bool = False) -> None:
        lane = self._lanes.get(codec)
        if lane is not None:
            lane.want_keyframe(at_once)

    def video(self, frame: DubbedFrame) -> None:
        if not self._lanes:
            return
        if len(self._waiting) >= _WAITING:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(frame)
        self._bell.ring()

    def audio(self, frame: AudioFrame) -> None:
        if not self._subscriptions:
            return
        if self._opus is None:
            self._opus = OpusEncoder()
        packet = self._opus.encode(frame)
        if packet is not None:
            for subscription in self._subscriptions:
                subscription.put_audio(packet)

    def interrupt(self, epoch: int) -> None:
        self._epoch = epoch
        stale = [frame for frame in self._waiting if frame.epoch < epoch and frame.dubbed]
        for frame in stale:
            self._waiting.remove(frame)
        for subscription in self._subscriptions:
            subscription.interrupt()

    def counts(self) -> dict[str, int]:
        return {
            "encoded": self.encoded,
            "encode_dropped": self.dropped,
            "encode_refused": self.refused,
            "encode_queue": len(self._waiting),
            "viewers": len(self._subscriptions),
            "viewer_dropped": self.viewer_dropped,
            "viewer_queue": max((len(s) for s in self._subscriptions), default=0),
        }

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        executor = ThreadPoolExecutor(1, "retalk-encode", _yield_to_engines)
        try:
            while True:
                while self._waiting:
                    frame = self._waiting.popleft()
                    for codec, lane in list(self._lanes.items()):
                        keyframe, rate = self._plan(codec, lane)
                        began = time.perf_counter()
                        try:
                            packet = await loop.run_in_executor(
                                executor,
                                lane.encoder.encode,
                                frame.picture,
                                frame.due_us,
                                frame.time_us,
                                keyframe,
                                rate,
                            )
                        except (av.error.FFmpegError, ValueError):
                            # A picture that this codec will not take costs that picture, never the stream.
                            self.refused += 1
                            continue
                        self._counts.stage("encode", (time.perf_counter() - began) * 1000)
                        if packet is None:
                            continue
                        if frame.dubbed and frame.epoch < self._epoch:
                            self._withhold(codec)
                        else:
                            self._hand_out(codec, lane, packet)
                await self._clock.wait(self._bell)
        finally:
            self._closed = True
            for subscription in self._subscriptions:
                subscription.finish()
            self._subscriptions.clear()
            self._lanes.clear()
            executor.shutdown(wait=False, cancel_futures=True)

    def _withhold(self, codec: Codec) -> None:
        """Interrupted while it was encoded: it must not be seen, and what builds on it cannot be."""
        for subscription in self._subscriptions:
            if subscription.codec == codec:
                subscription.start_over()

    def _hand_out(self, codec: Codec, lane: _Lane, packet: EncodedVideo) -> None:
        self.encoded += 1
        if packet.keyframe:
            lane.keyframe_wanted = False
            lane.keyframe_us = self._clock.now_us()
        for subscription in self._subscriptions:
            if subscription.codec == codec:
                subscription.put_video(packet)

    def _plan(self, codec: Codec, lane: _Lane) -> tuple[bool, int | None]:
        """Whether the next frame is to be a key frame, and at what bit rate it goes."""
        since_us = self._clock.now_us() - lane.keyframe_us
        spaced = since_us >= _KEYFRAME_EVERY_US
        keyframe = (lane.keyframe_wanted and spaced) or since_us >= _GROUP_US
        wishes = [s.bit_rate for s in self._subscriptions if s.codec == codec and s.bit_rate]
        wish = min(max(min(wishes), _LEAST_BPS), MOST_BPS) if wishes else None
        if lane.worth(wish, keyframe, spaced):
            lane.bit_rate = wish
        return keyframe, lane.bit_rate
