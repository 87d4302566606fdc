"""The inside of the mouth: teeth keep their size and place, nothing shows between shut lips."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from retalk_models.face.geometry import INNER_LIPS, OUTER_LIPS, ObservedFace, Pose, template
from retalk_models.picture import F32, Picture
from retalk_models.talkin.cavity import draw_cavity
from retalk_models.talkin.mouth import draw_mouth
from retalk_models.talkin.mouth_texture import TEETH_DEPTH, MouthTexture, Opening, TeethPlane, cut_texture
from retalk_models.talkin.mouth_tone import black_of, dark_of, lip_colour
from retalk_models.talkin.mouths import Look
from retalk_models.talkin.references import MouthReferences
from tests.retalk_models.faces import noise, points, pose

LIGHT = np.array([150, 118, 146, 26], np.float32)
LIPS = np.array([116, 160], np.float32)
AT = pose(scale=160.0, y=180.0)
PLANE = TeethPlane.of(AT, float(template()[[13, 14], 2].mean()) + TEETH_DEPTH)
CANONICAL = TeethPlane(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))


def mouth_picture(opening: float) -> tuple[Picture, F32]:
    """Skin and red lips with a dark opening and a row of bright upper teeth in it, and the points of that
    face."""
    face = points(opening, AT)
    picture = Picture.from_rgb(np.full((480, 640, 3), 150, np.uint8))
    top, bottom = face[13, 1], face[14, 1]
    left, right = int(face[78, 0]), int(face[308, 0])
    picture.y[int(top) : int(bottom), left:right] = 30
    picture.y[int(top) : int(top + 0.06 * AT.scale), left:right] = 210
    for outline, (u, v) in ((OUTER_LIPS, LIPS), (INNER_LIPS, (128, 128))):
        outer = np.rint(face[list(outline), :2] / 2).astype(np.int32)
        for plane, level in ((picture.u, u), (picture.v, v)):
            cv2.fillPoly(plane, [outer], float(level))
    return picture, face


def reference(opening: float = 0.14) -> MouthTexture:
    picture, face = mouth_picture(opening)
    texture = cut_texture(picture, face, PLANE, LIGHT)
    assert texture is not None
    return texture


def teeth_rows(texture: MouthTexture, opening: float) -> tuple[float, float]:
    """Height of the bright band in the middle of the drawn mouth, and its first row, in pixels."""
    face = points(opening, AT)
    patch = draw_mouth(texture, noise(), face[:, :2], PLANE, LIGHT, softness=1.5)
    assert patch is not None
    column = round(float(face[13, 0])) - patch.box.left
    shown = patch.y[:, column] * (patch.cover_y[:, column] > 0.9)
    bright = np.flatnonzero(shown > 120)
    return float(len(bright)), patch.box.top + float(bright[0]) if len(bright) else 0.0


def test_teeth_keep_their_size_when_the_mouth_opens_wider_than_the_reference() -> None:
    texture = reference(0.14)
    same, same_top = teeth_rows(texture, 0.14)
    wide, wide_top = teeth_rows(texture, 0.24)
    assert same > 5
    assert wide == pytest.approx(same, abs=3)
    assert wide_top <= same_top + 1


def test_teeth_that_the_upper_part_bites_over_end_in_no_stair() -> None:
    """Bug: where the lower teeth rise behind the upper part, every pixel was the one or the other, and in a
    tilted head teeth had a stair for an edge."""
    turn = np.deg2rad(9)
    roll = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]], np.float32
    )
    at = Pose(roll, AT.translation, AT.scale)
    plane = TeethPlane.of(at, float(template()[[13, 14], 2].mean()) + TEETH_DEPTH)
    face = points(0.14, at)
    picture = Picture.from_rgb(np.full((480, 640, 3), 150, np.uint8))
    columns, rows = np.meshgrid(np.arange(640), np.arange(480))
    inverse = plane.inverse()
    x, y = columns - plane.offset[0], rows - plane.offset[1]
    across, down = (inverse[row, 0] * x + inverse[row, 1] * y for row in (0, 1))
    line = Opening.of(face, plane)
    inside = (across > line.left) & (across < line.right) & (down > line.upper[5, 1] - 0.02)
    picture.y[inside & (down < line.lower[5, 1])] = 30
    teeth = inside & (down > line.lower[5, 1] - 0.07) & (down < line.lower[5, 1] + 0.02)
    picture.y[teeth] = 210
    texture = cut_texture(picture, face, plane, LIGHT)
    assert texture is not None
    narrow = points(0.07, at)
    patch = draw_mouth(texture, noise(), narrow[:, :2], plane, LIGHT, softness=1.5)
    assert patch is not None
    middle = round(float(narrow[13, 0])) - patch.box.left
    soft = 0
    for column in range(middle - 12, middle + 12):
        shown = patch.y[:, column][patch.cover_y[:, column] > 0.99]
        assert shown[0] < 40
        assert shown[-1] > 200
        soft += bool(((shown > 50) & (shown < 190)).any())
    assert soft > 16


@pytest.mark.parametrize(("level", "has_stripe"), [(17, False), (30, True)])
def test_what_was_never_seen_of_a_black_mouth_is_black_too(level: int, has_stripe: bool) -> None:
    """Bug: a wide mouth that its owner showed pitch black had a red, lighter stripe across it."""
    picture, face = mouth_picture(0.14)
    picture.y[picture.y == 30] = level
    texture = cut_texture(picture, face, PLANE, LIGHT)
    assert texture is not None
    patch = draw_mouth(texture, noise(), points(0.3, AT)[:, :2], PLANE, LIGHT, softness=1.5, fine=False)
    assert patch is not None
    middle = round(float(face[13, 0])) - patch.box.left
    shown = patch.cover_uv[:, middle // 2] > 0.99
    redness = patch.uv[:, middle // 2, 1][shown] - 128
    inside = patch.y[:, middle][patch.cover_y[:, middle] > 0.99]
    below_teeth = inside[int(np.flatnonzero(inside > 60)[0]) :]
    below_teeth = below_teeth[int(np.flatnonzero(below_teeth < 60)[0]) + 4 : -4]
    assert (redness.max() > 8, np.ptp(below_teeth) > 6) == (has_stripe, has_stripe)


def test_depth_that_was_never_seen_has_a_tongue_in_its_middle_and_none_at_the_cheeks() -> None:
    """Bug: it was one flat, grey band from cheek to cheek."""
    face = points(0.3, AT)
    patch = draw_mouth(reference(), noise(), face[:, :2], PLANE, LIGHT, softness=1.5, fine=False)
    assert patch is not None
    middle = round(float(face[13, 0])) - patch.box.left
    aside = middle + round(0.33 * float(face[308, 0] - face[78, 0]))
    row = round(float(face[13, 1] + 0.65 * (face[14, 1] - face[13, 1]))) - patch.box.top
    assert patch.cover_y[row, aside] > 0.99
    assert patch.y[row, middle] > patch.y[row, aside] + 12
    redness = patch.uv[row // 2, :, 1] - 128
    assert redness[middle // 2] > 12
    assert redness[middle // 2] > 1.2 * redness[aside // 2] > 0


def test_a_low_band_that_was_never_seen_has_no_stripe() -> None:
    """Bug: a tongue in a slot of a few rows was a ruled line across the mouth."""

    def swing(opening: float) -> float:
        face = points(opening, AT)
        patch = draw_mouth(reference(), noise(), face[:, :2], PLANE, LIGHT, softness=1.5, fine=False)
        assert patch is not None
        column = round(float(face[13, 0])) - patch.box.left
        shown = patch.y[:, column][patch.cover_y[:, column] > 0.99]
        below_teeth = shown[int(np.flatnonzero(shown > 100)[-1]) + 3 : -3]
        return float(below_teeth.max() - below_teeth.min())

    assert swing(0.18) < 6
    assert swing(0.3) > 12


def test_between_lips_nearly_shut_there_is_shadow_not_teeth() -> None:
    height, _ = teeth_rows(reference(), 0.02)
    assert height == 0


def test_shut_lips_show_nothing_unless_the_frame_has_no_seam_of_its_own() -> None:
    face = points(-0.01, AT)
    bare = draw_mouth(reference(), noise(), face[:, :2], PLANE, LIGHT, softness=1.5)
    assert bare is None or bare.cover_y.max() < 0.35
    seam = draw_mouth(reference(), noise(), face[:, :2], PLANE, LIGHT, softness=1.5, seam=1.0)
    assert seam is not None
    assert seam.cover_y.max() > 0.3
    assert seam.y[seam.cover_y > 0.3].max() < 110


def test_the_line_between_shut_lips_is_no_redder_than_they_are_bug_it_was_bright_red_in_a_dark_face() -> None:
    dark, lips = np.array([60, 122, 142, 24], np.float32), np.array([121, 142], np.float32)
    texture = draw_cavity(Opening.of(template(), CANONICAL), dark, lips)
    patch = draw_mouth(texture, noise(), points(0.0, AT)[:, :2], PLANE, dark, softness=1.5, seam=1.0)
    assert patch is not None
    line = patch.cover_uv > 0.3
    assert line.sum() > 20
    assert lips[1] - 4 < np.median(patch.uv[line, 1]) < patch.uv[line, 1].max() <= lips[1] + 1
    assert patch.y[patch.cover_y > 0.5].max() < 40


def test_the_line_between_shut_lips_is_as_dark_as_the_mouth_behind_them() -> None:
    """Bug: people with a black mouth had a line of their lips' red."""

    def line(level: int) -> float:
        picture, face = mouth_picture(0.14)
        picture.y[picture.y == 30] = level
        texture = cut_texture(picture, face, PLANE, LIGHT)
        assert texture is not None
        patch = draw_mouth(texture, noise(), points(0.0, AT)[:, :2], PLANE, LIGHT, softness=1.5, seam=1.0)
        assert patch is not None
        return float(patch.y[patch.cover_y > 0.6].mean())

    assert line(17) < line(40) - 15


