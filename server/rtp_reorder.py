"""Puts RTP packets back in order: video frames leave on their marker bit, audio skips holes that stay open.

Pure bookkeeping over sequence numbers and times that the caller gives; knows neither sockets nor codecs.
Sequence numbers are unwrapped to integers that never wrap (RFC 3550 appendix A.1's idea).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

VIDEO_CAPACITY = 1024
"""Packets a video head may lag behind the newest one before everything between is given up."""

STALL_US = 300_000
"""A hole older than this is not waited for any longer; a key frame is asked for instead."""

KEY_PATIENCE_US = 3_000_000
"""After this long without the key frame that was asked for, frames are let through all the same: some
encoders refresh gradually and never send one."""

NACK_RETRY_US = 60_000
"""Between two requests for one packet before any was answered; then the round trip and a little counts."""

NACK_SLACK_US = 15_000
LEAST_RETRY_US, MOST_RETRY_US = 25_000, 250_000
NACK_TRIES = 5
NACK_BATCH = 64
"""Sequence numbers in one request at most; a longer hole is a stall, and ends in a key frame."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One RTP packet's part of a frame: depayloaded bytes, and when it arrived in microseconds."""

    sequence: int
    timestamp: int
    marker: bool
    data: bytes
    arrived_us: int


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """One complete encoded frame.

    timestamp: RTP time stamp as sent, 32 bits. arrived_us: when its last packet came.
    """

    data: bytes
    timestamp: int
    arrived_us: int


class Unwrapper:
    """Continues a counter of a few bits without its wrap."""

    def __init__(self, bits: int) -> None:
        self._modulus = 1 << bits
        self._last: int | None = None

    def unwrap(self, value: int) -> int:
        """The integer congruent to `value` that is nearest to the last one given."""
        if self._last is None:
            self._last = value
            return value
        half = self._modulus // 2
        self._last += (value - self._last + half) % self._modulus - half
        return self._last


