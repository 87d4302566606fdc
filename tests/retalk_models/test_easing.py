"""Smooth steps stay within 0 and 1, and an average settles the same however its time is cut up."""

import numpy as np
import pytest

from retalk_models.easing import ease, ease_each, settled


def test_a_step_is_flat_at_both_ends_and_symmetric() -> None:
    assert (ease(-3), ease(0), ease(0.5), ease(1), ease(7)) == (0, 0, 0.5, 1, 1)
    assert ease(0.01) < 0.001
    assert ease(0.2) == pytest.approx(1 - ease(0.8))


def test_arrays_are_eased_value_by_value() -> None:
    values = np.linspace(-1, 2, 13, dtype=np.float32).reshape(13, 1)
    assert ease_each(values).dtype == np.float32
    assert ease_each(values) == pytest.approx(np.array([[ease(float(v))] for v in values[:, 0]]))


def test_two_half_steps_settle_as_far_as_a_whole_one() -> None:
    half, whole = settled(0.02, 0.3), settled(0.04, 0.3)
    assert half + (1 - half) * half == pytest.approx(whole)
    assert settled(0.3, 0.3) == pytest.approx(0.632, abs=1e-3)


def test_time_that_runs_back_settles_nothing() -> None:
    assert settled(-1.0, 0.3) == settled(0.0, 0.3) == 0.0
