"""The voice's time line: 48 kHz samples whose index is session time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import webrtcvad
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from retalk_models.engine import VOICE_RATE
from retalk_models.picture import F32, Flags
from stream.clock import Bell, Clock
from stream.drift import DriftCorrector
from stream.errors import VoiceFull
from stream.media import I16, PLAYOUT_RATE, VoiceSpan

DECIMATION = PLAYOUT_RATE // VOICE_RATE
FIR_REACH = 48
"""Playout samples (1 ms) on each side of an engine sample that its value depends on."""

_RING_S = 30
_KEPT_S = 6
_VAD_FRAME = 480
_VAD_MODE = 2
_SILENT_RMS = 10 ** (-50 / 20) * 32768
_BREATH_FRAMES = 80
"""Frames of 10 ms after speech in which a breath still belongs to it."""

_BREATH_RMS = 10 ** (-65 / 20) * 32768
"""Quieter than this is silence and no breath."""

_PAUSE = PLAYOUT_RATE
_FADE = 240


def us_to_samples(time_us: int) -> int:
    """The playout position at a session time, rounded down."""
    return time_us * PLAYOUT_RATE // 1_000_000


def samples_to_us(position: int) -> int:
    """The session time of a playout position, rounded up so that `us_to_samples` gives the position back."""
    return -(-position * 1_000_000 // PLAYOUT_RATE)


def _low_pass() -> F32:
    """Symmetric Kaiser low pass for decimation by 3: 3 dB down at 7.8 kHz, over 60 dB down from 9 kHz."""
    n = np.arange(-FIR_REACH, FIR_REACH + 1)
    taps = np.sinc(n / DECIMATION * 0.97) * np.kaiser(2 * FIR_REACH + 1, 7.0)
    return np.asarray(taps / taps.sum() / 32768.0, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class VoiceFormat:
    """How pushed samples are to be read: samples per second, interleaved channels, "s16" or "flt"."""

    rate: int = PLAYOUT_RATE
    channels: int = 1
    sample: str = "s16"


class VoiceTrack:
    """One mono voice, placed by sample position. Used from the event loop's thread only.

    The first sample of an utterance is placed at the instant it arrives; what follows is placed behind it,
    however early (a synthesiser's burst) or up to `slack_us` late (a network's jitter) it comes. What comes
    later than that leaves a hole of silence, which is counted, and starts anew at its arrival. Positions
    before `final_to` never change within an epoch, so whoever reads below it reads the same for ever.

    stamped: speech may come with the time that it dubs, up to `slack_us` after that time. It is placed there,
    or as early as it still can be.
    """

    def __init__(
        self, clock: Clock, slack_us: int = 40_000, bell: Bell | None = None, stamped: bool = False
    ) -> None:
        self._clock = clock
        self._stamped = stamped
        self._bell = bell or Bell()
        self._slack = us_to_samples(slack_us)
        self._kept = _KEPT_S * PLAYOUT_RATE + self._slack
        self._size = _RING_S * PLAYOUT_RATE + self._slack
        self._ring: I16 = np.zeros(self._size, np.int16)
        self._taps = _low_pass()
        self._written = 0
        self._anchored = False
        self._open = False
        self._from_file = False
        self._format: VoiceFormat | None = None
        self._resampler: AudioResampler | None = None
        self._drift = DriftCorrector()
        self._vad = webrtcvad.Vad(_VAD_MODE)
        self._speech: Flags = np.zeros(self._size // _VAD_FRAME, np.bool_)
        self._judged = 0
        self._since_speech = _BREATH_FRAMES
        self._consumed = 0
        self._played = 0
        self.epoch = 0
        self.gaps = 0
        self.gap_samples = 0
        self.trimmed_samples = 0
        self.late_samples = 0

    def credit_ms(self) -> int:
        """How much more speech would be accepted now, in milliseconds."""
        return max(0, self._room()) * 1000 // PLAYOUT_RATE

    def buffered_ms(self) -> int:
        """How much accepted speech has not been played yet, in milliseconds."""
        return max(0, self._written - self._played) * 1000 // PLAYOUT_RATE if self._anchored else 0

    @property
    def played(self) -> int:
        """Playout position up to which the voice has been heard."""
        return self._played

    @property
    def drift_samples(self) -> int:
        """Playout samples that were added or left out because the voice's clock is off."""
        return self._drift.changed_samples

    @property
    def written(self) -> int:
        """Playout position behind the last accepted sample."""
        return self._written

    @property
    def final_to(self) -> int:
        """Playout position before which nothing changes within this epoch."""
        # With no utterance under way the next sample goes to its arrival, which is not before now.
        reach = 0 if self._stamped or (self._anchored and self._open) else self._slack
        due = us_to_samples(self._clock.now_us()) - self._slack + reach
        return max(self._written, due) if self._anchored else due

    def begin_at(self, position: int) -> None:
        """Place the first utterance at this playout position instead of at its arrival: files begin at 0."""
        if self._anchored:
            raise RuntimeError("the voice has begun already")
        self._written = max(position, self._consumed)
        self._anchored = self._open = self._from_file = True

    def push(
        self,
        samples: NDArray[Any],
        form: VoiceFormat | None = None,
        realtime: bool = False,
        at_us: int | None = None,
    ) -> None:
        """Place speech on the time line, all of it or nothing.

        samples: (n,) or (n, channels) or interleaved (n * channels,), int16 or float in -1..1.
        form: rate and channels (default 48 kHz mono); the sample type is read off the array.
        realtime: the speaker is live, so delay that has built up is trimmed away where he is silent.
        at_us: the session time of what these samples dub (stamped voices only); where not given they follow
            on what came before.
        Raises VoiceFull if the buffer would overflow, and ValueError for samples that are no speech.
        """
        form = form or VoiceFormat()
        packed, sample = _packed(samples, form.channels)
        frames = packed.size // form.channels
        if frames == 0:
            return
        if frames * PLAYOUT_RATE // form.rate > self._room():
            raise VoiceFull(
                f"{frames * 1000 // form.rate} ms of speech pushed, room for {self.credit_ms()} ms; "
                "wait for credit before sending more"
            )
        if at_us is not None:
            self._go_to(at_us)
        self._place(self._resampled(packed, VoiceFormat(form.rate, form.channels, sample)), realtime)
        self._bell.ring()

    def end(self) -> None:
        """The utterance is complete: what follows is a pause and no hole. Idempotent."""
        tail = self._drained()
        self._place(tail, False)
        self._open = False
        self._bell.ring()

    def interrupt(self) -> int:
        """Silence everything not yet heard, at once, and begin a new epoch, whose number is returned."""
        self._drained()
        self.epoch += 1
        if self._anchored and self._written > self._played:
            tail = self._span(self._played, self._written - self._played).astype(np.float32)
            fade = min(_FADE, tail.size)
            tail[:fade] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
            tail[fade:] = 0
            self._store(self._played, tail.astype(np.int16))
            self._written = self._played + fade
        self._open = False
        self._consumed = min(self._consumed, self._written)
        self._judged = min(self._judged, max(0, self._played) // _VAD_FRAME)
        self._vad = webrtcvad.Vad(_VAD_MODE)
        self._since_speech = _BREATH_FRAMES
        self._bell.ring()
        return self.epoch

    def mark_played(self, position: int) -> None:
        """Playout has released everything before `position`."""
        self._played = max(self._played, position)

    def read(self, start: int, count: int) -> VoiceSpan:
        """What is heard from playout position `start` on, for `count` samples; silence where nothing is."""
        gap = 0
        if self._open and self._anchored:
            hole = start + count - self._written
            gap = min(hole, count) if 0 < hole < _PAUSE else 0
        return VoiceSpan(self._span(start, count), start, self.epoch, gap)

    def voice16k(self, start: int, count: int) -> F32:
        """(count,) float32 at VOICE_RATE from its position `start` on, for the engine.

        A pure function of the samples up to FIR_REACH beyond: any split of a span gives the same values.
        """
        if count <= 0:
            return np.zeros(0, np.float32)
        first = start * DECIMATION - FIR_REACH
        wide = self._span(first, (count - 1) * DECIMATION + 2 * FIR_REACH + 1)
        self._consumed = max(self._consumed, first + wide.size)
        rows = np.lib.stride_tricks.sliding_window_view(wide, self._taps.size)[::DECIMATION]
        return np.asarray(np.einsum("ij,j->i", rows.astype(np.float32), self._taps), np.float32)

    def active(self, start: int, stop: int) -> bool:
        """Whether the speaker is heard in playout positions [start, stop): speech, or a breath after it."""
        self._judge(min(stop, self.final_to) // _VAD_FRAME)
        first = max(start // _VAD_FRAME, self._judged - self._speech.size, 0)
        last = min(-(-stop // _VAD_FRAME), self._judged)
        frames = np.arange(first, last) % self._speech.size
        return bool(self._speech[frames].any())

    def _room(self) -> int:
        ahead = self._written - us_to_samples(self._clock.now_us()) if self._anchored else 0
        return self._size - self._kept - max(0, ahead)

    def _resampled(self, packed: NDArray[Any], form: VoiceFormat) -> I16:
        if form == VoiceFormat():
            self._drop_resampler_unless(None)
            return np.asarray(packed, np.int16)
        self._drop_resampler_unless(form)
        if self._resampler is None:
            self._resampler = AudioResampler(format="s16", layout="mono", rate=PLAYOUT_RATE)
            self._format = form
        layout = "mono" if form.channels == 1 else "stereo"
        frame = av.AudioFrame.from_ndarray(packed.reshape(1, -1), format=form.sample, layout=layout)
        frame.sample_rate = form.rate
        return _joined(self._resampler.resample(frame))

    def _drop_resampler_unless(self, form: VoiceFormat | None) -> None:
        if self._resampler is not None and self._format != form:
            self._place(self._drained(), False)

    def _drained(self) -> I16:
        if self._resampler is None:
            return np.zeros(0, np.int16)
        resampler, self._resampler, self._format = self._resampler, None, None
        return _joined(resampler.resample(None))

    def _go_to(self, at_us: int) -> None:
        """Let what comes next be placed at `at_us`: never before what was placed, or is final."""
        if not self._stamped:
            raise ValueError("this voice takes no time stamps: its session is not aligned")
        self._place(self._drained(), False)
        position = max(us_to_samples(at_us), self.final_to, self._consumed)
        if self._anchored:
            position = max(position, self._written)
            self._clear(self._written, position - self._written)
        self.late_samples += max(0, position - us_to_samples(at_us))
        self._written = position
        self._anchored = self._open = True

    def _place(self, samples: I16, realtime: bool) -> None:
        if not samples.size:
            return
        now = us_to_samples(self._clock.now_us())
        if not self._anchored:
            self._written = max(now, self._consumed)
            self._anchored = True
        elif self._written < now - (self._slack if self._open else 0):
            earliest = now - self._slack if self._stamped and self._open else now
            hole = max(earliest, self._consumed) - self._written
            if self._open and hole < _PAUSE:
                self.gaps += 1
                self.gap_samples += hole
            self._clear(self._written, hole)
            self._written += hole
            self._drift.restart()
        elif realtime:
            kept = self._trimmed(samples, now)
            if kept.size < samples.size:
                self._drift.restart()
            samples = kept
        if not self._open:
            self._drift.restart()
        if not self._from_file:
            samples = self._drift.apply(samples, self._written, now)
        self._open = True
        self._store(self._written, samples)
        self._written += samples.size

    def _trimmed(self, samples: I16, now: int) -> I16:
        excess = self._written - now - self._slack
        if excess <= 0 or _rms(samples) >= _SILENT_RMS:
            return samples
        recent = self._span(self._written - 4 * _VAD_FRAME, 4 * _VAD_FRAME)
        if _rms(recent) >= _SILENT_RMS:
            return samples
        kept = samples[min(excess, samples.size) :]
        self.trimmed_samples += samples.size - kept.size
        return kept

    def _judge(self, until: int) -> None:
        """Decide every undecided 10 ms frame before `until`, in order: the detector has a memory."""
        oldest = max(0, (self._written if self._anchored else 0) - self._size) // _VAD_FRAME + 1
        if until - self._judged > self._speech.size or self._judged < oldest:
            self._judged = max(oldest, until - self._speech.size, self._judged)
        while self._judged < until:
            frame = self._span(self._judged * _VAD_FRAME, _VAD_FRAME)
            level = _rms(frame)
            if level >= _SILENT_RMS and self._vad.is_speech(frame.tobytes(), PLAYOUT_RATE):
                self._since_speech = 0
            else:
                self._since_speech += 1
            self._speech[self._judged % self._speech.size] = (
                level >= _BREATH_RMS and self._since_speech <= _BREATH_FRAMES
            )
            self._judged += 1

    def _span(self, start: int, count: int) -> I16:
        """A copy of positions [start, start + count): zeros before 0, behind the end and beyond the ring."""
        out: I16 = np.zeros(count, np.int16)
        if not self._anchored:
            return out
        low = max(start, 0, self._written - self._size)
        high = min(start + count, self._written)
        if high > low:
            head = low % self._size
            first = min(high - low, self._size - head)
            out[low - start : low - start + first] = self._ring[head : head + first]
            out[low - start + first : high - start] = self._ring[: high - low - first]
        return out

    def _store(self, position: int, samples: I16) -> None:
        head = position % self._size
        first = min(samples.size, self._size - head)
        self._ring[head : head + first] = samples[:first]
        self._ring[: samples.size - first] = samples[first:]

    def _clear(self, position: int, count: int) -> None:
        if count >= self._size:
            self._ring[:] = 0
        elif count > 0:
            self._store(position, np.zeros(count, np.int16))


def _packed(samples: NDArray[Any], channels: int) -> tuple[NDArray[Any], str]:
    """Interleaved samples and their av format name."""
    if channels not in (1, 2):
        raise ValueError(f"a voice has 1 or 2 channels, not {channels}")
    flat = np.ascontiguousarray(samples).reshape(-1)
    if flat.size % channels:
        raise ValueError(f"{flat.size} samples do not divide into {channels} channels")
    if flat.dtype == np.int16:
        return flat, "s16"
    if np.issubdtype(flat.dtype, np.floating):
        # Not-a-number would spread through the resampler's memory; a clipped sample is only loud.
        clean = np.nan_to_num(flat.astype(np.float32), nan=0.0, posinf=1.0, neginf=-1.0)
        return np.clip(clean, -1.0, 1.0), "flt"
    raise ValueError(f"voice samples must be int16 or float, not {flat.dtype}")


def _joined(frames: list[av.AudioFrame]) -> I16:
    parts = [np.asarray(frame.to_ndarray().reshape(-1), np.int16) for frame in frames]
    return np.concatenate(parts) if parts else np.zeros(0, np.int16)


def _rms(samples: I16) -> float:
    return float(np.sqrt(np.mean(np.square(samples.astype(np.float32))))) if samples.size else 0.0
