"""The tracker on the public-domain portrait: where the face is, however large the frame, and gone when it is
gone."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from retalk_models.face.geometry import INNER_LIPS, LIP_BODIES, OUTER_LIPS, POINTS, fit_pose, template
from retalk_models.face.tracker import FaceTracker, OneEuro, ShapeFilter, landmark_places, shrink
from retalk_models.picture import U8, Box, Picture
from tests.retalk_models.faces import noise, portrait


@pytest.fixture
def tracker() -> Iterator[FaceTracker]:
    one = FaceTracker()
    yield one
    one.close()


def test_it_finds_the_portrait(tracker: FaceTracker) -> None:
    face = tracker.track(portrait())
    assert face is not None
    assert face.points.shape == (POINTS, 3)
    assert face.points.dtype == np.float32
    assert 190 < face.centre[0] < 250
    assert 70 < face.centre[1] < 150
    assert 60 < face.size < 160


def test_a_small_face_in_a_large_frame_is_found_where_it_is(tracker: FaceTracker) -> None:
    near = tracker.track(portrait())
    tracker.forget()
    large = portrait(1920, 1080, x=1100, y=300)
    # The whole picture and its tiles are searched in turn.
    far = next((face for face in (tracker.track(large) for _ in range(20)) if face is not None), None)
    assert near is not None
    assert far is not None
    moved = far.points[:, :2] - near.points[:, :2]
    assert np.abs(moved - (1100, 300)).max() < 4
    assert far.view.width <= 320


def test_a_moving_face_is_followed(tracker: FaceTracker) -> None:
    for step in range(12):
        face = tracker.track(portrait(900, 512, x=25 * step))
        assert face is not None
        assert abs(face.centre[0] - (222 + 25 * step)) < 12


def test_the_same_frames_give_the_same_points() -> None:
    runs = []
    for _ in range(2):
        one = FaceTracker()
        found = [one.track(portrait(x=4 * i)) for i in range(5)]
        one.close()
        runs.append(np.stack([face.points for face in found if face is not None]))
    assert runs[0].shape[0] == 5
    assert np.array_equal(runs[0], runs[1])


def test_no_face_is_none_and_a_face_that_comes_back_is_found_again(tracker: FaceTracker) -> None:
    assert tracker.track(portrait()) is not None
    gone = [tracker.track(noise(512, 512, seed)) for seed in range(6)]
    assert gone[-1] is None
    back = [tracker.track(portrait()) for _ in range(4)]
    assert back[-1] is not None


@pytest.mark.parametrize("size", [(2, 2), (16, 8), (33, 47), (640, 2)])
def test_pictures_of_odd_and_tiny_sizes_pass(tracker: FaceTracker, size: tuple[int, int]) -> None:
    assert tracker.track(portrait(*size)) is None


def test_closing_twice_is_fine() -> None:
    one = FaceTracker()
    one.close()
    one.close()


@pytest.mark.parametrize("side", [1040, 1002, 700, 644])
def test_a_ramp_stays_where_it_was_however_much_it_is_shrunk(side: int) -> None:
    rising: U8 = np.tile(np.rint(np.linspace(0, 255, 1200)).astype(np.uint8), (1800, 1))
    falling: U8 = np.asarray(255 - rising, np.uint8)
    box = Box(100, 60, 100 + side, 60 + side)
    up, down = (shrink(Picture(planes, 1200, 1200), box, 320) for planes in (rising, falling))
    places = box.left + (np.arange(up.width) + 0.5) * box.width / up.width - 0.5
    # Rounding errs to the same side in both, a shift to opposite ones.
    apart = (up.y.astype(float) - down.y + 255) / 2 - places * 255 / 1199
    assert abs(apart.mean()) < 0.02  # a tenth of a pixel
    assert np.abs(apart).max() < 1


def test_shrink_keeps_shape_and_mean() -> None:
    picture = noise(640, 480)
    small = shrink(picture, Box(100, 60, 500, 260), 200)
    assert (small.width, small.height) == (200, 100)
    assert abs(small.y.mean() - picture.y[60:260, 100:500].mean()) < 1
    assert shrink(picture, Box(0, 0, 100, 80), 320).width == 100


@pytest.mark.parametrize("side", [1302, 1002, 700, 420])
def test_fine_grain_does_not_come_through_where_a_picture_is_shrunk(side: int) -> None:
    grain = noise(1440, 1440)
    shrunk = shrink(grain, Box(100, 60, 100 + side, 60 + side), 320).y
    part = grain.y[60 : 60 + side, 100 : 100 + side]
    by_area = cv2.resize(part, (320, 320), interpolation=cv2.INTER_AREA)
    assert shrunk.std() < 1.35 * by_area.std()


def test_one_euro_is_steady_at_rest_and_quick_in_motion() -> None:
    rng = np.random.default_rng(1)
    smooth = OneEuro(1.0, 5.0, speed_cutoff=5.0)
    rest = [smooth(rng.normal(0, 0.01, (1, 3)).astype(np.float32), 0.04)[0, 0] for _ in range(200)]
    assert np.std(rest[50:]) < 0.006
    step = [smooth(np.ones((1, 3), np.float32), 0.04)[0, 0] for _ in range(5)]
    assert step[2] > 0.9


def test_lips_in_the_filtered_shape_trail_by_less_than_a_tenth() -> None:
    steady = ShapeFilter()
    for _ in range(10):
        steady(template(), 0.04)
    moved = template().copy()
    moved[14, 1] += 0.08
    out = steady(moved, 0.04)
    assert out[14, 1] - template()[14, 1] > 0.9 * 0.08


def test_what_lies_on_the_lips_keeps_up_with_their_outlines() -> None:
    """Bug: the points between a lip's outlines were steadied as cheeks are, and trailed it by a third of its
    height: its flesh was drawn from where the lip had been."""
    steady, shape, lips = ShapeFilter(), template().copy(), [*OUTER_LIPS, *LIP_BODIES, *INNER_LIPS]
    for number in range(60):
        moved = template().copy()
        moved[lips, 1] += np.float32(0.05 * np.sin(2 * np.pi * 4 * number / 25))
        shape = steady(moved, 0.04)
    away = shape[:, 1] - moved[:, 1]
    assert np.ptp(away[lips]) < 1e-6
    assert np.abs(away[lips]).max() < 0.005


def test_the_portraits_pose_is_nearly_frontal(tracker: FaceTracker) -> None:
    face = tracker.track(portrait())
    assert face is not None
    assert abs(fit_pose(face.points).yaw) < 0.4


@pytest.mark.parametrize("extra", [{}, {"visibility": 0.5}])
def test_landmarks_are_read_as_they_were_given(extra: dict[str, float]) -> None:
    from mediapipe.framework.formats.landmark_pb2 import NormalizedLandmark, NormalizedLandmarkList

    places = np.random.default_rng(1).normal(size=(478, 3)).astype(np.float32)
    places[7] = 0
    marks = [NormalizedLandmark(x=x, y=y, z=z, **extra) for x, y, z in places.tolist()]
    assert np.array_equal(landmark_places(NormalizedLandmarkList(landmark=marks)), places)
