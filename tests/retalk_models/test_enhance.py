"""The enhancement stage: what it may change, what it leaves, and what it remembers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from time import sleep

import cv2
import numpy as np
import pytest
import torch

from retalk_models.engine import EngineOptions, EngineOutput, Rung
from retalk_models.face.geometry import INNER_LIPS, OUTER_LIPS, ObservedFace, template
from retalk_models.face.tracker import FaceTracker
from retalk_models.face.warp import WarpField, warp_field
from retalk_models.picture import F32, Picture
from retalk_models.talkin import views as room
from retalk_models.talkin.engine import TalkinEngine
from retalk_models.talkin.enhance import Enhancement, NetRenderer, hold_to_one_thread
from retalk_models.talkin.mouth_crop import SIDE
from retalk_models.talkin.stage_cost import milliseconds
from retalk_models.talkin.target import TargetFace, TargetGeometry
from retalk_models.talkin.views import PersonViews, View, take_view
from tests.retalk_models import faces

GREY = Picture(np.full((720, 640), 100, np.uint8), 640, 480)
LEVELS = 30
WIDE = 0.12


@dataclass
class ToldRenderer:
    """Says the same of every crop: how much of the second warp, and what to add to the luma."""

    share: float = 0.0
    added: float = LEVELS
    seen: list[F32] = field(default_factory=list)

    def __call__(self, values: F32) -> tuple[F32, F32]:
        self.seen.append(values)
        change = np.zeros((len(values), 3, SIDE, SIDE), np.float32)
        change[:, 0] = self.added
        return np.full((len(values), SIDE, SIDE), self.share, np.float32), change


def observed(opening: float = 0.0, x: float = 320.0) -> ObservedFace:
    at = faces.pose(x=x)
    return ObservedFace(faces.points(opening, at), at, template(), opening)


def moved(face: ObservedFace, opening: float) -> TargetFace:
    """This face with its lips so far apart."""
    points = faces.points(opening, face.pose)
    own, there = np.ascontiguousarray(face.points[:, :2]), np.ascontiguousarray(points[:, :2])
    return TargetFace(own, there, np.ascontiguousarray(points[:, 2]), face.pose, opening, 0.0)


def field_of(target: TargetFace) -> WarpField:
    found = warp_field(target.source, target.target, target.depth, (640, 480), feather=12.0)
    assert found is not None
    return found


def enhanced(
    renderer: ToldRenderer, opening: float, before: float = 0.0
) -> tuple[Picture, Picture, TargetFace]:
    """A frame, what became of it, and the target: lips `before` apart are moved to `opening`."""
    picture = faces.noise()
    face = observed(before)
    target = moved(face, opening)
    dubbed = picture.copy()
    Enhancement(renderer)(picture, dubbed, face, target, template(), field_of(target), 1.0)
    return picture, dubbed, target


def inside_lips(target: TargetFace) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    mask = np.zeros((480, 640), np.uint8)
    cv2.fillPoly(mask, [np.round(target.target[list(INNER_LIPS)]).astype(np.int32)], 1)
    return mask


def test_a_net_that_says_nothing_changes_nothing() -> None:
    picture, dubbed, _ = enhanced(ToldRenderer(added=0.0), WIDE)
    assert np.array_equal(dubbed.planes, picture.planes)


def test_what_the_net_adds_stays_within_the_warps_own_box() -> None:
    picture, dubbed, target = enhanced(ToldRenderer(), WIDE)
    differs = dubbed.y != picture.y
    assert differs.any()
    box = field_of(target).box
    differs[box.top : box.bottom, box.left : box.right] = False
    assert not differs.any()
    assert np.array_equal(dubbed.u, picture.u)


@pytest.mark.parametrize(("said", "least", "most"), [(0.0, 0, 0), (0.3, 0, 0), (0.7, 50, 60), (1.0, 50, 60)])
def test_lips_are_one_picture_s_and_not_a_mean_of_two(said: float, least: int, most: int) -> None:
    """Bug: where the net all but chose, the other picture still took the lips' grain away."""
    stage = Enhancement(ToldRenderer(share=said, added=0.0))
    stage.observe(Picture(np.full((720, 640), 200, np.uint8), 640, 480), observed(WIDE), template(), 0.04)
    face, dubbed = observed(), GREY.copy()
    target = moved(face, WIDE)
    stage(GREY, dubbed, face, target, template(), field_of(target), 1.0)
    x, y = target.target[[14, 17]].mean(axis=0).round().astype(int)
    # Of the 100 levels between them the view is brought 40 nearer in tone.
    assert least <= int(dubbed.y[y, x]) - 100 <= most


