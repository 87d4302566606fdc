"""The sync meter: what it makes of matching, mismatching, shifted and frozen lips; and of real people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retalk_models.engine import VOICE_RATE
from retalk_models.evaluation.lips import Lips, speaking
from retalk_models.evaluation.sync import SyncMeter, lip_values, listen, mel_levels
from retalk_models.evaluation.train_sync import Spoken, train
from retalk_models.talkin.corpus import read_catalogue, read_sound, track_clip
from tests.retalk_models.evaluation.synthetic import lips, opening, sound

PEOPLE = 4


def spoken(seed: int) -> Spoken:
    apertures = opening(12.0, seed)
    heard, moved = sound(apertures, seed), lips(apertures)
    at = np.arange(0.1, 11.8, 0.04)
    seen = lip_values(moved, at)
    return Spoken(f"p{seed}", f"p{seed}", moved, heard, listen(mel_levels(heard), at), seen)


@pytest.fixture(scope="module")
def meter() -> SyncMeter:
    return train([spoken(seed) for seed in range(PEOPLE)])


def test_trained_meter_tells_true_lips_from_bad_ones(meter: SyncMeter) -> None:
    apertures = opening(12.0, 20)
    heard = sound(apertures, 20)
    true = meter.score(lips(apertures), heard)
    assert true > 0.6
    assert meter.score(lips(opening(12.0, 21)), heard) < 0.4 * true
    assert meter.score(lips(apertures, 0.12), heard) < 0.8 * true
    assert meter.score(lips(apertures, -0.12), heard) < 0.8 * true
    still = lips(np.full(len(apertures), 0.05))
    assert abs(meter.score(still, heard)) < 0.2


def test_too_little_is_no_score(meter: SyncMeter) -> None:
    apertures = opening(1.0, 1)
    assert np.isnan(meter.score(lips(apertures), sound(apertures)))
    empty = np.full((50, 478, 3), np.nan, np.float32)
    assert np.isnan(meter.score(Lips.of(empty, np.arange(50) / 25), sound(opening(2.0))))


def test_pauses_are_no_speech() -> None:
    apertures = opening(4.0, 3)
    heard = sound(apertures)
    heard[VOICE_RATE : 2 * VOICE_RATE] *= 0.001
    flags = speaking(heard, np.array([0.5, 1.5, 2.5, 99.0]))
    assert flags.tolist() == [True, False, True, False]


def test_shipped_meter_separates_people_it_never_saw(clips: Path) -> None:
    """A clip for measuring: its own sound, the two others', and its own shifted."""
    meter = SyncMeter.load()
    entry = read_catalogue(clips, "open")[0]
    track = track_clip(entry.path)
    own = Lips.of(track.points, track.times)
    foreign = [read_sound(one.path) for one in read_catalogue(clips, "open")[1:]]
    true = meter.score(own, track.sound)
    assert true > 0.3
    assert max(meter.score(own, one) for one in foreign) < 0.18
    for late_s in (0.12, -0.12):
        assert meter.score(own.shifted(late_s), track.sound) < 0.85 * true
