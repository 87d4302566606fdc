"""Keeps a voice whose clock is off in time, a sample at a time."""

from __future__ import annotations

from collections import deque

import numpy as np

from stream.media import I16, PLAYOUT_RATE

_BUCKET = PLAYOUT_RATE
_BUCKETS = 5
_MOST_STEP = PLAYOUT_RATE // 10
_LEAST_ERROR = PLAYOUT_RATE // 500
_SAMPLES_PER_CHANGE = 960
_FARTHEST = PLAYOUT_RATE // 2


class DriftCorrector:
    """Stretches or squeezes speech of a steady pace by at most a thousandth, so that its lead stays.

    The lead is how far ahead of its arrival a sample is placed. Jitter only ever lessens it, so the most of
    the last five seconds is compared with the most of the first five. Speech that comes in bursts (a
    synthesiser's) or over half a second ahead has no pace to be true to, and is left alone.
    """

    def __init__(self) -> None:
        self._leads: deque[tuple[int, int]] = deque(maxlen=_BUCKETS)
        self._first: int | None = None
        self._since = 0
        self.changed_samples = 0

    def restart(self) -> None:
        """A new utterance: it has its own pace and its own lead."""
        self._leads.clear()
        self._first = None

    def apply(self, samples: I16, written: int, now: int) -> I16:
        """What to place of `samples`, which come at `now` and go to `written`: one in 960 more or less."""
        lead = written - now
        if abs(lead) > _FARTHEST or (self._leads and abs(lead - self._leads[-1][1]) > _MOST_STEP):
            self.restart()
        bucket = now // _BUCKET
        if self._leads and self._leads[-1][0] == bucket:
            self._leads[-1] = (bucket, max(self._leads[-1][1], lead))
        else:
            self._leads.append((bucket, lead))
        if len(self._leads) < _BUCKETS:
            return samples
        most = max(lead for _, lead in self._leads)
        if self._first is None:
            self._first = most
        error = most - self._first
        self._since += samples.size
        count = min(abs(error), self._since // _SAMPLES_PER_CHANGE, samples.size // 2)
        if abs(error) < _LEAST_ERROR or abs(lead) > _FARTHEST or count == 0:
            self._since = min(self._since, _SAMPLES_PER_CHANGE)
            return samples
        self._since = 0
        self.changed_samples += count
        return _stretched(samples, samples.size - count if error > 0 else samples.size + count)


def _stretched(samples: I16, size: int) -> I16:
    at = np.linspace(0.0, samples.size - 1.0, size)
    return np.asarray(np.rint(np.interp(at, np.arange(samples.size), samples)), np.int16)
