"""The skin under a far open mouth lies under the lip, and nothing else moves."""

from __future__ import annotations

import numpy as np

from retalk_models.face import geometry
from retalk_models.face.unfold import unfolded
from tests.retalk_models.faces import parted


def test_skin_under_a_wide_mouth_is_not_folded_over_the_lip() -> None:
    """Bug: a source whose mouth was far open was given a second lower lip, where the warp sampled skin."""
    folded = parted(0.2)
    below = [18, 83, 313, 182, 406]
    folded[below, 1] = folded[17, 1] - 0.05
    flat = unfolded(folded)
    edge = np.interp(flat[below, 0], folded[[146, 17, 375], 0], folded[[146, 17, 375], 1])
    assert (flat[below, 1] > edge).all()
    down = flat[[17, 18, 200, 199, 175, 152], 1]
    assert (np.diff(down) > 0).all()
    others = np.setdiff1d(np.arange(geometry.POINTS), np.flatnonzero((flat != folded).any(axis=1)))
    assert {*geometry.OUTER_LIPS, *geometry.INNER_LIPS, *geometry.FACE_OVAL} <= set(others.tolist())
    assert np.array_equal(flat[:, [0, 2]], folded[:, [0, 2]])


def test_a_mouth_at_rest_has_nothing_to_unfold() -> None:
    for opening in (0.0, 0.05, 0.1):
        assert np.abs(unfolded(parted(opening)) - parted(opening)).max() < 1e-6
