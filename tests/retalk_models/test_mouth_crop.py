"""Crops of the mouth: where they lie, what they show, and what may be changed in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retalk_models.face.geometry import INNER_LIPS, OUTER_LIPS, Pose, template
from retalk_models.face.warp import warp_field
from retalk_models.picture import F32, Picture
from retalk_models.talkin.mouth_crop import (
    SIDE,
    MouthCrop,
    crop_of,
    cut_crop,
    cut_plane,
    field_places,
    halved,
    lips_mask,
    lips_reach,
    look,
    net_input,
    outlines,
    reach_mask,
    tone_shift,
    warp_places,
)
from retalk_models.talkin.render_samples import ClipSampler, inputs, stacked
from tests.retalk_models import crops, faces


def tilted(angle: float = 0.4, scale: float = 150.0) -> Pose:
    c, s = np.cos(angle), np.sin(angle)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)
    return Pose(rotation, np.array([310, 205, 0], np.float32), scale)


def placed(opening: float = 0.0, at: Pose | None = None) -> tuple[MouthCrop, F32, F32]:
    """A crop, a face's points in it, and their depth."""
    pose = at or faces.pose()
    crop, points = crop_of(pose, template()), faces.points(opening, pose)
    return crop, crop.to_crop(points[:, :2]), points[:, 2] / np.float32(crop.scale)


def test_there_and_back_is_where_it_was() -> None:
    crop, points, _ = placed(0.1, tilted())
    assert np.abs(crop.to_crop(crop.to_frame(points)) - points).max() < 1e-3
    inverse = crop.inverse()
    whole = np.vstack([crop.matrix, [0, 0, 1]]) @ np.vstack([inverse, [0, 0, 1]])
    assert np.abs(whole - np.eye(3)).max() < 1e-4


@pytest.mark.parametrize("angle", [0.0, 0.6, -1.2])
def test_a_crop_is_upright_centred_and_as_large_as_the_face(angle: float) -> None:
    crop, points, _ = placed(0.0, tilted(angle))
    left, right = points[61], points[291]
    assert abs(float(left[1] - right[1])) < 0.5
    assert right[0] > left[0]
    assert abs(float(points[list(OUTER_LIPS), 0].mean()) - (SIDE - 1) / 2) < 0.5
    assert points[152, 1] > points[17, 1] > points[0, 1]
    assert crop.scale == pytest.approx(150 * 1.2 / SIDE, rel=1e-4)


def test_speech_moves_the_lips_through_the_crop_and_not_the_crop() -> None:
    shut, wide = placed(0.0), placed(0.12)
    assert np.array_equal(shut[0].matrix, wide[0].matrix)
    assert wide[1][17, 1] > shut[1][17, 1] + 2


