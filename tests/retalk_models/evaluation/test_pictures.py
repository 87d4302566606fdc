"""Pictures: an untouched film scores perfectly, each deliberately bad one badly where it is bad."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from retalk_models.evaluation.pictures import (
    SAME,
    PictureMeter,
    PictureScore,
    crop_unit,
    cut,
    likeness,
    psnr,
    ssim,
)
from retalk_models.evaluation.sheet import column, sheet
from retalk_models.picture import F32, Picture
from tests.retalk_models.evaluation.synthetic import Film, film

Change = Callable[[int, F32, F32], F32]
"""Index, luma and face points to another luma."""


@pytest.fixture(scope="module")
def source() -> Film:
    return film()


def measured(source: Film, change: Change) -> PictureScore:
    meter = PictureMeter(source.points)
    for index, (picture, points) in enumerate(zip(source.pictures, source.points, strict=True)):
        dub = picture.copy()
        luma = change(index, picture.y.astype(np.float32), points)
        dub.y[...] = np.clip(np.rint(luma), 0, 255).astype(np.uint8)
        meter.add(index, picture, dub)
    return meter.score()


def soft(points: F32, reach: float = 34.0) -> F32:
    """A round mask on the mouth, 1 in the middle, that fades to exactly 0."""
    x, y = points[[13, 14], :2].mean(0)
    rows, columns = np.mgrid[:256, :256]
    away = np.hypot(columns - x, rows - y) / reach
    return np.asarray(np.clip(2 - 2 * away, 0, 1), np.float32)


def test_the_source_itself_is_perfect(source: Film) -> None:
    found = measured(source, lambda index, luma, points: luma)
    assert found.frames == len(source.pictures)
    assert found.psnr == SAME
    assert found.ssim == pytest.approx(1)
    assert found.sharpness == pytest.approx(1)
    assert found.flicker == pytest.approx(1)
    assert found.lip_flicker == pytest.approx(1)
    assert np.isnan(found.seam)
    assert (found.outside_samples, found.outside_psnr, found.eyes) == (0, SAME, 0)


def test_a_blurred_mouth_is_found_out(source: Film) -> None:
    def blur(index: int, luma: F32, points: F32) -> F32:
        blurred = np.asarray(cv2.GaussianBlur(luma, (0, 0), 1.5), np.float32)
        return luma + soft(points, 60) * (blurred - luma)

    found = measured(source, blur)
    assert found.sharpness < 0.7
    assert found.ssim < 0.95
    assert found.psnr < 40


def test_a_jittered_mouth_is_found_out(source: Film) -> None:
    def jitter(index: int, luma: F32, points: F32) -> F32:
        move = np.array([[1, 0, 1.0 if index % 2 else -1.0], [0, 1, 0]], np.float32)
        moved: F32 = cv2.warpAffine(luma, move, (256, 256), borderMode=cv2.BORDER_REPLICATE)
        return luma + soft(points, 60) * (moved - luma)

    found = measured(source, jitter)
    assert found.flicker > 1.5
    assert found.lip_flicker > 1.05


def test_flickering_light_is_found_out(source: Film) -> None:
    found = measured(source, lambda index, luma, points: luma + (6 if index % 2 else -6) * soft(points, 60))
    assert found.flicker > 1.5


def test_a_frozen_patch_is_no_flicker_but_no_likeness_either(source: Film) -> None:
    first = source.pictures[0].y.astype(np.float32)
    found = measured(source, lambda index, luma, points: luma + soft(points, 60) * (first - luma))
    assert found.lip_flicker < 0.8
    assert found.psnr < 26


def test_a_hard_seam_is_told_from_a_soft_one(source: Film) -> None:
    def paste(index: int, luma: F32, points: F32) -> F32:
        return luma + 20 * (soft(points) > 0.01)

    hard = measured(source, paste)
    faded = measured(source, lambda index, luma, points: luma + 20 * soft(points, 50))
    assert hard.seam > 6
    assert faded.seam < 3


def test_change_outside_the_face_is_counted_to_the_sample(source: Film) -> None:
    def touch(index: int, luma: F32, points: F32) -> F32:
        out = luma.copy()
        out[0, :2] += 1
        return out

    found = measured(source, touch)
    assert found.outside_samples == 2 * len(source.pictures)
    assert 50 < found.outside_psnr < SAME


def test_changed_eyes_are_seen(source: Film) -> None:
    def shade(index: int, luma: F32, points: F32) -> F32:
        out = luma.copy()
        out[: int(points[1, 1])] += 5
        return out

    assert measured(source, shade).eyes == pytest.approx(5, abs=0.3)


def test_frames_without_a_face_are_left_out(source: Film) -> None:
    points = source.points.copy()
    points[5] = np.nan
    meter = PictureMeter(points)
    for index, picture in enumerate([*source.pictures, source.pictures[0]]):
        meter.add(index, picture, picture)
    assert meter.score().frames == len(source.pictures) - 1


def test_no_face_at_all_is_unknown_and_no_zero() -> None:
    meter = PictureMeter(np.full((3, 478, 3), np.nan, np.float32))
    found = meter.score()
    assert found.frames == 0
    assert np.isnan([found.psnr, found.sharpness, found.flicker]).all()


def test_flicker_names_the_worst_frame(source: Film) -> None:
    meter = PictureMeter(source.points)
    for index, picture in enumerate(source.pictures):
        dub = picture.copy()
        if index == 10:
            dub.y[120:200, 90:170] = np.clip(dub.y[120:200, 90:170].astype(int) + 40, 0, 255)
        meter.add(index, picture, dub)
    assert int(meter.frame_flicker.argmax()) in (9, 10, 11)


def test_likeness_does_not_mind_where_the_head_is(source: Film) -> None:
    picture, points = source.pictures[0], source.points[0]
    unit = crop_unit(source.points)
    moved = points + np.array([12, 6, 0], np.float32)
    shifted = picture.copy()
    shift = np.array([[1, 0, 12], [0, 1, 6]], np.float32)
    shifted.y[...] = cv2.warpAffine(picture.y, shift, (256, 256), borderMode=cv2.BORDER_REPLICATE)
    same, alike = likeness((shifted, moved), (picture, points), unit)
    other, _ = likeness((source.pictures[3], source.points[3]), (picture, points), unit)
    assert same > 45
    assert alike > 0.99
    assert other < same - 10


def test_psnr_and_ssim_are_what_they_are_defined_as() -> None:
    rng = np.random.default_rng(0)
    left = rng.uniform(50, 200, (64, 64)).astype(np.float32)
    mask = np.zeros((64, 64), np.bool_)
    mask[20:40, 20:40] = True
    right = left.copy()
    right[mask] += 5
    right[~mask] += 50
    assert psnr(left, right, mask) == pytest.approx(10 * np.log10(255**2 / 25), abs=1e-6)
    assert np.isnan(psnr(left, right, np.zeros_like(mask)))
    inside = np.zeros((64, 64), np.bool_)
    inside[32, 32] = True
    window = cv2.getGaussianKernel(11, 1.5) @ cv2.getGaussianKernel(11, 1.5).T
    near = (slice(27, 38), slice(27, 38))
    a, b = left[near].astype(np.float64), np.roll(left, 1)[near].astype(np.float64)
    ma, mb = (window * a).sum(), (window * b).sum()
    va, vb, ab = (
        (window * a * a).sum() - ma**2,
        (window * b * b).sum() - mb**2,
        (window * a * b).sum() - ma * mb,
    )
    want = (2 * ma * mb + 6.5025) * (2 * ab + 58.5225) / ((ma**2 + mb**2 + 6.5025) * (va + vb + 58.5225))
    assert ssim(left, np.roll(left, 1), inside) == pytest.approx(want, abs=1e-3)


def test_crop_is_upright_and_keeps_the_resolution(source: Film) -> None:
    points = source.points
    unit = crop_unit(points)
    assert unit == pytest.approx(80, rel=0.02)
    crop = cut(source.pictures[0], points[0], unit)
    assert crop.lips.any()
    assert (crop.mask | crop.lips).sum() == crop.mask.sum() > 1.5 * crop.lips.sum()


def test_contact_sheet_has_a_column_a_frame(source: Film) -> None:
    one = column(source.pictures[0], source.pictures[1], source.points[0], "0.00", 40)
    assert one.shape == (160, 40, 3)
    assert column(source.pictures[0], source.pictures[1], None, "", 40).max() == 0
    assert sheet([one] * 10).shape == (320, 320, 3)
    with pytest.raises(ValueError, match="at least one"):
        sheet([])
    assert isinstance(source.pictures[0], Picture)