@pytest.mark.parametrize("opening", [0.0, 0.02, 0.14])
def test_a_mouth_follows_the_colour_of_the_light(opening: float) -> None:
    """Bug: after a change of white balance the line between shut lips kept the hue that it was learnt in."""
    shift, face = np.array([-8, 8], np.float32), points(opening, AT)
    cool, warm = (
        draw_mouth(reference(), noise(), face[:, :2], PLANE, light, softness=1.5, seam=1.0)
        for light in (LIGHT, LIGHT + np.array([0, *shift, 0], np.float32))
    )
    assert cool is not None
    assert warm is not None
    inside = cool.cover_uv > 0.3
    moved = (warm.uv - cool.uv)[inside].mean(axis=0)
    # What is dark has little colour to change.
    assert np.all(moved / shift > 0.4)
    assert np.all(moved / shift < 1.01)


def test_what_lies_in_the_lips_shadow_is_no_redder_than_they_are() -> None:
    """Bug: their hue was added to what a photograph had of it already."""
    texture = replace(reference(), uv=np.full_like(reference().uv, LIPS.astype(np.uint8)))
    patch = draw_mouth(texture, noise(), points(0.05, AT)[:, :2], PLANE, LIGHT, softness=1.5)
    assert patch is not None
    assert patch.uv[..., 1].max() <= LIPS[1] + 0.5


