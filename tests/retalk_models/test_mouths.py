"""One pose's mouths by opening: each kind's own picture, no jump between two, teeth of one colour."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retalk_models.face.geometry import ObservedFace, template
from retalk_models.talkin.mouth import MouthTexture, Opening
from retalk_models.talkin.mouths import Mouths, SeenMouth
from retalk_models.talkin.references import MouthReferences
from tests.retalk_models.test_mouth import AT, CANONICAL, LIGHT, PLANE, mouth_picture, reference


def mouth(opening: float, clarity: float = 0.8, texture: MouthTexture | None = None) -> SeenMouth:
    return SeenMouth(texture or reference(opening), opening, clarity)


def test_an_opening_is_shown_from_the_picture_that_was_as_open() -> None:
    narrow, middle, wide = mouth(0.1), mouth(0.14), mouth(0.22)
    mouths = Mouths.of(middle).joined(wide, best=False).joined(narrow, best=False)
    shown = {opening: mouths.at(opening)[0][0].opening.height for opening in (0.02, 0.1, 0.14, 0.22, 0.3)}
    heights = [one.texture.opening.height for one in (narrow, narrow, middle, wide, wide)]
    assert list(shown.values()) == pytest.approx(heights)
    # A picture that has all of an opening goes before one that has a part of it,
    assert mouths.at(0.13)[0][0].opening.height == pytest.approx(middle.texture.opening.height)
    # unless it would be shut so far that its dark goes.
    assert mouths.at(0.16)[0][0].opening.height == pytest.approx(middle.texture.opening.height)
    assert mouths.at(0.19)[0][0].opening.height == pytest.approx(wide.texture.opening.height)
    assert mouths.height == pytest.approx(wide.texture.opening.height)


def test_from_one_picture_to_the_next_nothing_jumps() -> None:
    mouths = Mouths.of(mouth(0.1)).joined(mouth(0.2), best=False)
    wide = mouths.seen[-1].texture
    shares = []
    for opening in np.arange(0, 0.3, 0.001):
        parts = mouths.at(float(opening))
        assert sum(weight for _, weight in parts) == pytest.approx(1)
        shares.append(sum(weight for texture, weight in parts if texture is wide))
    assert (shares[0], shares[-1]) == (0, 1)
    assert np.diff(shares).min() >= 0
    assert np.diff(shares).max() < 0.1


def test_of_a_kind_the_clearer_is_kept_but_not_in_the_best_ones_place() -> None:
    best = mouth(0.14, 0.7)
    mouths = Mouths.of(best)
    assert not mouths.wants(0.15, 1.0)
    assert mouths.wants(0.1, 0.1)
    mouths = mouths.joined(mouth(0.1, 0.7), best=False)
    assert not mouths.wants(0.11, 0.75)
    assert mouths.wants(0.11, 0.8)
    mouths = mouths.joined(mouth(0.11, 0.8), best=False)
    assert [one.opening for one in mouths.seen] == [0.11, 0.14]
    assert mouths.best is best
    better = mouth(0.15, 0.6)
    assert mouths.joined(better, best=True).best is better
    assert [one.opening for one in mouths.joined(better, best=True).seen] == [0.11, 0.15]


def test_teeth_are_of_one_colour_and_the_dark_stays_as_it_is() -> None:
    """Bug: teeth that the sun had lit in one picture flashed yellow whenever the mouth was so open."""
    plain, lit = reference(0.14), reference(0.2)
    y, uv = lit.y.copy(), lit.uv.copy()
    teeth = y > 180
    y[teeth] = 235
    uv[teeth[::2, ::2]] = uv[teeth[::2, ::2]].astype(int) + np.array([-10, 10])
    lit = replace(lit, y=y, uv=uv)
    joined = (
        Mouths.of(mouth(0.14, texture=plain)).joined(mouth(0.2, texture=lit), best=False).seen[-1].texture
    )
    deep = (y < 60)[::2, ::2]
    shown, truth = joined.uv.astype(int), plain.uv[(plain.y > 180)[::2, ::2]].astype(int).mean(axis=0)
    assert np.abs(np.median(shown[teeth[::2, ::2]], axis=0) - truth).max() <= 3
    assert np.abs(float(np.median(joined.y[teeth])) - float(np.median(plain.y[plain.y > 180]))) <= 6
    assert np.abs(shown - lit.uv.astype(int))[deep].max() <= 2


def _seen(references: MouthReferences, opening: float) -> None:
    picture, face = mouth_picture(opening)
    # Mouths are judged by how they move, too: the second look is at a still one.
    for _ in range(2):
        seen = ObservedFace(face, AT, template(), opening)
        references.observe(picture, seen, template(), PLANE, LIGHT, 0.2)


def test_mouths_in_use_take_on_what_is_seen_later_while_the_lips_are_shut() -> None:
    references, line = MouthReferences(), Opening.of(template(), CANONICAL)

    def height(opening: float) -> float:
        chosen = references.choose(AT, opening, line, LIGHT, 0.04)
        return max(texture.opening.height for texture, _ in chosen)

    _seen(references, 0.14)
    shown = height(0.0), height(0.22)
    assert shown[0] == shown[1]
    _seen(references, 0.22)
    assert references.count == 1
    # Not before their eyes.
    assert height(0.22) == shown[1]
    assert height(0.0) == shown[0]
    assert height(0.22) > shown[1] + 0.03
