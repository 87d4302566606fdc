"""Maps RTP time stamps, and the sender reports that tie them to one clock, onto the session clock."""

from __future__ import annotations

from collections import deque

_WRAP = 1 << 32
_BUCKET_US = 1_000_000
_BUCKETS = 5
_RISE_PER_S = 10_000
_JUMP_US = 1_500_000
_FARTHEST_US = 500_000
_REPORT_LASTS_S = 30


class PathOffset:
    """Arrival minus time of capture on a path without jitter.

    A packet is never early: the least over the last five seconds is the path without jitter. It is followed
    down at once and up at 10 ms per second, which tracks crystals that differ, ignores a burst of queueing,
    and forgets a first frame that came by a shorter way than all that follow.
    """

    def __init__(self, offset_us: float, arrived_us: int) -> None:
        self.us = offset_us
        self._moved_us = arrived_us
        self._least: deque[tuple[int, float]] = deque(maxlen=_BUCKETS)
        self._least.append((arrived_us // _BUCKET_US, offset_us))

    def learn(self, offset_us: float, arrived_us: int) -> None:
        """One more packet's arrival minus capture."""
        bucket = arrived_us // _BUCKET_US
        if self._least[-1][0] == bucket:
            self._least[-1] = (bucket, min(self._least[-1][1], offset_us))
        else:
            self._least.append((bucket, offset_us))
        least_us = min(offset for _, offset in self._least)
        rise_us = _RISE_PER_S * (arrived_us - self._moved_us) / 1e6
        self.us = min(least_us, self.us + max(rise_us, 0.0))
        self._moved_us = max(self._moved_us, arrived_us)


class SenderClock:
    """One sender's clock, which its reports tie the stamps of all its tracks to (RFC 3550 section 6.4.1).

    What was captured at one instant then maps to one instant, whatever way each track takes to get here.
    """

    def __init__(self) -> None:
        self._offset: PathOffset | None = None

    def learn(self, sender_us: float, arrived_us: int) -> None:
        """A packet of any track, captured at `sender_us`, has arrived."""
        if self._offset is None:
            self._offset = PathOffset(arrived_us - sender_us, arrived_us)
        else:
            self._offset.learn(arrived_us - sender_us, arrived_us)

    def to_session_us(self, sender_us: float) -> float | None:
        """The session time of an instant of the sender's; None before the first packet."""
        return None if self._offset is None else sender_us + self._offset.us


class RtpClock:
    """Maps one track's 32-bit wrapping RTP time stamps at `rate` onto session microseconds.

    By arrival (see PathOffset); where the sender reports, by its own clock, towards which the mapping leans
    at 10 ms per second. Reports that disagree with the arrivals by over half a second are not believed.
    A stamp that lands 1.5 s behind its arrival, or 1.5 s ahead of the last one without that time having
    passed, means that the sender began anew.
    """

    def __init__(self, rate: int, sender: SenderClock | None = None) -> None:
        if rate <= 0:
            raise ValueError(f"an RTP clock rate must be positive, not {rate}")
        self._rate = rate
        self._sender = sender
        self._last_stamp: int | None = None
        self._unwrapped = 0
        self._offset = PathOffset(0.0, 0)
        self._last_arrival_us = 0
        self._reported: tuple[float, int] | None = None
        self._lean_us = 0.0
        self._leant_us = 0
        self.anchors = 0

    def report(self, ntp: int, stamp: int) -> None:
        """A sender report: its 64-bit NTP time, and the RTP time stamp of the same instant."""
        if self._last_stamp is None or ntp == 0:
            return
        step = (stamp - self._last_stamp + _WRAP // 2) % _WRAP - _WRAP // 2
        self._reported = (ntp * 1e6 / _WRAP, self._unwrapped + step)

    def to_session_us(self, stamp: int, arrived_us: int) -> int:
        """The session time at which what `stamp` marks was captured; at most `arrived_us`."""
        stamp %= _WRAP
        if self._last_stamp is None:
            return self._anchor(stamp, arrived_us)
        step = (stamp - self._last_stamp + _WRAP // 2) % _WRAP - _WRAP // 2
        passed_us = arrived_us - self._last_arrival_us
        if abs(step) * 1_000_000 // self._rate > passed_us + _JUMP_US:
            return self._anchor(stamp, arrived_us)
        at = self._unwrapped + step
        media_us = at * 1_000_000 / self._rate
        if step > 0:
            self._unwrapped = at
            self._last_stamp = stamp
            self._last_arrival_us = arrived_us
            self._offset.learn(arrived_us - media_us, arrived_us)
        mapped_us = media_us + self._offset.us
        if arrived_us - mapped_us > _JUMP_US:
            return self._anchor(stamp, arrived_us)
        self._lean(at, mapped_us, arrived_us)
        return min(round(mapped_us + self._lean_us), arrived_us)

    def _anchor(self, stamp: int, arrived_us: int) -> int:
        self._last_stamp = stamp
        self._unwrapped = 0
        self._offset = PathOffset(float(arrived_us), arrived_us)
        self._last_arrival_us = arrived_us
        self._reported = None
        self._lean_us, self._leant_us = 0.0, arrived_us
        self.anchors += 1
        return arrived_us

    def _is_fresh(self, at: int) -> bool:
        return self._reported is not None and at - self._reported[1] < _REPORT_LASTS_S * self._rate

    def _lean(self, at: int, mapped_us: float, arrived_us: int) -> None:
        """Move towards what the sender's reports say."""
        wanted_us = 0.0
        if self._sender is not None and self._reported is not None and self._is_fresh(at):
            reported_us, reported_at = self._reported
            sender_us = reported_us + (at - reported_at) * 1_000_000 / self._rate
            self._sender.learn(sender_us, arrived_us)
            by_report_us = self._sender.to_session_us(sender_us)
            if by_report_us is not None and abs(by_report_us - mapped_us) < _FARTHEST_US:
                wanted_us = by_report_us - mapped_us
        most_us = _RISE_PER_S * max(0, arrived_us - self._leant_us) / 1e6
        self._leant_us = max(self._leant_us, arrived_us)
        self._lean_us += min(most_us, max(-most_us, wanted_us - self._lean_us))
