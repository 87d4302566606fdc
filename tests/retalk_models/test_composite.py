"""The composite changes the region and leaves every other sample as it came."""

from __future__ import annotations

import cv2
import numpy as np

from retalk_models.face.composite import Patch, composite, mix_patches
from retalk_models.face.geometry import INNER_LIPS
from retalk_models.face.warp import WarpField, warp_field
from retalk_models.picture import Box, Picture
from tests.retalk_models.faces import noise, points, pose

SIZE = (640, 480)


def lips_field(before: float, after: float) -> WarpField:
    source, target = points(before), points(after)
    found = warp_field(source[:, :2], target[:, :2], target[:, 2], SIZE, feather=16)
    assert found is not None
    return found


def outside(picture: Picture, box: Box) -> Picture:
    """The picture with the box zeroed in all planes."""
    copy = picture.copy()
    copy.y[box.top : box.bottom, box.left : box.right] = 0
    for plane in (copy.u, copy.v):
        plane[box.top // 2 : box.bottom // 2, box.left // 2 : box.right // 2] = 0
    return copy


def test_samples_outside_the_region_are_bit_equal() -> None:
    picture, field = noise(), lips_field(0.0, 0.15)
    result = composite(picture, field, None, 0.0)
    assert np.array_equal(outside(result, field.box).planes, outside(picture, field.box).planes)
    assert not np.array_equal(result.planes, picture.planes)


def test_the_input_is_not_written_to() -> None:
    picture = noise()
    before = picture.planes.copy()
    composite(picture, lips_field(0.0, 0.15), None, 1.0)
    assert np.array_equal(picture.planes, before)


def test_samples_inside_the_region_but_out_of_reach_are_bit_equal() -> None:
    picture, field = noise(), lips_field(0.0, 0.15)
    result = composite(picture, field, None, 0.0)
    box = field.box
    rows, columns = slice(box.top, box.top + 2), slice(box.left, box.right)
    assert np.array_equal(result.y[rows, columns], picture.y[rows, columns])


def test_a_shift_moves_luma_and_chroma_alike() -> None:
    grid = np.zeros((480 * 3 // 2, 640), np.uint8)
    picture = Picture(grid, 640, 480)
    picture.y[:] = np.arange(640) % 200 + 20
    picture.u[:] = np.arange(320) % 100 + 60
    picture.v[:] = 128
    box = Box(100, 100, 300, 300)
    shift = WarpField(
        box, (2.0, 2.0), np.full((100, 100, 2), 4.0, np.float32), np.ones((100, 100), np.float32)
    )
    result = composite(picture, shift, None, 0.0)
    assert np.array_equal(result.y[110:290, 110:170], picture.y[110:290, 114:174])
    assert np.abs(result.u[60:140, 60:140].astype(int) - picture.u[60:140, 62:142]).max() <= 1


def test_a_patch_lies_where_its_cover_says() -> None:
    picture, field = noise(), lips_field(0.0, 0.15)
    box = field.box
    spot = Box(box.left + 60, box.top + 60, box.left + 80, box.top + 70)
    full = np.ones((10, 20), np.float32)
    patch = Patch(spot, full * 200, np.full((5, 10, 2), 90, np.float32), full, full[:5, :10])
    laid = composite(picture, field, patch, 1.0)
    assert abs(int(laid.y[spot.top + 5, spot.left + 10]) - 200) <= 1
    assert abs(int(laid.u[spot.top // 2 + 2, spot.left // 2 + 5]) - 90) <= 1
    hidden = composite(picture, field, patch, 0.0)
    assert np.array_equal(hidden.planes, composite(picture, field, None, 0.0).planes)


def test_teeth_of_an_open_mouth_are_not_left_along_the_line_of_shut_lips() -> None:
    """On the grid alone the line between the lips was a stair of two-pixel steps with teeth in it."""
    at = pose(yaw=0.3)
    source, target = points(0.15, at), points(0.0, at)
    picture = Picture(np.full((480 * 3 // 2, 640), 60, np.uint8), 640, 480)
    inside = np.rint(source[list(INNER_LIPS), :2]).astype(np.int32)
    cv2.fillPoly(picture.y, [inside], 220)
    left = {}
    for close in ((), INNER_LIPS):
        field = warp_field(source[:, :2], target[:, :2], target[:, 2], SIZE, 16, close=close)
        assert field is not None
        assert (field.close is not None) == bool(close)
        shown = composite(picture, field, None, 0.0)
        left[len(close)] = float((shown.y.astype(float) - 60).sum() / 160)
    wide = float(np.ptp(target[list(INNER_LIPS), 0]))
    assert left[len(INNER_LIPS)] < 0.6 * left[0]
    assert left[len(INNER_LIPS)] < wide


def test_mixing_patches_is_their_weighted_mean() -> None:
    cover = np.ones((4, 4), np.float32)
    box = Box(0, 0, 4, 4)
    one = Patch(box, cover * 100, np.zeros((2, 2, 2), np.float32), cover, cover[:2, :2])
    two = Patch(box, cover * 200, np.ones((2, 2, 2), np.float32), cover, cover[:2, :2])
    mixed = mix_patches([(one, 0.25), (two, 0.75)])
    assert mixed is not None
    assert np.allclose(mixed.y, 175)
    assert np.allclose(mixed.uv, 0.75)
    assert mix_patches([]) is None
