"""One pose's mouths: the wide one where it fits, no jump between the two, teeth of one colour."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retalk_models.face.geometry import ObservedFace, template
from retalk_models.picture import F32
from retalk_models.pose_cache import Reference
from retalk_models.talkin.mouth_texture import MouthTexture, Opening
from retalk_models.talkin.mouths import Look, Mouths, SeenMouth
from retalk_models.talkin.references import MouthReferences
from tests.retalk_models.faces import pose
from tests.retalk_models.test_mouth import AT, CANONICAL, LIGHT, LIPS, PLANE, mouth_picture, reference


def mouth(opening: float, clarity: float = 0.8, texture: MouthTexture | None = None) -> SeenMouth:
    return SeenMouth(texture or reference(opening), opening, clarity)


def test_a_wide_mouth_is_shown_where_the_dub_is_nearly_as_open_and_nothing_jumps() -> None:
    best, wider = mouth(0.1), mouth(0.2)
    mouths = Mouths(best).widened(wider)
    assert Mouths(best).at(0.3) == ((best.texture, 1.0),)
    assert mouths.height == pytest.approx(wider.texture.opening.height)
    shares = []
    for opening in np.arange(0, 0.3, 0.001):
        parts = mouths.at(float(opening))
        assert sum(weight for _, weight in parts) == pytest.approx(1)
        assert all(texture in (best.texture, mouths.wide) for texture, _ in parts)
        shares.append(sum(weight for texture, weight in parts if texture is mouths.wide))
    # Shut further than that it would lose its dark.
    assert max(shares[:169]) == 0
    assert min(shares[191:]) == 1
    assert np.diff(shares).min() >= 0
    assert np.diff(shares).max() < 0.06


def test_of_wide_mouths_the_clearest_deep_one_is_kept() -> None:
    """Bug: two rows of teeth that meet, drawn for another opening, fused to a white block."""
    mouths = Mouths(mouth(0.1, 0.7))
    assert not mouths.wants(0.14, 1.0)
    assert not mouths.wants(0.2, 1.0, 0.5)
    assert mouths.wants(0.2, 0.1)
    mouths = mouths.widened(mouth(0.2, 0.7))
    assert not mouths.wants(0.18, 0.75)
    assert mouths.wants(0.18, 0.8)


def test_a_better_one_keeps_what_is_wider_than_it() -> None:
    wide, narrow = mouth(0.2), mouth(0.08)
    both = Mouths(narrow).widened(wide)
    assert both.bettered(mouth(0.12)).wider is wide
    assert both.bettered(mouth(0.17)).wider is None
    assert Mouths(wide).bettered(narrow).wider is wide
    flat = mouth(0.2, texture=replace(wide.texture, depth=0.2))
    assert Mouths(flat).bettered(narrow).wider is None


def tinted(texture: MouthTexture, luma: float, shift: tuple[int, int]) -> MouthTexture:
    """With its teeth of another luma and colour."""
    y, uv = texture.y.copy(), texture.uv.copy()
    teeth = y > 180
    y[teeth] = luma
    uv[teeth[::2, ::2]] = uv[teeth[::2, ::2]].astype(int) + np.array(shift)
    return replace(texture, y=y, uv=uv)


def teeth_of(texture: MouthTexture) -> F32:
    """(3,) median Y, U, V of the bright samples."""
    bright = texture.y > 180
    colour = np.median(texture.uv[bright[::2, ::2]], axis=0)
    return np.array([np.median(texture.y[bright]), *colour], np.float32)


def test_teeth_are_of_one_colour_and_the_dark_stays_as_it_is() -> None:
    """Bug: teeth that the sun had lit in one picture flashed yellow whenever the mouth was so open."""
    plain, lit = reference(0.14), tinted(reference(0.2), 235, (-10, 10))
    shown = Mouths(mouth(0.14, texture=plain)).widened(mouth(0.2, texture=lit)).wide
    assert shown is not None
    assert np.abs(teeth_of(shown) - teeth_of(plain)).max() <= 6
    deep = lit.y < 60
    assert np.abs(shown.y.astype(int) - lit.y)[deep].max() <= 1
    assert np.abs(shown.uv.astype(int) - lit.uv)[deep[::2, ::2]].max() <= 2


def test_teeth_are_of_the_best_ones_colour_whenever_that_came() -> None:
    """Bug: only who joined later was toned, so the first best one's colour stayed in the others for good."""
    yellow, plain = tinted(reference(0.1), 235, (-10, 10)), reference(0.14)
    mouths = Mouths(mouth(0.1, texture=yellow)).widened(mouth(0.22))
    for shown, like in ((mouths.wide, yellow), (mouths.bettered(mouth(0.14, texture=plain)).wide, plain)):
        assert shown is not None
        assert np.abs(teeth_of(shown) - teeth_of(like)).max() <= 6


def test_teeth_are_as_bright_over_the_skin_where_the_light_has_changed() -> None:
    plain, dim = reference(0.14), reference(0.2)
    dark = LIGHT * np.array([0.7, 1, 1, 1], np.float32)
    dim = replace(dim, y=np.rint(16 + (dim.y - 16.0) * 0.66).astype(np.uint8), light=dark)
    shown = Mouths(mouth(0.14, texture=plain)).widened(mouth(0.2, texture=dim)).wide
    assert shown is not None
    assert np.abs(shown.y.astype(int) - dim.y).max() <= 4


def test_nothing_is_taken_for_teeth_where_none_are_seen() -> None:
    """Bug: the teeth of a wide mouth were given the colour of the tongue in a mouth that showed no teeth."""
    bare = reference(0.14)
    bare = replace(bare, y=np.minimum(bare.y, 90))
    toothed = tinted(reference(0.2), 235, (-10, 10))
    for first, second in ((bare, toothed), (toothed, bare)):
        assert Mouths(mouth(0.14, texture=first)).widened(mouth(0.2, texture=second)).wide is second


