"""Voices whose clocks are off, for simulated hours."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from stream.clock import VirtualClock
from stream.media import I16
from stream.voice import VoiceFormat, VoiceTrack
from tests.stream.harness import tone


class Speaker:
    """Speaks without pause in chunks, by a clock of its own; `apart_ms` of each chunk is kept."""

    def __init__(self, rate: int, ppm: float, chunk_ms: int, jitter_us: int, seed: int = 3) -> None:
        self.clock = VirtualClock()
        self.track = VoiceTrack(self.clock)
        self.apart_ms: list[float] = []
        self._form = VoiceFormat(rate)
        self._size = rate * chunk_ms // 1000
        self._pace = chunk_ms * 1000 / (1 + ppm / 1e6)
        self._jitter_us = jitter_us
        self._rng = random.Random(seed)
        sound = np.resize(tone(1000), 48_000)[:: 48_000 // rate] if 48_000 % rate == 0 else tone(1000)
        self._chunk: I16 = np.resize(sound, self._size)

    def speak(self, seconds: float, realtime: bool = False) -> None:
        for k in range(1, round(seconds * 1e6 / self._pace)):
            spoken_us = k * self._pace
            self.clock._now_us = round(spoken_us) + self._rng.randrange(self._jitter_us + 1)
            self.track.push(self._chunk, self._form, realtime)
            # The chunk's last sample was said at spoken_us; where on the time line is it?
            self.apart_ms.append(self.track.written / 48 - spoken_us / 1000)

    def spread_ms(self, settled: int = 0) -> float:
        return max(self.apart_ms[settled:]) - min(self.apart_ms[settled:])


@pytest.mark.parametrize("rate", [8000, 16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("ppm", [-200.0, 200.0])
def test_speech_without_a_pause_stays_in_time(rate: int, ppm: float) -> None:
    speaker = Speaker(rate, ppm, chunk_ms=100, jitter_us=15_000)
    speaker.speak(900)
    # Left alone it would be 180 ms.
    assert speaker.spread_ms() < 30
    assert speaker.track.gaps == 0


def test_eight_hours_stay_in_time() -> None:
    speaker = Speaker(48_000, 200.0, chunk_ms=200, jitter_us=15_000)
    speaker.speak(8 * 3600)
    assert speaker.spread_ms() < 30
    assert abs(speaker.apart_ms[-1] - speaker.apart_ms[100]) < 15
    assert speaker.track.gaps == 0


@pytest.mark.parametrize("chunk_ms", [10, 20])
@pytest.mark.parametrize("ppm", [-200.0, 200.0])
def test_small_chunks_and_a_live_speaker_too(chunk_ms: int, ppm: float) -> None:
    speaker = Speaker(48_000, ppm, chunk_ms, jitter_us=20_000)
    speaker.speak(600, realtime=True)
    assert speaker.spread_ms() < 30
    assert speaker.track.gaps == 0


def test_a_true_clock_is_left_as_it_is() -> None:
    speaker = Speaker(48_000, 0.0, chunk_ms=20, jitter_us=15_000)
    speaker.speak(120)
    assert speaker.track.drift_samples == 0
    np.testing.assert_array_equal(
        speaker.track.read(speaker.track.written - 960, 960).samples, speaker._chunk
    )


def test_a_synthesiser_s_burst_is_left_as_it_is() -> None:
    clock = VirtualClock()
    track = VoiceTrack(clock)
    said = []
    for k, chunk in zip(range(400), itertools.cycle([tone(100), tone(100, hertz=150.0)]), strict=False):
        clock._now_us = k * 51_000
        track.push(chunk)
        said.append(chunk)
    assert track.drift_samples == 0
    start = track.written - 40 * 4800
    np.testing.assert_array_equal(track.read(start, 40 * 4800).samples, np.concatenate(said[-40:]))


def test_a_correction_is_not_heard() -> None:
    """A pure tone that is stretched by a thousandth stays one: what is added lies 60 dB below it."""
    speaker = Speaker(48_000, 200.0, chunk_ms=20, jitter_us=0)
    t = np.arange(960) / 48_000
    speaker._chunk = np.asarray(12_000 * np.sin(2 * np.pi * 400 * t), np.int16)
    speaker.speak(60)
    assert speaker.track.drift_samples > 100
    heard = speaker.track.read(speaker.track.written - 48_000, 48_000).samples.astype(np.float64)
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(48_000))) ** 2
    near = np.zeros_like(spectrum, bool)
    near[395:406] = True
    assert spectrum[~near].sum() < 1e-5 * spectrum[near].sum()
