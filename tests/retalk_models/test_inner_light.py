"""How light a person's slit of a mouth usually is: learnt by opening, forgotten with the person."""

from __future__ import annotations

import numpy as np
import pytest

from retalk_models.face.geometry import ObservedFace, template
from retalk_models.picture import Picture
from retalk_models.talkin.inner_light import InnerLight
from tests.retalk_models.test_mouth import AT, LIGHT, mouth_picture

SKIN = float(LIGHT[0]) - 16


def shown(opening: float, level: int) -> tuple[Picture, ObservedFace]:
    """A mouth whose inside is of one luma, this share of the skin's in percent."""
    picture, face = mouth_picture(opening)
    picture.y[:] = round(16 + SKIN * level / 100)
    return picture, ObservedFace(face, AT, template(), opening)


def learnt(*mouths: tuple[float, int], frames: int = 50) -> InnerLight:
    inner = InnerLight()
    for _ in range(frames):
        for mouth in mouths:
            inner.observe(*shown(*mouth), LIGHT)
    return inner


def test_it_learns_by_opening_and_is_the_surer_the_more_it_saw() -> None:
    assert InnerLight().at(0.05) == (0.0, 0.0)
    inner = learnt((0.035, 30), (0.05, 60))
    assert inner.at(0.035)[0] == pytest.approx(0.3, abs=0.01)
    assert inner.at(0.05)[0] == pytest.approx(0.6, abs=0.01)
    assert 0.4 < inner.at(0.0425)[0] < 0.5
    once, often = (learnt((0.05, 40), frames=frames).at(0.05)[1] for frames in (1, 200))
    assert once < 0.2
    assert often > 0.9


def test_of_wide_mouths_it_says_nothing_and_learns_nothing() -> None:
    inner = learnt((0.07, 40), (0.09, 40), (0.2, 90))
    assert inner.at(0.13)[1] == 0
    assert 0 < inner.at(0.1)[1] < inner.at(0.08)[1] * 0.7
    assert inner.at(0.1)[0] == pytest.approx(0.4, abs=0.01), "what is known of the nearest speaks for it"


def test_new_light_replaces_the_old_and_another_person_everything() -> None:
    inner = learnt((0.05, 40), frames=600)
    for _ in range(500):
        inner.observe(*shown(0.05, 80), LIGHT)
    assert inner.at(0.05)[0] > 0.7
    other = inner.copy()
    inner.reset()
    assert inner.at(0.05) == (0.0, 0.0)
    assert other.at(0.05)[0] > 0.7


def test_a_mouth_beyond_the_edge_or_of_hardly_a_sample_teaches_nothing() -> None:
    picture, face = shown(0.05, 40)
    inner = InnerLight()
    for moved in (face.points + 1000, face.points * np.float32(0.02)):
        inner.observe(picture, ObservedFace(moved, AT, template(), 0.05), LIGHT)
    assert inner.at(0.05) == (0.0, 0.0)
