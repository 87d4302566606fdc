"""The streaming log-mel equals librosa's, and chunks equal the whole."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retalk_models.picture import F32
from retalk_models.speech import LevelTracker, MelSettings, MelStream, features


def _sound(seconds: float, seed: int) -> F32:
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16000)) / 16000
    swell = 0.3 * (1 + np.sin(2 * np.pi * 3 * time))
    tone = np.sin(2 * np.pi * 140 * time) + 0.5 * np.sin(2 * np.pi * 1170 * time)
    return np.asarray(0.2 * swell * tone + rng.normal(0, 0.02, len(time)), np.float32)


@pytest.mark.parametrize(
    "settings_", [MelSettings(), MelSettings(bands=80, low_hz=0.0, high_hz=8000.0), MelSettings(fft=400)]
)
def test_equals_librosa(settings_: MelSettings) -> None:
    sound = _sound(2.0, 1)
    ours = MelStream(settings_).push(sound)
    theirs = librosa.feature.melspectrogram(
        y=sound,
        sr=16000,
        n_fft=settings_.fft,
        hop_length=160,
        win_length=400,
        n_mels=settings_.bands,
        fmin=settings_.low_hz,
        fmax=settings_.high_hz,
        center=False,
    ).T
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-4
    assert np.abs(librosa.power_to_db(ours) - librosa.power_to_db(theirs)).max() < 0.01


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=20), st.integers(0, 100))
def test_any_chunking_equals_the_whole_bit_for_bit(sizes: list[int], seed: int) -> None:
    sound = _sound(0.7, seed)
    whole = MelStream().push(sound)
    stream, at, parts = MelStream(), 0, []
    for size in [*sizes, len(sound)]:
        parts.append(stream.push(sound[at : at + size]))
        at += size
    assert np.array_equal(np.concatenate(parts), whole)


def test_reset_starts_over() -> None:
    sound = _sound(0.5, 2)
    stream = MelStream()
    first = stream.push(sound)
    stream.reset()
    assert np.array_equal(stream.push(sound), first)


def test_level_rises_fast_falls_slowly_and_chunks_equal_the_whole() -> None:
    rng = np.random.default_rng(3)
    frames = np.concatenate([np.full(100, -70.0), np.full(50, -10.0), np.full(200, -20.0)]).astype(np.float32)
    frames += rng.normal(0, 0.1, len(frames)).astype(np.float32)
    whole = LevelTracker().push(frames)
    assert whole[115] == pytest.approx(-10, abs=1.0)
    assert -16 < whole[-1] < -12
    split = LevelTracker()
    assert np.array_equal(np.concatenate([split.push(frames[:77]), split.push(frames[77:])]), whole)


def test_level_never_looks_ahead() -> None:
    quiet = np.full(60, -40.0, np.float32)
    loud = quiet.copy()
    loud[40:] = 0.0
    assert np.array_equal(LevelTracker().push(quiet)[:40], LevelTracker().push(loud)[:40])


def test_loudness_hardly_changes_the_settled_features() -> None:
    sound = _sound(6.0, 5)
    loud = features(MelStream().push(sound), LevelTracker())
    soft = features(MelStream().push(sound * np.float32(0.25)), LevelTracker())
    apart = np.abs(loud[-100:, :40] - soft[-100:, :40]).mean()
    assert apart < 0.35 * loud[-100:, :40].std()


def test_digital_silence_is_finite() -> None:
    heard = features(MelStream().push(np.zeros(16000, np.float32)), LevelTracker())
    assert np.isfinite(heard).all()
    assert heard.max() <= 0
