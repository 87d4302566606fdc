from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.clock import VirtualClock
from stream.errors import VoiceFull
from stream.media import I16
from stream.voice import VoiceFormat, VoiceTrack, samples_to_us, us_to_samples
from tests.stream.harness import tone


class SetClock(VirtualClock):
    """A clock that a test sets."""

    def set(self, now_us: int) -> None:
        self._now_us = now_us


def track(slack_us: int = 40_000) -> tuple[VoiceTrack, SetClock]:
    clock = SetClock()
    return VoiceTrack(clock, slack_us), clock


def noise(count: int, seed: int = 0, peak: int = 8000) -> I16:
    return np.random.default_rng(seed).integers(-peak, peak, count).astype(np.int16)


def test_positions_and_times_are_inverse() -> None:
    for position in range(0, 200_000, 7):
        assert us_to_samples(samples_to_us(position)) == position


def test_the_first_sample_lies_at_its_arrival() -> None:
    voice, clock = track()
    clock.set(1_000_000)
    samples = noise(4800)
    voice.push(samples)
    span = voice.read(48_000 - 100, 5000)
    assert not span.samples[:100].any()
    np.testing.assert_array_equal(span.samples[100:4900], samples)
    assert voice.gaps == 0


@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from([8000, 16000, 22050, 24000, 44100, 48000]),
    channels=st.sampled_from([1, 2]),
    cuts=st.lists(st.integers(1, 5000), min_size=1, max_size=12),
)
def test_any_split_of_pushes_gives_the_same_time_line(rate: int, channels: int, cuts: list[int]) -> None:
    total = sum(cuts)
    samples = noise(total * channels).reshape(total, channels)
    form = VoiceFormat(rate, channels)
    whole, _ = track()
    whole.push(samples, form)
    whole.end()
    split, _ = track()
    at = 0
    for cut in cuts:
        split.push(samples[at : at + cut], form)
        at += cut
    split.end()
    assert whole.written == split.written
    if total >= 64:  # less than its filter is long, the resampler swallows
        assert abs(whole.written - total * 48_000 / rate) <= 2
    length = whole.written
    np.testing.assert_array_equal(whole.read(0, length).samples, split.read(0, length).samples)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 900), min_size=1, max_size=10), start=st.integers(-500, 900))
def test_any_split_of_engine_reads_gives_the_same_samples(cuts: list[int], start: int) -> None:
    voice, _ = track()
    voice.push(noise(30_000))
    total = sum(cuts)
    whole = voice.voice16k(start, total)
    at = start
    parts = []
    for cut in cuts:
        parts.append(voice.voice16k(at, cut))
        at += cut
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_the_engine_hears_speech_and_no_aliases() -> None:
    voice, _ = track()
    t = np.arange(48_000) / 48_000
    voice.push((10_000 * np.sin(2 * np.pi * 1000 * t)).astype(np.int16))
    heard = voice.voice16k(1000, 8000)
    t16 = np.arange(1000, 9000) / 16_000
    np.testing.assert_allclose(heard, 10_000 / 32_768 * np.sin(2 * np.pi * 1000 * t16), atol=2e-3)
    high, _ = track()
    high.push((10_000 * np.sin(2 * np.pi * 11_000 * t)).astype(np.int16))
    assert np.abs(high.voice16k(1000, 8000)).max() < 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_jitter_within_the_slack_tears_no_hole(seed: int) -> None:
    voice, clock = track()
    rng = np.random.default_rng(seed)
    samples = noise(960 * 100)
    arrivals = np.maximum.accumulate(np.arange(100) * 20_000 + rng.integers(0, 40_000, 100))
    arrivals[0] = 0
    for k in range(100):
        clock.set(int(arrivals[k]))
        voice.push(samples[k * 960 : (k + 1) * 960])
    np.testing.assert_array_equal(voice.read(0, samples.size).samples, samples)
    assert voice.gaps == 0


def test_a_hole_is_silence_and_is_counted() -> None:
    voice, clock = track()
    first, second = noise(960, 1), noise(960, 2)
    voice.push(first)
    clock.set(220_000)
    assert voice.read(960, 960).gap_samples == 960
    voice.push(second)
    assert voice.gaps == 1
    assert voice.gap_samples == us_to_samples(220_000) - 960
    everything = voice.read(0, us_to_samples(240_000)).samples
    np.testing.assert_array_equal(everything[:960], first)
    assert not everything[960:10_560].any()
    np.testing.assert_array_equal(everything[10_560:], second)


