"""Crops, alignments and windows against the official code's, and what they promise beyond it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from retalk_models.picture import Box
from retalk_models.videoretalking.geometry import (
    ALIGNED,
    Alignment,
    FaceFrame,
    align,
    cut_aligned,
    face_frame,
    first_crop,
    five_points,
    semantic_row,
    semantic_window,
    square_from_quad,
    window_indices,
)

Golden = dict[str, NDArray[np.generic]]
Load = Callable[[str], Golden]


@pytest.fixture(scope="module")
def facts(golden: Load) -> Golden:
    return golden("helpers")


def numbers(facts: Golden, name: str) -> NDArray[np.float64]:
    return facts[name].astype(np.float64)


def upright(facts: Golden) -> NDArray[np.float64]:
    """The landmarks of the alignment's golden, y down in a picture of 256x256."""
    points = numbers(facts, "a3d_lm_flipped")
    points[:, 1] = 255 - points[:, 1]
    return points


def test_alignment(facts: Golden) -> None:
    want = numbers(facts, "a3d_trans")
    assert np.allclose(five_points(numbers(facts, "a3d_lm_flipped")), facts["a3d_5p"])
    got = align(upright(facts), numbers(facts, "a3d_lm3d"), 256, 256)
    assert np.allclose([got.width, got.height, got.scale, got.x, got.y], want, rtol=1e-9)


def test_all_68_standard_points_align_as_their_five() -> None:
    rng = np.random.default_rng(4)
    standard, landmarks = rng.normal(size=(68, 3)), rng.uniform(0, 256, size=(68, 2))
    whole, five = align(landmarks, standard, 256, 256), align(landmarks, five_points(standard), 256, 256)
    assert whole == five


def test_the_aligned_cut_puts_the_face_in_its_middle() -> None:
    picture = np.zeros((200, 300, 3), np.uint8)
    picture[60:70, 200:210] = 255
    # y counts upwards: the patch's middle is 65 down, 135 up.
    cut = cut_aligned(picture, Alignment(300, 200, 1.5, 205.0, 135.0))
    assert cut.shape == (ALIGNED, ALIGNED, 3)
    rows, columns = np.nonzero(cut[:, :, 0] > 127)
    assert abs(rows.mean() - ALIGNED / 2) < 1.5
    assert abs(columns.mean() - ALIGNED / 2) < 1.5


def test_what_lies_outside_the_picture_is_black() -> None:
    picture = np.full((100, 100, 3), 200, np.uint8)
    cut = cut_aligned(picture, Alignment(100, 100, 1.0, 0.0, 100.0))
    assert cut[0, 0, 0] == 0
    assert cut[150, 150, 0] == 200
    away = cut_aligned(picture, Alignment(100, 100, 1.0, 5000.0, 50.0))
    assert not away.any()


@pytest.mark.parametrize("frame", [0, 5, 39])
def test_semantic_windows(frame: int, facts: Golden) -> None:
    table = facts["sem_in"].astype(np.float32)
    indices = window_indices(frame, len(table))
    assert np.array_equal(indices, facts[f"sem_idx_{frame}"])
    rows = np.stack(
        [
            semantic_row(row[:257], Alignment(int(row[257]), int(row[258]), row[259], row[260], row[261]))
            for row in table[indices]
        ]
    )
    assert np.array_equal(semantic_window(rows), facts[f"sem_win_{frame}"])


def test_a_short_window_holds_its_last_row_and_takes_an_expression() -> None:
    rows = np.arange(14 * 73, dtype=np.float32).reshape(14, 73)
    template = -np.ones(64, np.float32)
    window = semantic_window(rows, template)
    assert window.shape == (73, 26)
    assert (window[:64] == -1).all()
    assert np.array_equal(window[64:, :14], rows[:, 64:].T)
    assert (window[64:, 14:] == rows[-1, 64:, None]).all()
    for wrong in (rows[:0], rows[:, :72], np.zeros((27, 73), np.float32)):
        with pytest.raises(ValueError, match=r"should be \(1 to 26, 73\)"):
            semantic_window(wrong)


def test_the_face_frame(facts: Golden) -> None:
    frame = face_frame(numbers(facts, "ffhq_lm"))
    assert np.allclose(frame.centre, facts["stit_c"])
    assert np.allclose(frame.x, facts["stit_x"])
    assert np.allclose(frame.y, facts["stit_y"])
    assert np.allclose(frame.quad, facts["stit_quad"])


def test_the_first_crop(facts: Golden) -> None:
    frame = face_frame(np.floor(numbers(facts, "ffhq_lm")))
    left, top = facts["ffhq_crop_640x600_intlm"][:2].tolist()
    inner = facts["ffhq_quad_640x600_intlm"].astype(int).tolist()
    assert first_crop(frame, 640, 600) == Box(
        left + inner[0], top + inner[1], left + inner[2], top + inner[3]
    )


def test_the_first_crop_stays_inside_a_portrait_picture() -> None:
    frame = FaceFrame(np.array([50.0, 380.0]), np.array([80.0, 0.0]), np.array([0.0, 80.0]))
    assert first_crop(frame, 100, 400) == Box(0, 300, 100, 400)


def test_the_quad_maps_to_the_square(facts: Golden) -> None:
    quad = numbers(facts, "paste_quad") + 0.5
    transform = square_from_quad(quad, 256)
    assert np.allclose(transform.ravel()[:8], facts["paste_inv"], atol=1e-5, rtol=1e-5)
