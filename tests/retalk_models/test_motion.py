"""What a mouth's motion takes from a picture of it."""

from __future__ import annotations

import numpy as np
import pytest

from retalk_models.face.geometry import ObservedFace, template
from retalk_models.talkin.motion import MouthMotion
from tests.retalk_models import faces

STEP_S = 0.04


def seen(opening: float = 0.0, x: float = 320.0) -> ObservedFace:
    at = faces.pose(x=x)
    return ObservedFace(faces.points(opening, at), at, template(), opening)


def test_a_mouth_at_rest_is_not_blurred_nor_is_the_first_that_is_seen() -> None:
    motion = MouthMotion()
    assert [motion.blur(seen(0.1), STEP_S) for _ in range(3)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("after", [seen(0.05), seen(x=323.6)])
def test_lips_that_part_and_heads_that_turn_blur_by_their_speed(after: ObservedFace) -> None:
    """Half of the speed at which all is lost: .05 units of opening, or .03 of way, in a frame."""
    motion = MouthMotion()
    motion.blur(seen(), STEP_S)
    assert motion.blur(after, STEP_S) == pytest.approx(0.2, rel=0.02)
    assert motion.blur(after, STEP_S) == 0.0
    assert motion.blur(seen(), 2 * STEP_S) == pytest.approx(0.1, rel=0.02)


def test_no_motion_takes_more_than_all_and_none_is_known_without_time() -> None:
    motion = MouthMotion()
    motion.blur(seen(), STEP_S)
    assert motion.blur(seen(0.3, x=400.0), STEP_S) == pytest.approx(0.4)
    assert motion.blur(seen(), 0.0) == 0.0
    assert np.isfinite(motion.blur(seen(0.3), 1e-9))