def test_the_inside_of_a_wide_mouth_is_not_fogged() -> None:
    picture, dubbed, target = enhanced(ToldRenderer(), WIDE)
    inside = cv2.erode(inside_lips(target), np.ones((3, 3), np.uint8)) > 0
    assert inside.sum() > 50
    added = dubbed.y.astype(int) - picture.y
    assert np.abs(added[inside]).max() <= 0.15 * LEVELS
    lips = target.target[[0, 17]].round().astype(int)
    assert all(added[y, x] >= 0.7 * LEVELS for x, y in lips if picture.y[y, x] < 255 - LEVELS)


def test_between_lips_that_hardly_part_the_net_draws() -> None:
    picture, dubbed, target = enhanced(ToldRenderer(), 0.025, before=WIDE)
    middle = target.target[[13, 14]].mean(axis=0).round().astype(int)
    assert int(dubbed.y[middle[1], middle[0]]) - int(picture.y[middle[1], middle[0]]) >= 0.7 * LEVELS or (
        picture.y[middle[1], middle[0]] > 255 - LEVELS
    )


@pytest.mark.parametrize(
    ("held", "opening", "least", "most"), [(0.0, 0.0, 50, 60), (0.02, 0.0, 0, 30), (WIDE, 0.025, 0, 10)]
)
def test_lips_that_all_but_meet_are_not_filled_from_farther_open_ones(
    held: float, opening: float, least: int, most: int
) -> None:
    """Bug: a grin's teeth, squeezed into a slit, were white dots; lips not quite shut left a black notch."""
    white = Picture(np.full((720, 640), 200, np.uint8), 640, 480)
    stage = Enhancement(ToldRenderer(share=1.0, added=0.0))
    stage.observe(white, observed(held), template(), 0.04)
    face = observed(WIDE)
    # From farther apart: on the way the view is of the kind that they come from.
    for apart in (0.05, opening):
        target, dubbed = moved(face, apart), GREY.copy()
        stage(GREY, dubbed, face, target, template(), field_of(target), 1.0)
    x, y = target.target[[13, 14]].mean(axis=0).round().astype(int)
    # Of the 100 levels between them the view is brought 40 nearer in tone.
    assert least <= int(dubbed.y[y, x]) - 100 <= most


def test_a_mouth_that_need_not_move_is_left_alone() -> None:
    renderer = ToldRenderer()
    face = observed(0.05)
    still, there = moved(face, 0.05), moved(face, WIDE)
    picture = faces.noise()
    dubbed = picture.copy()
    Enhancement(renderer)(picture, dubbed, face, still, template(), field_of(there), 1.0)
    assert np.array_equal(dubbed.planes, picture.planes)
    assert not renderer.seen


def test_strength_scales_what_is_added() -> None:
    picture = GREY
    face = observed()
    target = moved(face, WIDE)
    most = []
    for strength in (0.0, 0.5, 1.0):
        dubbed = picture.copy()
        Enhancement(ToldRenderer())(picture, dubbed, face, target, template(), field_of(target), strength)
        most.append(int(dubbed.y.max()) - 100)
    assert most[0] == 0
    assert abs(most[1] - LEVELS / 2) <= 1
    assert abs(most[2] - LEVELS) <= 1


def test_lips_that_stand_still_do_not_flicker_and_a_pause_forgets() -> None:
    picture = GREY
    face = observed()
    target = moved(face, WIDE)
    renderer = ToldRenderer()
    stage = Enhancement(renderer)
    most = []
    for added in (40, 0, 0):
        renderer.added = added
        dubbed = picture.copy()
        stage(picture, dubbed, face, target, template(), field_of(target), 1.0)
        most.append(int(dubbed.y.max()) - 100)
    assert most[0] > most[1] > most[2] > 0
    stage.pause()
    dubbed = picture.copy()
    stage(picture, dubbed, face, target, template(), field_of(target), 1.0)
    assert np.array_equal(dubbed.planes, picture.planes)


def test_the_second_warp_comes_from_a_view_of_the_person_at_the_frames_own_detail() -> None:
    held = faces.noise(seed=1)
    face = observed(WIDE)
    stage = Enhancement(ToldRenderer(share=1.0, added=0.0))
    stage.observe(held, face, template(), 0.04)
    picture = GREY
    shut = observed()
    target = moved(shut, WIDE)
    dubbed = picture.copy()
    stage(picture, dubbed, shut, target, template(), field_of(target), 1.0)
    x, y = target.target[17].round().astype(int)
    part = (slice(y - 4, y + 5), slice(x - 8, x + 9))
    shown, kept = dubbed.y[part].astype(float), held.y[part].astype(float)
    assert shown.std() > 0.5 * kept.std()


