"""Presence: states with hysteresis, and a strength that never jumps except to zero at a cut."""

from __future__ import annotations

import numpy as np
import pytest

from retalk_models.engine import FaceState
from retalk_models.face.geometry import Pose
from retalk_models.face.presence import FADE_S, Presence, Reading
from retalk_models.face.tracker import TrackedFace
from retalk_models.picture import Box, Picture
from tests.retalk_models.faces import points, pose

SIZE = (640, 480)
STEP = 0.04
VIEW = Picture(np.full((48, 32), 128, np.uint8), 32, 32)


def face(at: Pose) -> TrackedFace:
    return TrackedFace(points(0.0, at), VIEW, Box(0, 0, 640, 480))


def see(presence: Presence, at: Pose | None, hidden: float = 0.0, new_face: bool = False) -> Reading:
    found = None if at is None else face(at)
    return presence.update(found, at, hidden, SIZE, STEP, new_face)


def test_a_face_fades_in_over_four_frames_and_out_over_four() -> None:
    presence = Presence()
    rising = [see(presence, pose()).strength for _ in range(6)]
    falling = [see(presence, None).strength for _ in range(6)]
    assert rising[3] == rising[5] == 1.0
    assert falling[3] == falling[5] == 0.0
    assert rising == sorted(rising)
    assert max(np.diff([0.0, *rising])) < 0.5
    assert abs(FADE_S - 4 * STEP) < 1e-9


def test_who_is_awaited_is_dubbed_from_the_first_picture_on() -> None:
    presence = Presence(awaited=True)
    assert see(presence, pose()).strength == 1.0
    assert see(presence, pose(), new_face=True).strength < 0.2


@pytest.mark.parametrize("shown", ["nobody", "a profile", "unseen"])
def test_who_comes_only_later_fades_in_though_awaited(shown: str) -> None:
    presence = Presence(awaited=True)
    if shown == "unseen":
        presence.drop()
    else:
        see(presence, pose(yaw=1.0) if shown == "a profile" else None)
    assert see(presence, pose()).strength < 0.2


def test_a_new_face_drops_the_dub_at_once() -> None:
    presence = Presence()
    for _ in range(6):
        see(presence, pose())
    reading = see(presence, pose(), new_face=True)
    assert reading.strength < 0.2
    assert reading.new_face


@pytest.mark.parametrize(
    ("at", "hidden", "state"),
    [
        (pose(), 0.0, FaceState.TRACKED),
        (pose(scale=25.0), 0.0, FaceState.SMALL),
        (pose(yaw=1.0), 0.0, FaceState.PROFILE),
        (pose(yaw=-1.0), 0.0, FaceState.PROFILE),
        (pose(x=20.0), 0.0, FaceState.EDGE),
        (pose(y=420.0), 0.0, FaceState.EDGE),
        (pose(), 0.45, FaceState.TRACKED),
        (pose(), 0.55, FaceState.OCCLUDED),
        (None, 0.0, FaceState.NONE),
    ],
)
def test_states(at: Pose | None, hidden: float, state: FaceState) -> None:
    assert see(Presence(), at, hidden).state is state


def test_states_have_hysteresis() -> None:
    presence = Presence()
    assert see(presence, pose(yaw=np.radians(46))).state is FaceState.TRACKED
    assert see(presence, pose(yaw=np.radians(50))).state is FaceState.PROFILE
    assert see(presence, pose(yaw=np.radians(46))).state is FaceState.PROFILE
    assert see(presence, pose(yaw=np.radians(38))).state is FaceState.TRACKED
    assert see(presence, pose(), hidden=0.55).state is FaceState.OCCLUDED
    assert see(presence, pose(), hidden=0.4).state is FaceState.OCCLUDED
    assert see(presence, pose(), hidden=0.3).state is FaceState.TRACKED


def test_a_face_that_leaps_is_another_face() -> None:
    presence = Presence()
    assert not presence.jumped(face(pose()))
    assert not presence.jumped(face(pose(x=330.0)))
    assert presence.jumped(face(pose(x=60.0)))
    assert presence.jumped(face(pose(x=60.0, scale=30.0)))