@pytest.mark.parametrize("scale", [50.0, 120.0, 220.0, 480.0])
def test_luma_and_chroma_of_a_spot_lie_where_it_is(scale: float) -> None:
    width, height = 1600, 1200
    crop = crop_of(replace(tilted(0.3, scale), translation=np.array([820, 310, 0], np.float32)), template())
    spot = crop.to_frame(np.array([40.0, 55.0], np.float32))
    picture = Picture(np.empty((height * 3 // 2, width), np.uint8), width, height)
    spread = 5 * max(1.0, crop.scale)
    # A chroma sample lies between its four luma samples.
    for plane, step, shift in ((picture.y, 1, 0.0), (picture.u, 2, 0.5), (picture.v, 2, 0.5)):
        down, across = (step * np.arange(size) + shift for size in plane.shape)
        away = (across[None] - spot[0]) ** 2 + (down[:, None] - spot[1]) ** 2
        plane[...] = np.round(200 * np.exp(-away / (2 * spread**2)))
    shown = cut_crop(picture, crop).astype(np.float64)
    weight = shown.sum(axis=(0, 1))
    columns, rows = np.arange(SIDE)[None, :, None], np.arange(SIDE)[:, None, None]
    assert np.abs((shown * columns).sum(axis=(0, 1)) / weight - 40).max() < 0.1
    assert np.abs((shown * rows).sum(axis=(0, 1)) / weight - 55).max() < 0.1


def test_halved_is_the_same_place_in_samples_of_the_chroma() -> None:
    matrix = crop_of(tilted(), template()).matrix
    luma = matrix[:, :2] @ np.array([10, 20], np.float32) + matrix[:, 2]
    half = halved(matrix)
    chroma = half[:, :2] @ np.array([10, 20], np.float32) + half[:, 2]
    assert np.allclose(2 * chroma + 0.5, luma, atol=1e-4)


def test_a_crop_beyond_the_frame_repeats_its_edge() -> None:
    plane = np.full((100, 100), 77, np.uint8)
    for x in (-500.0, 60.0, 500.0):
        matrix = np.array([[3.0, 0, x], [0, 3.0, 10]], np.float32)
        assert (cut_plane(plane, matrix, SIDE) == 77).all()


def test_the_reach_is_nothing_at_the_border_and_covers_both_chins() -> None:
    _, shut, _ = placed(0.0)
    for other in (placed(0.16)[1], shut + np.array([0, 12], np.float32)):
        for source, target in ((shut, other), (other, shut)):
            reach = reach_mask(source, target)
            assert reach.min() >= 0
            assert reach.max() <= 1
            border = np.concatenate([reach[0], reach[-1], reach[:, 0], reach[:, -1]])
            assert not border.any()
            for points in (source, target):
                mouth = np.round(points[list(INNER_LIPS)]).astype(int)
                assert reach[mouth[:, 1], mouth[:, 0]].min() > 0.95
                x, y = np.round(points[152]).astype(int)
                assert reach[min(y, SIDE - 8), x] > 0.4


def test_the_reach_has_no_step_that_shows_as_a_seam() -> None:
    reach = reach_mask(placed(0.0)[1], placed(0.16)[1])
    assert max(float(np.abs(np.diff(reach, axis=axis)).max()) for axis in (0, 1)) < 0.2


def test_the_net_shows_on_the_lips_and_leaves_the_skin() -> None:
    _, points, _ = placed(0.1)
    shown = lips_reach(points)
    for ring in (OUTER_LIPS, INNER_LIPS):
        x, y = np.round(points[list(ring)]).astype(int).T
        assert shown[y, x].min() > 0.9
    for index in (152, 205, 425, 2):
        x, y = np.clip(np.round(points[index]).astype(int), 0, SIDE - 1)
        assert shown[y, x] == 0
    assert max(float(np.abs(np.diff(shown, axis=axis)).max()) for axis in (0, 1)) < 0.3


def test_equal_points_are_no_warp() -> None:
    _, points, depth = placed(0.05)
    columns, rows = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    assert np.abs(warp_places(points, points, depth) - np.stack([columns, rows], axis=-1)).max() < 0.05


def test_a_warp_looks_where_the_reference_has_its_lips() -> None:
    _, shut, depth = placed(0.0)
    _, wide, _ = placed(0.1)
    places = warp_places(shut, wide, depth)
    for index in (17, 84, 314):
        x, y = np.round(wide[index]).astype(int)
        assert np.linalg.norm(places[y, x] - shut[index]) < 1.5
    ramp = np.repeat(np.arange(SIDE, dtype=np.uint8)[:, None], SIDE, 1)
    seen = look(np.stack([ramp] * 3, axis=-1), places)
    x, y = np.round(wide[17]).astype(int)
    assert abs(int(seen[y, x, 0]) - float(shut[17, 1])) < 2


def test_the_frames_own_warp_tells_where_a_reference_has_its_lips() -> None:
    crop, parted, _ = placed(0.06)
    reference, shut = placed(0.12)[1] + np.float32(3), faces.points(0.0, faces.pose())
    target = faces.points(0.06, faces.pose())
    field = warp_field(shut[:, :2], target[:, :2], target[:, 2], (640, 480), feather=8.0)
    assert field is not None
    places = field_places(field, crop, reference)
    depth = target[:, 2] / np.float32(crop.scale)
    whole = warp_places(reference, parted, depth)
    inner = reach_mask(parted, parted) > 0.9
    assert np.quantile(np.abs(places - whole)[inner], 0.99) < 0.7
    for index in (0, 17, 61, 84, 291, 314):
        x, y = np.round(parted[index]).astype(int)
        assert np.linalg.norm(places[y, x] - reference[index]) < 1.5
    assert (places[0, 0] == 0).all(), "the corner of the crop is not the mouth's"


def test_a_constant_shift_of_tone_is_found() -> None:
    _, points, _ = placed()
    reach = reach_mask(points, points)
    first = np.random.default_rng(0).integers(80, 150, (SIDE, SIDE, 3)).astype(np.uint8)
    shift = np.array([12, -5, 7])
    second = (first.astype(int) - shift).astype(np.uint8)
    # A mouth that differs is no tone.
    second[reach > 0.9] = 20
    assert np.allclose(tone_shift(first, second, reach), shift)
    assert not tone_shift(first, second, np.zeros_like(reach)).any()
    far = np.zeros_like(first)
    assert np.abs(tone_shift(np.full_like(first, 255), far, reach)).max() == 40


def test_outlines_and_the_lips_mask_cover_their_points() -> None:
    _, points, _ = placed(0.1)
    drawn = outlines(points)
    middle = np.round(points[[13, 14]].mean(axis=0)).astype(int)
    assert (drawn[middle[1], middle[0]] == 255).all()
    lower = np.round(points[[14, 17]].mean(axis=0)).astype(int)
    assert list(drawn[lower[1], lower[0]]) == [255, 0, 255]
    mask = lips_mask(points)
    assert (mask[drawn[..., 0] > 0] == 1).all()
    assert mask.mean() < 0.5


def test_live_frames_and_training_frames_reach_the_net_alike() -> None:
    rng = np.random.default_rng(0)
    pair = None
    while pair is None:
        pair = ClipSampler(crops.clip()).pair(rng)
    sample = pair[0]
    trained = inputs(stacked([sample]))[0].transpose(1, 2, 0)
    reach = np.asarray(sample.reach, np.float32) / 255
    live = net_input(sample.context, sample.first, sample.second, sample.drawn, reach)
    assert np.abs(live - trained).max() < 1e-5
    assert not live[reach > 0.01, :3].any()