def test_a_slit_is_no_lighter_than_the_persons_usually_are_bug_a_row_of_teeth_shone_in_it() -> None:
    def luma(opening: float, usual: tuple[float, float]) -> float:
        face = points(opening, AT)
        patch = draw_mouth(reference(), noise(), face[:, :2], PLANE, LIGHT, softness=1.5, usual=usual)
        assert patch is not None
        return float((patch.y * patch.cover_y).sum() / patch.cover_y.sum() - 16) / float(LIGHT[0] - 16)

    free = luma(0.06, (0.0, 0.0))
    assert luma(0.06, (0.8 * free, 1.0)) == pytest.approx(0.8 * free, rel=0.02)
    assert luma(0.06, (0.8 * free, 0.5)) == pytest.approx(0.9 * free, rel=0.02)
    assert luma(0.06, (2 * free, 1.0)) == pytest.approx(free)
    assert luma(0.06, (0.0, 1.0)) > 0.55 * free, "teeth in the deepest shade are still teeth"


def test_the_shade_in_a_slit_falls_from_the_upper_lip_bug_evenly_dim_teeth_looked_dirty() -> None:
    face, teeth = points(0.06, AT), replace(reference(), y=np.full_like(reference().y, 200))
    free, dim = (
        draw_mouth(teeth, noise(), face[:, :2], PLANE, LIGHT, softness=1.5, usual=(0.0, sure))
        for sure in (0.0, 1.0)
    )
    assert free is not None
    assert dim is not None
    column = round(float(face[13, 0])) - free.box.left
    rows = np.flatnonzero(free.cover_y[:, column] > 0.95)
    left = dim.y[rows, column] / free.y[rows, column]
    assert np.diff(left).min() > -1e-3
    assert left[0] + 0.2 < left[-1] < 1


