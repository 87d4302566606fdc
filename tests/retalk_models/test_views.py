"""Views of the person that another view is drawn from: what is kept, and what serves which lips."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from retalk_models.face.geometry import OUTER_LIPS, ObservedFace, Pose, template
from retalk_models.face.tracker import FaceTracker
from retalk_models.picture import F32, Picture
from retalk_models.talkin import views as room
from retalk_models.talkin.target import TargetGeometry
from retalk_models.talkin.views import PersonViews, View, take_view
from tests.retalk_models import faces
from tests.retalk_models.faces import GREY, observed

WIDE = 0.12


def test_a_wide_target_is_drawn_from_a_wide_view() -> None:
    views = PersonViews()
    for opening in (0.06, 0.14):
        views.observe(faces.noise(), observed(opening), template(), 1.0)
    pose = observed().pose
    parted, wide = views.choose(pose, 0.06), views.choose(pose, 0.14)
    assert parted is not None
    assert wide is not None
    assert parted is not wide
    assert views.choose(pose, 0.085) is wide, "it does not swing around the edge"
    assert views.choose(pose, 0.06) is parted
    assert views.choose(pose, 0.085) is parted


def test_the_tightest_of_shut_lips_serve_shut_ones() -> None:
    views = PersonViews()
    for opening in (0.015, 0.001, 0.02):
        views.observe(GREY, observed(opening), template(), 1.0)
    shown = views.choose(observed().pose, 0.0)
    assert shown is not None
    assert shown.opening == 0.001


@pytest.mark.parametrize("red", [128, 160])
def test_lips_with_a_black_slit_between_them_are_not_shut_however_they_are_tracked(red: int) -> None:
    views = PersonViews()
    face = observed(0.001)
    row = round(float(face.points[[13, 14], 1].mean()))
    left, right = (round(float(face.points[corner, 0])) for corner in (78, 308))
    parted = GREY.copy()
    parted.v[:] = red
    parted.y[row - 1 : row + 2, left:right] = 16
    for picture, opening in ((parted, 0.001), (GREY, 0.008)):
        views.observe(picture, replace(face, opening=opening), template(), 1.0)
    shown = views.choose(face.pose, 0.0)
    assert shown is not None
    assert shown.opening == 0.008
    seen = take_view(parted, face, template())
    assert seen is not None
    assert 0.6 * 3 < seen.opening * face.pose.scale < 1.4 * 3, "three rows are black"


def test_teeth_between_lips_are_a_gap_and_gloss_on_them_is_none() -> None:
    face = observed(0.001)
    row = round(float(face.points[[13, 14], 1].mean())) // 2 * 2
    left, right = (round(float(face.points[corner, 0])) // 2 * 2 for corner in (78, 308))

    def seen(red: int, luma: int = 190) -> float:
        picture = GREY.copy()
        picture.v[:] = 160
        picture.y[row - 2 : row + 2, left:right] = luma
        picture.v[row // 2 - 1 : row // 2 + 1, left // 2 : right // 2] = red
        view = take_view(picture, face, template())
        assert view is not None
        return view.opening * face.pose.scale

    assert 0.5 * 4 < seen(128) < 1.4 * 4, "four rows are teeth"
    assert seen(152) == pytest.approx(0.001 * face.pose.scale)
    in_shade = [seen(128, 16 + round(share * 84)) for share in (0.4, 0.45, 0.5, 0.55, 0.6, 0.65)]
    assert min(in_shade) > 0.3 * 4, "teeth between lips that nearly meet are in their shadow"


def test_lips_that_only_nearly_meet_serve_no_shut_ones() -> None:
    """Bug: of whom nobody had seen them shut, shut lips were drawn from such, slit, teeth and all."""
    views = PersonViews()
    views.observe(GREY, observed(0.018), template(), 1.0)
    assert views.choose(observed().pose, 0.0) is None
    # At once: what they keep from being looked at may be the only lips that meet.
    views.observe(GREY, observed(0.01), template(), 0.04)
    assert views.choose(observed().pose, 0.0) is not None


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_shut_lips_are_drawn_from_lips_at_rest_not_from_lips_drawn_aside(order: tuple[int, int]) -> None:
    """Bug: the tightest were pressed and crooked ones, which melt where a mouth at rest is made of them."""
    resting = observed(0.0)
    aside = resting.shape.copy()
    aside[list(OUTER_LIPS), 0] += 0.06
    pair = (resting, GREY), (replace(resting, shape=aside), Picture(GREY.planes + np.uint8(9), 640, 480))
    views = PersonViews()
    for index in order:
        face, picture = pair[index]
        views.observe(picture, face, template(), 1.0)
    shown = views.choose(resting.pose, 0.0)
    assert shown is not None
    assert shown.picture.y[0, 0] == 100


@pytest.mark.parametrize("shade", ["upper lip", "one side", "all but black"])
def test_shade_on_lips_that_touch_is_no_gap(shade: str) -> None:
    face = observed(0.001)
    picture = GREY.copy()
    x, y = (round(float(value)) for value in face.points[[13, 14], :2].mean(axis=0))
    if shade == "upper lip":
        picture.y[:y] = 58
    elif shade == "one side":
        picture.y[:, :x] = 58
    else:
        picture.y[:] = 18
    seen = take_view(picture, face, template())
    assert seen is not None
    assert seen.opening < 0.004


def test_after_a_view_that_was_no_better_its_kind_rests_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[float] = []

    def counted(picture: Picture, face: ObservedFace, neutral: F32) -> View | None:
        cut.append(face.opening)
        return take_view(picture, face, neutral)

    monkeypatch.setattr(room, "take_view", counted)
    views = PersonViews()
    for opening in (0.0, 0.0, 0.0, 0.0, WIDE, 0.0, 0.0):
        views.observe(GREY, observed(opening), template(), 0.04)
    assert cut == [0.0, 0.0, WIDE, 0.0], "one is kept, one is no better, two are passed over"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_views_the_one_with_the_sharper_lips_is_kept(order: tuple[int, int]) -> None:
    """Bug: lips were drawn from whichever frame was open as far as serves most, sharp or not."""
    sharp = faces.portrait(640, 480, x=60, scale=1.0)
    blurred = Picture(np.asarray(cv2.GaussianBlur(sharp.planes, (0, 0), 2.0), np.uint8), 640, 480)
    views = PersonViews()
    found = FaceTracker().track(sharp)
    assert found is not None
    geometry = TargetGeometry(faces.BASIS)
    face = replace(geometry.observe(found.points, 0.04), opening=0.1)
    assert geometry.neutral is not None
    for index in order:
        views.observe((sharp, blurred)[index], face, geometry.neutral, 1.0)
    shown = views.choose(face.pose, 0.1)
    expected = take_view(sharp, face, geometry.neutral)
    assert shown is not None
    assert expected is not None
    assert np.array_equal(shown.picture.planes, expected.picture.planes)


def test_one_kind_of_open_view_serves_for_the_other() -> None:
    views = PersonViews()
    views.observe(faces.noise(), observed(0.14), template(), 1.0)
    assert views.choose(observed().pose, 0.05) is not None
    assert views.choose(observed().pose, 0.0) is None


def test_views_follow_the_aperture_and_do_not_swing_around_its_edge() -> None:
    views = PersonViews()
    shut, wide = observed(0.0), observed(WIDE)
    views.observe(faces.noise(), shut, template(), 0.04)
    views.observe(faces.noise(), replace(wide, opening=WIDE), template(), 1.0)
    at_rest = views.choose(shut.pose, 0.0)
    speaking = views.choose(shut.pose, WIDE)
    assert at_rest is not None
    assert speaking is not None
    assert at_rest is not speaking
    assert views.choose(shut.pose, 0.02) is speaking
    assert views.choose(shut.pose, 0.01) is at_rest
    assert views.choose(shut.pose, 0.02) is at_rest
    views.reset()
    assert views.choose(shut.pose, WIDE) is None


def test_no_view_is_taken_where_the_mouth_is_cut_off_by_the_frames_edge() -> None:
    assert take_view(faces.noise(), observed(), template()) is not None
    assert take_view(faces.noise(), observed(x=12.0), template()) is None


def test_a_head_turned_or_bowed_far_away_is_no_view() -> None:
    for yaw, pitch, taken in ((0.0, 0.0, True), (0.9, 0.0, False), (-0.9, 0.0, False), (0.0, 0.9, False)):
        views = PersonViews()
        face = observed(WIDE)
        c, s = np.cos(pitch), np.sin(pitch)
        bowed = np.array([[1, 0, 0], [0, c, -s], [0, s, c]], np.float32)
        at = Pose(faces.pose(yaw).rotation @ bowed, face.pose.translation, face.pose.scale)
        views.observe(GREY, replace(face, pose=at), template(), 1.0)
        assert (views.choose(face.pose, WIDE) is not None) is taken