def test_a_mouth_without_teeth_is_not_clear_however_noisy() -> None:
    """Bug: noise is detail, and a grainy tongue was clear enough."""
    bare = reference(0.2)
    grain = np.random.default_rng(0).integers(-14, 15, bare.y.shape)
    noisy = Look.of(replace(bare, y=np.clip(np.minimum(bare.y, 80) + grain, 16, 235).astype(np.uint8)))
    assert noisy.detail > 0.9
    assert noisy.clarity < 0.5
    assert Look.of(bare).clarity > 0.6


def test_rows_of_teeth_that_meet_are_not_crushed_where_others_will_do() -> None:
    """Bug: a grin's two rows, drawn half as open, were a white band without a gap in it."""
    meeting, deep = replace(reference(0.16), depth=0.0), reference(0.16)
    assert Mouths(mouth(0.16, texture=deep)).crushed(0.06) == 0
    grin = Mouths(mouth(0.16, texture=meeting))
    assert grin.crushed(0.06) == pytest.approx(0.1)
    assert grin.crushed(0.2) == 0
    poses = [Reference(grin, 0.1, 0.0, 0.8), Reference(Mouths(mouth(0.16, texture=deep)), -0.2, 0.0, 0.8)]
    references = MouthReferences()
    for one in poses:
        references._cache.add(one)
    references.foresee([0.06, 0.06, 0.06])
    assert _heights(references, 0.0) == [deep.opening.height]
    assert references._choice.current is poses[1]
    references = MouthReferences()
    for one in poses:
        references._cache.add(one)
    references.foresee([0.16, 0.16, 0.16])
    _heights(references, 0.0)
    assert references._choice.current is poses[0]


def _seen(references: MouthReferences, opening: float, yaw: float = 0.0, step_s: float = 0.2) -> None:
    picture, face = mouth_picture(opening)
    at = replace(AT, rotation=pose(yaw=yaw).rotation)
    # Mouths are judged by how they move, too: the second look is at a still one.
    for _ in range(2):
        references.observe(
            picture, ObservedFace(face, at, template(), opening), template(), PLANE, LIGHT, step_s
        )


def _heights(references: MouthReferences, opening: float) -> list[float]:
    line = Opening.of(template(), CANONICAL)
    chosen = references.choose(AT, opening, line, LIGHT, lambda: LIPS, 0.04)
    assert sum(weight for _, weight in chosen) == pytest.approx(1)
    assert len(chosen) <= 2
    return [texture.opening.height for texture, _ in chosen]


def test_mouths_in_use_take_on_what_is_seen_later_while_the_lips_are_shut() -> None:
    references = MouthReferences()
    _seen(references, 0.14)
    shown = _heights(references, 0.0), _heights(references, 0.22)
    assert shown[0] == shown[1]
    _seen(references, 0.22)
    assert references.count == 1
    # Not before their eyes; and not at once, or the line between shut lips would leap.
    assert _heights(references, 0.22) == shown[1]
    assert _heights(references, 0.0) == shown[0] * 2
    assert [len(_heights(references, 0.0)) for _ in range(3)] == [2, 2, 1]
    assert _heights(references, 0.22)[0] > shown[1][0] + 0.03


def test_a_better_one_joins_the_others_and_is_taken_on_with_them() -> None:
    """Bug: mouths whose best one had been replaced by a better stayed in use, and nothing joined them."""
    references = MouthReferences()
    _seen(references, 0.08)
    _seen(references, 0.2)
    _heights(references, 0.0)
    (held,) = references._cache.held()
    assert held.item.wider is not None
    _seen(references, 0.14)
    (grown,) = references._cache.held()
    assert grown.quality > held.quality
    assert (grown.item.best.opening, grown.item.wider) == (0.14, held.item.wider)
    _heights(references, 0.2)
    assert references._choice.current is held
    _heights(references, 0.0)
    assert references._choice.current is grown


def test_who_joins_changes_neither_the_pose_nor_the_worth_of_the_others() -> None:
    references = MouthReferences()
    _seen(references, 0.14)
    (held,) = references._cache.held()
    _seen(references, 0.22, yaw=0.08)
    (grown,) = references._cache.held()
    assert grown.item.wider is not None
    assert (grown.yaw, grown.pitch, grown.quality) == (held.yaw, held.pitch, held.quality)


def test_a_blurred_mouth_does_not_join() -> None:
    references = MouthReferences()
    _seen(references, 0.14)
    _seen(references, 0.22, step_s=0.02)
    (held,) = references._cache.held()
    assert held.item.wider is None


def test_what_joins_mouths_does_not_keep_others_from_taking_their_place() -> None:
    """Bug: a picture that came to those in use took up the whole time in which the lips were shut."""
    line, turned = Opening.of(template(), CANONICAL), pose(yaw=0.45)
    taken = []
    for joins in (False, True):
        references = MouthReferences()
        one = Reference(Mouths(mouth(0.14, 0.9)), 0.0, 0.0, 0.6)
        other = Reference(Mouths(mouth(0.14, 0.9)), 0.5, 0.0, 0.9)
        references._cache.add(one)
        references.choose(AT, 0.0, line, LIGHT, lambda: LIPS, 0.04)
        assert references._choice.current is one
        references._cache.add(other)
        if joins:
            references._cache.add(Reference(one.item.widened(mouth(0.24, 0.9)), 0.0, 0.0, 0.6))
        references.choose(turned, 0.0, line, LIGHT, lambda: LIPS, 0.04)
        taken.append(references._choice.current is other)
    assert taken == [True, True]
