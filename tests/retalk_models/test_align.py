"""What the surface says: light, occlusion and cuts."""

from __future__ import annotations

import numpy as np
import pytest

from retalk_models.face.align import CutDetector, SurfaceMemory, mouth_light, sample
from retalk_models.face.tracker import TrackedFace
from retalk_models.picture import Box, Picture
from tests.retalk_models.faces import noise, points, portrait, pose


def looked_at(picture: Picture) -> TrackedFace:
    """A template face in the middle of a picture that is its own view."""
    at = pose(scale=90.0, x=picture.width / 2, y=picture.height / 2 - 40)
    return TrackedFace(points(0.0, at), picture, Box(0, 0, picture.width, picture.height))


def skin(level: int = 150) -> Picture:
    return Picture.from_rgb(np.full((320, 320, 3), (level, int(0.8 * level), int(0.7 * level)), np.uint8))


def lower_lip() -> tuple[int, int]:
    """Where the face of looked_at has it in a picture of skin(), pixels."""
    x, y = looked_at(skin()).points[14, :2].astype(int).tolist()
    return x, y


def acquainted() -> SurfaceMemory:
    """A memory that has seen the bare face for long enough."""
    memory = SurfaceMemory()
    for _ in range(40):
        memory.look(looked_at(skin()), 0.0, 0.04)
    return memory


def test_light_is_that_of_the_skin() -> None:
    picture = skin()
    light = mouth_light(looked_at(picture))
    assert light[:3] == pytest.approx([picture.y[0, 0], picture.u[0, 0], picture.v[0, 0]], abs=1)


def test_light_knows_the_darkest_spots_of_the_face_and_not_of_the_room() -> None:
    picture = skin()
    face = looked_at(picture)
    picture.y[:20] = 16  # a dark room above the head
    assert mouth_light(face)[3] == pytest.approx(picture.y[160, 0], abs=1)
    left, top = np.rint(face.points[[159, 468], :2].min(axis=0)).astype(int)
    picture.y[top : top + 12, left : left + 12] = 40
    assert mouth_light(face)[3] == 40


def test_samples_outside_the_view_are_clamped() -> None:
    face = looked_at(skin())
    far = np.array([[-500, -500], [5000, 5000]], np.float32)
    assert np.isfinite(sample(face, far)).all()


def test_something_before_the_mouth_is_noticed_and_soon_forgotten_when_gone() -> None:
    memory = SurfaceMemory()
    clear = [memory.look(looked_at(skin()), 0.0, 0.04).hidden for _ in range(40)]
    assert max(clear) == 0
    covered, (x, y) = skin(), lower_lip()
    covered.y[y - 50 : y + 50, x - 60 : x + 60] = 40
    assert memory.look(looked_at(covered), 0.0, 0.04).hidden > 0.6
    assert memory.look(looked_at(skin()), 0.0, 0.04).hidden < 0.1


def test_a_microphone_before_half_of_the_lips_is_noticed() -> None:
    memory, (x, y) = acquainted(), lower_lip()
    covered = skin()
    covered.y[y : y + 40, x - 22 : x + 22] = 40
    shown = [memory.look(looked_at(covered), 0.0, 0.04).hidden for _ in range(50)]
    assert min(shown) > 0.5, "it is there for two seconds, and is not learnt as skin"


def test_a_lamp_that_is_switched_on_is_the_faces_light_within_seconds() -> None:
    memory, (x, y) = acquainted(), lower_lip()
    lit = skin()
    lit.y[y - 60 : y + 60, x - 70 : x + 70] += 25
    hidden = [memory.look(looked_at(lit), 0.0, 0.04).hidden for _ in range(150)]
    assert hidden[-1] < 0.35


def test_light_that_changes_slowly_is_no_occlusion() -> None:
    memory = SurfaceMemory()
    shares = [memory.look(looked_at(skin(150 - k // 2)), 0.0, 0.04).hidden for k in range(120)]
    assert max(shares) < 0.2


def test_a_cut_is_found_and_motion_is_not() -> None:
    cut = CutDetector()
    assert not any(cut(portrait(x=6 * i)) for i in range(8))
    assert cut(noise(512, 512))
    assert not cut(noise(512, 512))
    brighter = CutDetector()
    assert not any(brighter(skin(100 + 15 * i)) for i in range(1, 5))