def test_a_session_learns_how_light_a_slit_is_and_a_copy_knows_it() -> None:
    references = MouthReferences()
    picture, face = mouth_picture(0.05)
    for _ in range(30):
        references.observe(picture, ObservedFace(face, AT, template(), 0.05), template(), PLANE, LIGHT, 0.04)
    luma, sure = references.luma_at(0.05)
    assert 0 < luma < 1.6
    assert sure > 0.7
    assert references.copy().luma_at(0.05) == (luma, sure)
    references.reset()
    assert references.luma_at(0.05)[1] == 0


def test_lips_beyond_the_picture_s_edge_have_no_say_in_their_colour() -> None:
    picture, face = mouth_picture(0.0)
    assert lip_colour(picture, face) == pytest.approx(LIPS)
    picture.v[:], picture.v[0] = LIPS[1], 90
    above = face - np.array([0, float(face[list(INNER_LIPS), 1].mean()), 0], np.float32)
    assert lip_colour(picture, above)[1] == pytest.approx(LIPS[1])
    assert lip_colour(picture, face - 1000) == pytest.approx([128, 128])


def test_the_reference_follows_the_light() -> None:
    face = points(0.14, AT)
    bright = draw_mouth(reference(), noise(), face[:, :2], PLANE, LIGHT, softness=1.5)
    darker = LIGHT * np.array([0.6, 1, 1, 0.6], np.float32)
    dim = draw_mouth(reference(), noise(), face[:, :2], PLANE, darker, softness=1.5)
    assert bright is not None
    assert dim is not None
    assert dim.y.max() < 0.75 * bright.y.max()


def test_the_drawn_mouth_is_dark_with_a_soft_line_of_teeth() -> None:
    texture = draw_cavity(Opening.of(template(), CANONICAL), LIGHT, LIPS)
    face = points(0.16, AT)
    patch = draw_mouth(texture, noise(), face[:, :2], PLANE, LIGHT, softness=1.5)
    assert patch is not None
    inside = patch.y[patch.cover_y > 0.9]
    assert np.quantile(inside, 0.2) < 60
    assert 90 < inside.max() < LIGHT[0]
    steps = np.abs(np.diff(texture.y.astype(int), axis=0))
    assert steps.max() < 60


