"""The bounded, drop-oldest buffer in which the source's frames wait to be taken."""

from __future__ import annotations

from collections import deque

from retalk_models.picture import Picture
from stream.clock import Bell, Clock
from stream.media import SourceFrame


class SourceBuffer:
    """Frames in order of capture time, newest kept. Used from the event loop's thread only.

    A slow consumer can never grow latency: a full buffer drops its oldest frame and counts it.
    """

    def __init__(self, clock: Clock, capacity: int = 8, bell: Bell | None = None) -> None:
        self._clock = clock
        self._bell = bell or Bell()
        self._frames: deque[SourceFrame] = deque()
        self._capacity = capacity
        self._last_us: int | None = None
        self._accepted = 0
        self.dropped = 0
        self.rejected = 0
        self.ended = False
        self.end_us: int | None = None

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def accepted(self) -> int:
        """How many frames were ever accepted, dropped ones included."""
        return self._accepted

    @property
    def last_time_us(self) -> int | None:
        """Capture time of the newest frame, None before the first."""
        return self._last_us

    def push(self, picture: Picture, time_us: int, arrived_us: int | None = None) -> bool:
        """Hand in a frame captured at `time_us` on the session clock.

        arrived_us: when it reached the server; now if not given.
        Returns False, and counts, where the time does not lie after the last one's or the source has ended.
        """
        if self.ended or (self._last_us is not None and time_us <= self._last_us):
            self.rejected += 1
            return False
        if len(self._frames) >= self._capacity:
            self._frames.popleft()
            self.dropped += 1
        arrived = self._clock.now_us() if arrived_us is None else arrived_us
        self._frames.append(SourceFrame(picture, time_us, arrived, self._accepted))
        self._accepted += 1
        self._last_us = time_us
        self._bell.ring()
        return True

    def end(self, end_us: int | None = None) -> None:
        """No frame will follow. Idempotent.

        end_us: the session time up to which the voice is still to be heard; one frame after the last if None.
        """
        if not self.ended:
            self.ended = True
            self.end_us = end_us
        self._bell.ring()

    def take_all(self) -> list[SourceFrame]:
        """Every waiting frame, oldest first; the buffer is empty afterwards."""
        frames = list(self._frames)
        self._frames.clear()
        return frames
