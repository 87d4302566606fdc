"""Tracks: a good dub scores well, and each deliberately bad one scores badly where it is bad."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retalk_models.evaluation.lips import Lips, landmark_distances
from retalk_models.evaluation.series import (
    F64,
    FAR_S,
    NEAR_S,
    amplitude_ratio,
    closures,
    grid,
    lagged,
    on_grid,
    partial,
    pearson,
    shut,
)
from tests.retalk_models.evaluation.synthetic import lips, opening

SECONDS = 12.0
AT = grid(0.3, SECONDS - 0.3)


def track(dub: Lips) -> F64:
    return on_grid(dub.seconds, dub.opening, AT)


TRUE = opening(SECONDS, 1)
OTHER = opening(SECONDS, 2)
NOISE = np.abs(np.random.default_rng(3).normal(0, 0.01, len(TRUE)))
GOOD = 0.85 * TRUE + NOISE
ALWAYS = np.ones(len(AT), np.bool_)


def test_a_good_dub_scores_well() -> None:
    dub, truth, own = track(lips(GOOD)), track(lips(TRUE)), track(lips(OTHER))
    near, _ = lagged(dub, truth, NEAR_S)
    _, lag = lagged(dub, truth, FAR_S)
    assert near > 0.95
    assert lag == pytest.approx(0, abs=0.021)
    assert abs(partial(dub, own, truth)) < 0.15
    assert 0.7 < amplitude_ratio(dub, truth) < 1.1
    found = closures(dub, truth, ALWAYS)
    assert found.events > 10
    assert found.recall > 0.8
    assert found.false < 0.05


def test_a_frozen_mouth_is_found_out() -> None:
    truth = track(lips(TRUE))
    for rest in (0.0, 0.06):
        frozen = track(lips(np.full(len(TRUE), rest) + 1e-4 * NOISE))
        near, _ = lagged(frozen, truth, NEAR_S)
        assert near < 0.2
        assert amplitude_ratio(frozen, truth) < 0.1
    # Shut for good makes every closure, and hides every vowel; open for good makes none.
    assert closures(track(lips(np.zeros(len(TRUE)))), truth, ALWAYS).false > 0.95
    assert closures(track(lips(np.full(len(TRUE), 0.06))), truth, ALWAYS).recall < 0.05
    assert pearson(np.zeros(len(AT)), truth) == 0


@pytest.mark.parametrize("late_s", [0.12, -0.12])
def test_a_shifted_dub_is_found_out(late_s: float) -> None:
    dub, truth = track(lips(GOOD, late_s)), track(lips(TRUE))
    near, _ = lagged(dub, truth, NEAR_S)
    far, lag = lagged(dub, truth, FAR_S)
    assert near < 0.6
    assert far > 0.95
    assert lag == pytest.approx(late_s, abs=0.021)


def test_a_source_that_passes_through_is_found_out() -> None:
    truth, own = track(lips(TRUE)), track(lips(OTHER))
    near, _ = lagged(own, truth, NEAR_S)
    assert near < 0.3
    assert partial(own, own, truth) > 0.95
    leaky = track(lips(0.6 * TRUE + 0.4 * OTHER))
    assert partial(leaky, own, truth) > 0.5


def test_leak_is_unknown_where_the_source_s_mouth_is_the_truth() -> None:
    truth = track(lips(TRUE))
    assert np.isnan(partial(track(lips(GOOD)), truth, truth))


def test_too_small_and_too_large_a_mouth_are_found_out() -> None:
    truth = track(lips(TRUE))
    assert amplitude_ratio(track(lips(0.3 * TRUE)), truth) < 0.4
    assert amplitude_ratio(track(lips(1.8 * TRUE)), truth) > 1.5


def test_lips_that_never_meet_miss_the_closures() -> None:
    truth = track(lips(TRUE))
    found = closures(track(lips(0.05 + 0.7 * TRUE)), truth, ALWAYS)
    assert found.recall < 0.3


def test_closures_outside_speech_do_not_count() -> None:
    truth = track(lips(TRUE))
    found = closures(truth, truth, np.zeros(len(AT), np.bool_))
    assert found.events == 0
    assert np.isnan(found.recall)


def test_landmark_distance_tells_a_good_dub_from_a_frozen_and_a_jittered_one() -> None:
    truth = lips(TRUE)
    good = float(np.nanmean(landmark_distances(lips(GOOD), truth, AT)))
    frozen = float(np.nanmean(landmark_distances(lips(np.full(len(TRUE), 0.05)), truth, AT)))
    late = float(np.nanmean(landmark_distances(lips(GOOD, 0.12), truth, AT)))
    shaken = lips(GOOD)
    jitter = np.random.default_rng(0).normal(0, 0.03, (len(TRUE), 1, 2))
    shaken = Lips(shaken.seconds, shaken.opening, shaken.shape + jitter, shaken.jaw)
    assert good < 0.7 * min(frozen, late)
    assert float(np.nanmean(landmark_distances(shaken, truth, AT))) > 2 * good


def test_a_lost_face_is_unknown_and_no_zero() -> None:
    dub = lips(TRUE)
    missing = dub.opening.copy()
    missing[50:100] = np.nan
    held = on_grid(dub.seconds, missing, AT)
    assert np.isnan(held[(AT > 2.2) & (AT < 3.8)]).all()
    assert np.isfinite(held[AT < 1.9]).all()
    near, _ = lagged(held, track(lips(TRUE)), NEAR_S)
    assert near > 0.99
    assert not shut(np.full(5, np.nan)).any()
    assert np.isnan(on_grid(dub.seconds, np.full(len(TRUE), np.nan), AT)).all()


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(-20, 20), gain=st.floats(0.2, 5), offset=st.floats(-1, 1))
def test_lag_is_found_whatever_gain_and_offset(steps: int, gain: float, offset: float) -> None:
    rng = np.random.default_rng(5)
    wave = np.convolve(rng.normal(size=600), np.ones(5) / 5, mode="same")
    moved = gain * np.roll(wave, steps) + offset
    r, lag = lagged(moved, wave, FAR_S)
    assert r > 0.95
    assert round(lag * 50) == steps