def test_the_drawn_mouth_has_the_lips_hue_bug_it_was_the_skins_olive_and_in_pale_people_grey() -> None:
    texture = draw_cavity(Opening.of(template(), CANONICAL), LIGHT, LIPS)
    height, width = texture.uv.shape[:2]
    tongue = texture.uv[height * 7 // 8, width // 2].astype(float) - 128
    assert tongue == pytest.approx(0.6 * (LIPS - 128), abs=2)
    dark = texture.uv[height // 2, width // 2].astype(float) - 128
    assert np.abs(dark).max() < 0.85 * np.abs(tongue).max(), "what is black has no colour"
    # It rises to the tongue over many rows, from the dark.
    column = texture.y[:, texture.y.shape[1] // 2].astype(int)
    below = column[len(column) // 2 :]
    assert below[-8] > below[0] + 20
    assert np.abs(np.diff(below)).max() < 8


def test_a_pale_picture_gets_no_black_hole_bug_a_slit_of_luma_12_in_a_face_whose_pupils_had_60() -> None:
    pale = np.array([180, 120, 138, 60], np.float32)
    face = points(0.16, AT)
    drawn = draw_cavity(Opening.of(template(), CANONICAL), pale, LIPS)
    patch = draw_mouth(drawn, noise(), face[:, :2], PLANE, pale, softness=1.5)
    assert patch is not None
    assert patch.y[patch.cover_y > 0.9].min() > 36
    assert black_of(pale) == pytest.approx(40.2)
    assert dark_of(pale, LIPS)[0] == pytest.approx(40.2)


def test_a_patch_lies_within_the_picture_even_at_its_edge() -> None:
    at = pose(scale=160.0, y=300.0)
    plane = TeethPlane.of(at, -0.3)
    patch = draw_mouth(reference(), noise(), points(0.2, at)[:, :2], plane, LIGHT, softness=1.5)
    assert patch is not None
    assert patch.box.bottom <= 480
    assert patch.y.shape == (patch.box.height, patch.box.width)
    assert patch.uv.shape == (patch.box.height // 2, patch.box.width // 2, 2)


def test_open_mouths_with_depth_are_better_references() -> None:
    picture, face = mouth_picture(0.14)
    picture.y[:] = np.maximum(picture.y, 200)
    clenched = cut_texture(picture, face, PLANE, LIGHT)
    assert clenched is not None
    assert Look.of(reference(0.14)).quality(0.14) > Look.of(clenched).quality(0.14) + 0.2
    assert Look.of(reference(0.14)).quality(0.14) > Look.of(reference(0.05)).quality(0.05)


def test_a_puckered_mouth_is_no_reference() -> None:
    """Bug: the round hole of a mouth that said oh, lips and all, was put into wide ones."""
    picture, face = mouth_picture(0.14)
    for width, count in ((0.6, 0), (1.0, 1)):
        references, shape = MouthReferences(), template().copy()
        shape[[78, 308], 0] *= np.float32(width)
        seen = ObservedFace(face, AT, shape, 0.14)
        # A face that has said nothing but oh so far is taken for narrow at rest.
        for neutral in (template(), shape):
            for _ in range(2):
                references.observe(picture, seen, neutral, PLANE, LIGHT, 0.04)
            assert references.count == count


def test_who_is_known_is_looked_at_less_often_and_still_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a smile that never got better was cut out and judged anew at every frame."""
    from retalk_models.face.geometry import ObservedFace
    from retalk_models.talkin import references as room

    looked: list[int] = []
    frame = 0

    def cut(*given: object) -> MouthTexture | None:
        looked.append(frame)
        return cut_texture(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "cut_texture", cut)
    references = MouthReferences()
    dull, wide = mouth_picture(0.14)
    dull.y[:] = 90
    picture, parted = mouth_picture(0.08)
    for index in range(14):
        frame, known = index, index == 4
        face, opening = (parted, 0.08) if known else (wide, 0.14)
        seen = ObservedFace(face, AT, template(), opening)
        references.observe(picture if known else dull, seen, template(), PLANE, LIGHT, 0.04)
        assert references.count == (index >= 4)
    # At every frame while nobody is known; and at once after one was taken, the best one may be next.
    assert looked == [0, 1, 2, 3, 4, 5, 8, 11]


def test_without_a_reference_the_mouth_is_drawn_and_the_change_to_a_real_one_crosses_over() -> None:
    references = MouthReferences()
    line = Opening.of(template(), CANONICAL)

    def choose(opening: float) -> tuple[tuple[MouthTexture, float], ...]:
        return references.choose(AT, opening, line, LIGHT, lambda: LIPS, 0.04)

    first = choose(0.1)
    assert len(first) == 1
    picture, face = mouth_picture(0.14)
    for _ in range(3):
        references.observe(picture, ObservedFace(face, AT, template(), 0.14), template(), PLANE, LIGHT, 0.04)
    assert references.count == 1
    # Not while the mouth is open and seen, but when it shuts.
    assert choose(0.1)[0][0] is first[0][0]
    weights = [choose(0.005)[-1][1] for _ in range(4)]
    assert weights[0] < 0.5
    assert weights == sorted(weights)
    assert weights[-1] == 1.0
    assert choose(0.1)[0][0] is not first[0][0]