@pytest.mark.parametrize("rung", [Rung.NO_ENHANCEMENT, Rung.HALF_RATE])
def test_without_enhancement_a_frame_is_the_warp_alone(rung: Rung) -> None:
    wave = np.full(400, WIDE, np.float32)
    pictures = [faces.portrait(x=i) for i in range(6)]
    results: list[list[EngineOutput]] = []
    for renderer in (None, ToldRenderer()):
        engine = TalkinEngine(faces.ToldSpeech(wave), faces.BASIS, {}, renderer)
        session = engine.open_session(EngineOptions())
        results.append(faces.dub(session, faces.frames(pictures), rung=rung))
        session.close()
    for alone, other in zip(*results, strict=True):
        assert np.array_equal(alone.picture.planes, other.picture.planes)


def test_the_bundled_net_has_a_say_at_full_quality_and_only_within_the_region() -> None:
    wave = np.full(400, 0.02, np.float32)
    pictures = [faces.portrait(x=i) for i in range(8)]
    results: list[list[EngineOutput]] = []
    for renderer in (None, NetRenderer()):
        engine = TalkinEngine(faces.ToldSpeech(wave), faces.BASIS, {}, renderer)
        session = engine.open_session(EngineOptions())
        results.append(faces.dub(session, faces.frames(pictures)))
        session.close()
    alone, other = results[0][-1], results[1][-1]
    assert other.region is not None
    differs = alone.picture.y != other.picture.y
    assert differs.any()
    box = other.region
    differs[box.top : box.bottom, box.left : box.right] = False
    assert not differs.any()


@pytest.mark.parametrize(
    ("live", "patient", "drawn"), [(True, False, 1), (False, True, 1), (False, False, 0)]
)
def test_where_the_net_is_slow_it_draws_only_for_those_who_wait(
    live: bool, patient: bool, drawn: int
) -> None:
    renderer = ToldRenderer()
    engine = TalkinEngine(
        faces.ToldSpeech(np.full(400, WIDE, np.float32)), faces.BASIS, {}, renderer, live=live
    )
    session = engine.open_session(EngineOptions(patient=patient))
    faces.dub(session, faces.frames([faces.portrait(x=i) for i in range(4)]))
    session.close()
    assert bool(renderer.seen) == bool(drawn)


def test_what_decides_about_live_is_the_time_of_the_whole_stage() -> None:
    def slow(values: F32) -> tuple[F32, F32]:
        sleep(0.02)
        return told(values)

    told = ToldRenderer()
    assert 0.1 < milliseconds(told, faces.BASIS) < 2000
    assert len(told.seen) > 1
    first, second = told.seen[0][..., 3:6], told.seen[0][..., 6:9]
    assert first.shape == second.shape
    assert milliseconds(slow, faces.BASIS) > milliseconds(told, faces.BASIS) + 10


def test_making_a_renderer_leaves_the_process_its_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        NetRenderer()
        assert torch.get_num_threads() == 2
        hold_to_one_thread()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


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


def test_lips_with_a_black_slit_between_them_are_not_shut_however_they_are_tracked() -> None:
    views = PersonViews()
    face = observed(0.001)
    row = round(float(face.points[[13, 14], 1].mean()))
    left, right = (round(float(face.points[corner, 0])) for corner in (78, 308))
    parted = GREY.copy()
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

    def seen(red: int) -> float:
        picture = GREY.copy()
        picture.v[:] = 160
        picture.y[row - 2 : row + 2, left:right] = 190
        picture.v[row // 2 - 1 : row // 2 + 1, left // 2 : right // 2] = red
        view = take_view(picture, face, template())
        assert view is not None
        return view.opening * face.pose.scale

    assert 0.5 * 4 < seen(128) < 1.4 * 4, "four rows are teeth"
    assert seen(152) == pytest.approx(0.001 * face.pose.scale)


def test_lips_that_only_nearly_meet_serve_no_shut_ones() -> None:
    """Bug: of whom nobody had seen them shut, shut lips were drawn from such, slit, teeth and all."""
    views = PersonViews()
    views.observe(GREY, observed(0.018), template(), 1.0)
    assert views.choose(observed().pose, 0.0) is None
    views.observe(GREY, observed(0.01), template(), 1.0)
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
