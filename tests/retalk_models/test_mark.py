"""The visible mark: there, in its corner, on a copy, at every size."""

from __future__ import annotations

import numpy as np
import pytest

from retalk_models.mark import apply_mark
from retalk_models.picture import Picture
from tests.retalk_models.faces import noise


def grey(width: int, height: int) -> Picture:
    return Picture.from_rgb(np.full((height, width, 3), 128, np.uint8))


@pytest.mark.parametrize(
    ("width", "height"), [(64, 64), (224, 224), (640, 480), (641, 361), (1080, 1920), (1920, 1080)]
)
def test_it_lies_in_the_bottom_left_corner_and_only_there(width: int, height: int) -> None:
    picture = grey(width, height)
    before = picture.planes.copy()
    marked = apply_mark(picture)
    changed = np.argwhere(marked.y != picture.y)
    if min(width, height) >= 128:
        assert len(changed)
    if len(changed):
        assert changed[:, 0].min() > 0.7 * height
        assert changed[:, 0].max() < height
        assert changed[:, 1].max() < (0.6 if width >= 128 else 1.0) * width
    assert np.array_equal(picture.planes, before)


def test_letters_stand_out_from_their_plate() -> None:
    marked = apply_mark(grey(1280, 720))
    height = 720
    corner = marked.y[int(0.9 * height) :, : 1280 // 4].astype(int)
    assert corner.max() > 200
    assert corner.min() < 80


def test_it_is_a_function_of_the_picture_alone() -> None:
    picture = noise()
    assert np.array_equal(apply_mark(picture).planes, apply_mark(picture).planes)


@pytest.mark.parametrize(
    ("width", "height"), [(48, 64), (32, 32), (63, 1000), (1000, 20), (17, 33), (16, 16)]
)
def test_a_small_picture_carries_the_mark_too(width: int, height: int) -> None:
    picture = grey(width, height)
    marked = apply_mark(picture)
    changed = np.argwhere(marked.y != picture.y)
    assert len(changed) >= 4
    assert np.abs(marked.y.astype(int) - picture.y).max() > 40
    assert (changed.max(0) < (height, width)).all()


def test_the_smallest_pictures_do_not_break_it() -> None:
    for width in range(1, 20):
        for height in range(1, 20):
            apply_mark(grey(width, height))