def test_a_pause_after_the_end_is_no_hole() -> None:
    voice, clock = track()
    voice.push(noise(960))
    voice.end()
    clock.set(300_000)
    assert voice.read(960, 960).gap_samples == 0
    voice.push(noise(960))
    assert (voice.gaps, voice.gap_samples) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["push", "end", "wait", "read"]), st.integers(1, 200_000), st.integers(0, 99)
        ),
        max_size=40,
    )
)
def test_what_is_final_never_changes(steps: list[tuple[str, int, int]]) -> None:
    voice, clock = track()
    known = np.zeros(0, np.int16)
    for what, amount, seed in steps:
        if what == "push":
            voice.push(noise(amount // 20 + 1, seed))
        elif what == "end":
            voice.end()
        elif what == "wait":
            clock.set(clock.now_us() + amount)
        final = voice.final_to
        assert final >= known.size, "what was final is no longer"
        now = voice.read(0, final).samples
        np.testing.assert_array_equal(now[: known.size], known)
        known = now


def test_more_than_fits_is_refused_whole() -> None:
    voice, clock = track()
    credit = voice.credit_ms()
    assert credit == 24_000
    voice.push(noise(48 * 20_000))
    before = voice.written
    with pytest.raises(VoiceFull, match="room for 4000 ms"):
        voice.push(noise(48 * 5_000))
    assert voice.written == before
    clock.set(2_000_000)
    voice.push(noise(48 * 5_000))
    assert voice.written == before + 48 * 5_000


@pytest.mark.parametrize(
    ("samples", "channels", "message"),
    [
        (np.zeros(3, np.int16), 2, "do not divide"),
        (np.zeros(4, np.int32), 1, "int16 or float"),
        (np.zeros(6, np.int16), 3, "1 or 2 channels"),
    ],
)
def test_what_is_no_speech_is_refused(samples: I16, channels: int, message: str) -> None:
    voice, _ = track()
    with pytest.raises(ValueError, match=message):
        voice.push(samples, VoiceFormat(48_000, channels))


def test_broken_floats_do_no_harm() -> None:
    voice, _ = track()
    bad = np.full(4800, np.nan, np.float32)
    bad[::3], bad[1::3] = np.inf, -7.0
    voice.push(bad, VoiceFormat(16_000, 1))
    voice.push(np.zeros(16_000, np.float32), VoiceFormat(16_000, 1))
    voice.end()
    assert np.abs(voice.read(30_000, 10_000).samples).max() == 0


def test_interruption_silences_from_the_playout_position_on() -> None:
    voice, clock = track()
    samples = tone(2000)
    voice.push(samples)
    clock.set(500_000)
    voice.mark_played(12_000)
    assert voice.interrupt() == 1
    heard = voice.read(0, 96_000)
    np.testing.assert_array_equal(heard.samples[:12_000], samples[:12_000])
    assert not heard.samples[12_240:].any(), "more than a 5 ms fade is left"
    assert heard.epoch == 1
    assert not voice.active(13_000, 24_000)
    voice.push(samples[:960])
    np.testing.assert_array_equal(voice.read(24_000, 960).samples, samples[:960])
    assert voice.gaps == 0


def test_interruption_before_anything_was_said_is_harmless() -> None:
    voice, _ = track()
    assert voice.interrupt() == 1
    voice.end()
    assert voice.interrupt() == 2
    assert voice.buffered_ms() == 0


def test_silence_and_faint_noise_are_silent_and_speech_is_not(repository: Path) -> None:
    voice, _ = track()
    voice.push(np.zeros(48_000, np.int16))
    voice.push(noise(48_000, 3, 60))
    assert not voice.active(0, 96_000)
    with wave.open(str(repository / "client_web" / "sample" / "speech.wav")) as file:
        rate, count = file.getframerate(), file.getnframes()
        speech = np.frombuffer(file.readframes(min(count, 5 * rate)), np.int16)
        voice.push(speech, VoiceFormat(rate, file.getnchannels()))
    tenths = [voice.active(at, at + 4800) for at in range(96_000, voice.final_to - 4800, 4800)]
    assert sum(tenths) > 0.5 * len(tenths)


def test_a_breath_after_speech_belongs_to_it_for_a_while() -> None:
    with wave.open(str(Path(__file__).parents[2] / "client_web" / "sample" / "speech.wav")) as file:
        rate, count = file.getframerate(), file.getnframes()
        everything = np.frombuffer(file.readframes(min(count, 4 * rate)), np.int16)
    for faint, belongs in ((noise(96_000, 3, 60), True), (np.zeros(96_000, np.int16), False)):
        voice, _ = track()
        voice.push(everything, VoiceFormat(rate, 1))
        voice.push(np.zeros(48, np.int16), VoiceFormat(rate, 1))
        end = voice.written
        voice.push(faint)
        last = max(at for at in range(0, end, 480) if voice.active(at, at + 480)) + 480
        assert voice.active(last + 24_000, last + 28_800) == belongs
        assert not voice.active(last + 60_000, last + 96_000)


def test_activity_does_not_depend_on_who_asks_when() -> None:
    samples = np.concatenate([tone(300), np.zeros(9600, np.int16), tone(300, 9000, 150)])
    one, _ = track()
    one.push(samples)
    late = [one.active(at, at + 480) for at in range(0, samples.size - 480, 480)]
    two, _ = track()
    early = []
    for at in range(0, samples.size - 480, 480):
        two.push(samples[at : at + 480])
        early.append(two.active(at, at + 480))
    assert late == early
    assert any(late)
    assert not all(late)


def test_a_live_voice_that_lags_is_trimmed_only_where_it_is_silent() -> None:
    voice, clock = track()
    speech = tone(400)
    for at in range(0, speech.size, 960):
        voice.push(speech[at : at + 960], realtime=True)
    assert voice.trimmed_samples == 0
    for k in range(40):
        clock.set(k * 20_000)
        voice.push(np.zeros(960, np.int16), realtime=True)
    np.testing.assert_array_equal(voice.read(0, speech.size).samples, speech)
    behind_us = samples_to_us(voice.written) - clock.now_us()
    assert voice.trimmed_samples > 0
    assert behind_us <= 60_000


def test_hours_change_nothing() -> None:
    voice, clock = track()
    size = voice._ring.nbytes
    for hour in range(1, 9):
        clock.set(hour * 3_600_000_000)
        samples = noise(48_000, hour)
        voice.push(samples)
        start = us_to_samples(clock.now_us())
        np.testing.assert_array_equal(voice.read(start, 48_000).samples, samples)
        assert not voice.read(start - 48_000, 48_000).samples.any()
        voice.active(start, start + 4800)
        voice.end()
    assert voice._ring.nbytes == size
