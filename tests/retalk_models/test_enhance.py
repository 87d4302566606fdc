"""The enhancement stage: what it may change, what it leaves, and what it remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import sleep

import cv2
import numpy as np
import pytest
import torch

from retalk_models.engine import EngineOptions, EngineOutput, Rung
from retalk_models.face.geometry import INNER_LIPS, ObservedFace, template
from retalk_models.face.warp import WarpField, warp_field
from retalk_models.picture import F32, Picture
from retalk_models.talkin.engine import TalkinEngine
from retalk_models.talkin.enhance import Enhancement, NetRenderer, hold_to_one_thread
from retalk_models.talkin.mouth_crop import SIDE
from retalk_models.talkin.stage_cost import milliseconds
from retalk_models.talkin.target import TargetFace
from tests.retalk_models import faces
from tests.retalk_models.faces import GREY, observed

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
