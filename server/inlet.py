"""From decoder threads into a session: a camera's frames and a speaker's samples, each by a bounded way."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import av
import numpy as np
from numpy.typing import NDArray

from retalk_models.picture import Picture
from server.rtp_receiver import Decoded, monotonic_us
from stream.clock import Clock
from stream.frames import picture_of
from stream.rtp_time import RtpClock, SenderClock
from stream.voice import VoiceFormat

Item = TypeVar("Item")

logger = logging.getLogger(__name__)

VIDEO_RATE = 90_000
OPUS_RATE = 48_000
MAX_CONCEALED = OPUS_RATE // 5
"""Lost voice up to 200 ms is replaced by silence so that what follows keeps its place; more is a pause."""


class Mailbox(Generic[Item]):
    """Hands items from any thread to one callback on the event loop; drops the oldest beyond `capacity`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, capacity: int, deliver: Callable[[Item], None]
    ) -> None:
        self._loop = loop
        self._deliver = deliver
        self._items: deque[Item] = deque(maxlen=capacity)
        self._lock = threading.Lock()
        self._scheduled = False
        self.dropped = 0

    def put(self, item: Item) -> None:
        """From any thread; never blocks."""
        with self._lock:
            self.dropped += len(self._items) == self._items.maxlen
            self._items.append(item)
            if self._scheduled:
                return
            self._scheduled = True
        try:
            self._loop.call_soon_threadsafe(self._empty)
        except RuntimeError:
            logger.debug("a frame came after the event loop had ended")

    def _empty(self) -> None:
        with self._lock:
            items = list(self._items)
            self._items.clear()
            self._scheduled = False
        for item in items:
            self._deliver(item)


class VideoInlet:
    """A camera's decoded frames as pictures with capture times on the session's clock.

    push is called on the event loop with (picture, captured_us, arrived_us).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        push: Callable[[Picture, int, int], Any],
        sender: SenderClock | None = None,
    ) -> None:
        self._clock = clock
        self._rtp = RtpClock(VIDEO_RATE, sender)
        self._push = push
        self._mailbox: Mailbox[tuple[Picture, int, int]] = Mailbox(loop, 4, self._deliver)

    def report(self, ntp: int, stamp: int) -> None:
        """A sender report of the camera's track."""
        self._rtp.report(ntp, stamp)

    @property
    def dropped(self) -> int:
        """Frames that the event loop was too busy to take."""
        return self._mailbox.dropped

    def __call__(self, decoded: Decoded) -> None:
        """In the decoder's thread, so that copying planes costs the event loop nothing."""
        assert isinstance(decoded.frame, av.VideoFrame)
        self._mailbox.put((picture_of(decoded.frame), decoded.timestamp, decoded.arrived_us))

    def _deliver(self, item: tuple[Picture, int, int]) -> None:
        picture, timestamp, arrived_us = item
        arrived = self._clock.now_us() - max(0, monotonic_us() - arrived_us)
        self._push(picture, self._rtp.to_session_us(timestamp, arrived), arrived)


class VoiceInlet:
    """A speaker's decoded audio, lost stretches filled with silence so that what follows keeps its place.

    push is called on the event loop with interleaved samples and how to read them.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        push: Callable[[NDArray[Any], VoiceFormat], Any],
        clock: Clock | None = None,
        sender: SenderClock | None = None,
    ) -> None:
        self._push = push
        self._expected: int | None = None
        self._mailbox: Mailbox[tuple[NDArray[Any], VoiceFormat]] = Mailbox(loop, 50, self._deliver)
        self._clock = clock
        # Its own result is not used: the sound tells the sender's clock how short the way is.
        self._rtp = RtpClock(OPUS_RATE, sender)
        self._times: Mailbox[tuple[int, int]] = Mailbox(loop, 50, self._note)
        self.concealed_samples = 0

    def report(self, ntp: int, stamp: int) -> None:
        """A sender report of the speaker's track."""
        self._rtp.report(ntp, stamp)

    def __call__(self, decoded: Decoded) -> None:
        """In the decoder's thread."""
        frame = decoded.frame
        assert isinstance(frame, av.AudioFrame)
        packed = frame.to_ndarray()
        form = VoiceFormat(frame.sample_rate, len(frame.layout.channels))
        if self._expected is not None and form.rate == OPUS_RATE:
            lost = (decoded.timestamp - self._expected) % (1 << 32)
            if 0 < lost <= MAX_CONCEALED:
                self.concealed_samples += lost
                self._mailbox.put((np.zeros(lost * form.channels, packed.dtype), form))
        self._expected = (decoded.timestamp + frame.samples) % (1 << 32)
        if self._clock is not None:
            self._times.put((decoded.timestamp, decoded.arrived_us))
        self._mailbox.put((packed.reshape(-1), form))

    def _note(self, item: tuple[int, int]) -> None:
        assert self._clock is not None
        stamp, arrived_us = item
        self._rtp.to_session_us(stamp, self._clock.now_us() - max(0, monotonic_us() - arrived_us))

    def _deliver(self, item: tuple[NDArray[Any], VoiceFormat]) -> None:
        self._push(*item)