class VideoAssembler:
    """Complete frames in order, each released by the packet that completes it.

    is_key: whether an encoded frame can be decoded without any before it.
    After a loss that retransmission did not heal, frames are withheld up to the next key frame: a freeze
    that ends is better than a smear that the face tracker would follow.
    """

    def __init__(self, is_key: Callable[[bytes], bool], capacity: int = VIDEO_CAPACITY) -> None:
        self._is_key = is_key
        self._capacity = capacity
        self._unwrap = Unwrapper(16)
        self._packets: dict[int, Packet] = {}
        self._next: int | None = None
        self._newest = 0
        self._stalled_at: int | None = None
        self._asked: dict[int, tuple[int, int, int]] = {}
        self._answers_us: deque[int] = deque(maxlen=8)
        self._awaits_key_since: int | None = None
        self._key_wanted = False
        self.dropped_frames = 0

    def add(self, packet: Packet) -> list[EncodedFrame]:
        """Take one packet; give every frame that is complete now, oldest first."""
        sequence = self._unwrap.unwrap(packet.sequence)
        if self._next is None:
            self._next = self._newest = sequence
            self._awaits_key_since = packet.arrived_us
        if sequence < self._next or sequence in self._packets:
            return []
        self._newest = max(self._newest, sequence)
        self._packets[sequence] = packet
        asked = self._asked.pop(sequence, None)
        if asked is not None:
            # From the first request: which one was answered cannot be told, and too long a wait mends itself.
            self._answers_us.append(packet.arrived_us - asked[0])
        if sequence - self._next >= self._capacity:
            self._skip(packet.arrived_us, up_to=sequence)
        frames = self._drain(packet.arrived_us)
        return frames + self.expire(packet.arrived_us)

    def expire(self, now_us: int) -> list[EncodedFrame]:
        """Give up a hole that has stalled the head too long; give what that sets free."""
        if self._stalled_at is None or now_us - self._stalled_at < STALL_US:
            return []
        self._skip(now_us, up_to=None)
        return self._drain(now_us)

    @property
    def nack_retry_us(self) -> int:
        """How long a request is given to be answered: a little more than what the quicker answers took."""
        if not self._answers_us:
            return NACK_RETRY_US
        quick_us = sorted(self._answers_us)[len(self._answers_us) // 4]
        return min(max(quick_us + NACK_SLACK_US, LEAST_RETRY_US), MOST_RETRY_US)

    def nacks(self, now_us: int) -> list[int]:
        """Sequence numbers (16 bits) to ask for now: at once, then once per retry interval."""
        if self._next is None or not self._holes():
            self._asked.clear()
            return []
        due = []
        retry_us = self.nack_retry_us
        for sequence in range(self._next, self._newest):
            if sequence in self._packets:
                continue
            first, last, tries = self._asked.get(sequence, (now_us, now_us - retry_us, 0))
            if tries < NACK_TRIES and now_us - last >= retry_us:
                self._asked[sequence] = (first, now_us, tries + 1)
                due.append(sequence & 0xFFFF)
                if len(due) == NACK_BATCH:
                    break
        return due

    def take_key_request(self) -> bool:
        """Whether a key frame has become necessary since this was last asked."""
        wanted, self._key_wanted = self._key_wanted, False
        return wanted

    def lose(self, now_us: int) -> None:
        """The decoder lost its place: withhold everything up to the next key frame, and want one."""
        if self._awaits_key_since is None:
            self._awaits_key_since = now_us
        self._key_wanted = True

    @property
    def waits(self) -> bool:
        """Whether time alone (a retry, a give-up) can change something."""
        return self._stalled_at is not None

    def _holes(self) -> bool:
        return self._next is not None and self._newest - self._next + 1 > len(self._packets)

    def _drain(self, now_us: int) -> list[EncodedFrame]:
        frames = []
        while (end := self._frame_end()) is not None:
            assert self._next is not None
            parts = [self._packets.pop(sequence) for sequence in range(self._next, end)]
            self._next = end
            frame = EncodedFrame(b"".join(p.data for p in parts), parts[0].timestamp, parts[-1].arrived_us)
            if self._admits(frame, now_us):
                frames.append(frame)
        if not self._holes():
            self._stalled_at = None
        elif frames or self._stalled_at is None:
            self._stalled_at = now_us
        return frames

    def _frame_end(self) -> int | None:
        """One past the last packet of the frame at the head, where that frame is whole."""
        assert self._next is not None
        sequence = self._next
        timestamp = None
        while (packet := self._packets.get(sequence)) is not None:
            # Some senders forget the marker; a new time stamp ends the frame as well.
            if timestamp is not None and packet.timestamp != timestamp:
                return sequence
            timestamp = packet.timestamp
            sequence += 1
            if packet.marker:
                return sequence
        return None

    def _admits(self, frame: EncodedFrame, now_us: int) -> bool:
        if not frame.data:
            return False  # padding: an empty packet would tell the decoder that the stream has ended
        if self._awaits_key_since is None:
            return True
        if self._is_key(frame.data) or now_us - self._awaits_key_since >= KEY_PATIENCE_US:
            self._awaits_key_since = None
            return True
        self.dropped_frames += 1
        self._key_wanted = True
        return False

    def _skip(self, now_us: int, up_to: int | None) -> None:
        """Move the head to the first frame start behind the hole (or to `up_to`), and want a key frame."""
        assert self._next is not None
        head = up_to
        if head is None:
            present = sorted(self._packets)
            whole = next((s for s in present if s > self._next and s - 1 not in self._packets), None)
            # The frame that has a hole ends at a marker or a change of time stamp behind that hole.
            head = self._newest + 1
            before: Packet | None = None
            for sequence in (s for s in present if whole is not None and s >= whole):
                packet = self._packets[sequence]
                if before is not None and packet.timestamp != before.timestamp:
                    head = sequence
                    break
                if packet.marker:
                    head = sequence + 1
                    break
                before = packet
        for sequence in [s for s in self._packets if s < head]:
            del self._packets[sequence]
        self._asked = {s: asked for s, asked in self._asked.items() if s >= head}
        self._next = head
        self._newest = max(self._newest, head - 1)
        self._stalled_at = None
        self.lose(now_us)


class AudioReorderer:
    """Packets in order, at once while none is missing; a hole is waited for `patience_us`, then skipped.

    Every audio packet stands alone, so no frame is ever held back to fill a buffer: smoothing is the voice
    time line's task, by position.
    """

    def __init__(self, patience_us: int = 40_000, capacity: int = 16) -> None:
        self._patience_us = patience_us
        self._capacity = capacity
        self._unwrap = Unwrapper(16)
        self._held: dict[int, EncodedFrame] = {}
        self._next: int | None = None
        self._hole_since: int | None = None
        self.skipped = 0

    def add(self, packet: Packet) -> list[EncodedFrame]:
        """Take one packet; give what can be decoded now, in order."""
        sequence = self._unwrap.unwrap(packet.sequence)
        if self._next is None:
            self._next = sequence
        if sequence >= self._next and packet.data:
            self._held[sequence] = EncodedFrame(packet.data, packet.timestamp, packet.arrived_us)
        elif sequence == self._next:
            self._next += 1
        return self._drain(packet.arrived_us) + self.expire(packet.arrived_us)

    def expire(self, now_us: int) -> list[EncodedFrame]:
        """Skip a hole that has been open too long."""
        frames: list[EncodedFrame] = []
        while self._held and (
            len(self._held) >= self._capacity
            or (self._hole_since is not None and now_us - self._hole_since >= self._patience_us)
        ):
            assert self._next is not None
            head = min(self._held)
            self.skipped += head - self._next
            self._next = head
            self._hole_since = None
            frames += self._drain(now_us)
        return frames

    @property
    def waits(self) -> bool:
        """Whether time alone can set something free."""
        return self._hole_since is not None

    def _drain(self, now_us: int) -> list[EncodedFrame]:
        assert self._next is not None
        frames = []
        while (frame := self._held.pop(self._next, None)) is not None:
            frames.append(frame)
            self._next += 1
        if not self._held:
            self._hole_since = None
        elif frames or self._hole_since is None:
            self._hole_since = now_us
        return frames


def h264_is_key(data: bytes) -> bool:
    """Whether an Annex B access unit holds an IDR slice (NAL unit type 5, ITU-T H.264 table 7-1)."""
    at = data.find(b"\x00\x00\x01")
    while at != -1 and at + 3 < len(data):
        if data[at + 3] & 0x1F == 5:
            return True
        at = data.find(b"\x00\x00\x01", at + 3)
    return False


def vp8_is_key(data: bytes) -> bool:
    """Whether a VP8 frame is a key frame: frame type bit and start code (RFC 6386 section 9.1).

    The start code also tells a key frame from the middle of a frame whose beginning was lost.
    """
    return len(data) > 5 and data[0] & 1 == 0 and data[3:6] == b"\x9d\x01\x2a"
