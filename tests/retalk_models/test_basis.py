"""The lip-and-jaw basis: coefficient 0 is the opening, projection undoes application."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retalk_models.face.geometry import aperture, lower_face_weights, template
from retalk_models.talkin.basis import WEIGHTS_FILE, ExpressionBasis

BASIS = ExpressionBasis.load()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-2, 2, width=32), min_size=BASIS.size, max_size=BASIS.size))
def test_projection_undoes_application(values: list[float]) -> None:
    expression = np.array(values, np.float32)
    assert np.abs(BASIS.project(BASIS.apply(expression)) - expression).max() < 2e-3


def test_coefficient_zero_is_the_aperture_and_nothing_else_is() -> None:
    shut = aperture(template())
    for index in range(BASIS.size):
        expression = np.zeros(BASIS.size, np.float32)
        expression[index] = 0.3
        gap = aperture(template() + BASIS.apply(expression)) - shut
        assert gap == pytest.approx(0.3 if index == 0 else 0.0, abs=1e-3)


def test_zero_is_neutral_and_the_upper_face_never_moves() -> None:
    assert (BASIS.apply(np.zeros(BASIS.size, np.float32)) == 0).all()
    still = lower_face_weights() == 0
    assert np.abs(BASIS.vectors[:, still]).max() < 1e-6


def test_batches_equal_singles() -> None:
    rng = np.random.default_rng(0)
    many = rng.normal(size=(5, BASIS.size)).astype(np.float32)
    offsets = BASIS.apply(many)
    assert np.allclose(offsets[3], BASIS.apply(many[3]), atol=1e-6)
    assert np.allclose(BASIS.project(offsets)[3], BASIS.project(offsets[3]), atol=1e-4)


def test_the_bundled_file_is_small() -> None:
    import retalk_models

    bundled = Path(retalk_models.__file__).parent / "weights" / WEIGHTS_FILE
    assert bundled.stat().st_size < 1_000_000


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="a basis needs vectors"):
        ExpressionBasis(np.zeros((3, 10, 3), np.float32), np.zeros((3, 30), np.float32))
