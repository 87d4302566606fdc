"""The frame's own inside of the mouth: shown where it is about as far open as the dub, and never at once."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from retalk_models.face.geometry import ObservedFace, template
from retalk_models.picture import F32, U8
from retalk_models.talkin import render
from retalk_models.talkin.mouth import draw_mouth
from retalk_models.talkin.mouth_texture import cut_texture
from retalk_models.talkin.own_mouth import OwnMouth
from retalk_models.talkin.references import MouthReferences
from retalk_models.talkin.render import draw
from retalk_models.talkin.target import TargetFace
from tests.retalk_models.faces import points
from tests.retalk_models.test_mouth import AT, LIGHT, LIPS, PLANE, mouth_picture

TEETH = 210


def target(opening: float, narrower: float = 1.0) -> TargetFace:
    face = points(opening, AT)
    middle = face[:, 0].mean()
    face[:, 0] = middle + narrower * (face[:, 0] - middle)
    flat = np.ascontiguousarray(face[:, :2])
    return TargetFace(flat, flat, np.ascontiguousarray(face[:, 2]), AT, opening, 0.0)


def shares(own: float, asked: float, frames: int = 20, narrower: float = 1.0) -> list[float]:
    """What a mouth shows of itself, frame by frame, while the dub is asked for another opening."""
    picture, face = mouth_picture(own)
    seen, mouth = ObservedFace(face, AT, template(), own), OwnMouth()
    found = [mouth.look(picture, seen, target(asked, narrower), PLANE, LIGHT, 0.04) for _ in range(frames)]
    return [0.0 if one is None else one[1] for one in found]


def test_a_mouth_as_far_open_as_the_dub_is_shown_and_not_at_once() -> None:
    rising = shares(0.12, 0.12)
    assert 0.3 < rising[0] < 0.7
    assert rising == sorted(rising)
    assert rising[-1] > 0.99
    slower = OwnMouth()
    picture, face = mouth_picture(0.12)
    seen = ObservedFace(face, AT, template(), 0.12)
    early = slower.look(picture, seen, target(0.12), PLANE, LIGHT, 0.02)
    assert early is not None
    assert early[1] < 0.5 * rising[0]


@pytest.mark.parametrize(
    ("own", "asked", "narrower"), [(0.01, 0.12, 1.0), (0.05, 0.12, 1.0), (0.2, 0.06, 1.0), (0.12, 0.12, 1.6)]
)
def test_one_that_lacks_what_is_asked_shows_nothing(own: float, asked: float, narrower: float) -> None:
    """Shut; less than half as high; far higher, teeth would lie over each other; less wide."""
    assert max(shares(own, asked, narrower=narrower)) == 0


def test_as_it_shuts_it_gives_way_within_frames_and_comes_back_as_softly() -> None:
    mouth, last = OwnMouth(), None
    steps = []
    for opening in (0.12,) * 10 + (0.1, 0.08, 0.06, 0.02, 0.02, 0.02) + (0.12,) * 5:
        picture, face = mouth_picture(opening)
        seen = ObservedFace(face, AT, template(), opening)
        found = mouth.look(picture, seen, target(0.12), PLANE, LIGHT, 0.04)
        share = 0.0 if found is None else found[1]
        if last is not None:
            steps.append(share - last)
        last = share
    assert np.abs(steps).max() < 0.65
    assert min(steps) < -0.2 < 0.2 < max(steps)


def test_at_rest_it_forgets() -> None:
    picture, face = mouth_picture(0.12)
    seen, mouth = ObservedFace(face, AT, template(), 0.12), OwnMouth()
    first = mouth.look(picture, seen, target(0.12), PLANE, LIGHT, 0.04)
    mouth.look(picture, seen, target(0.12), PLANE, LIGHT, 0.04)
    mouth.rest()
    again = mouth.look(picture, seen, target(0.12), PLANE, LIGHT, 0.04)
    assert first is not None
    assert again is not None
    assert again[1] == pytest.approx(first[1])


def test_a_drawn_mouth_is_the_frames_own_where_there_is_one_and_else_has_the_lips_hue() -> None:
    picture, face = mouth_picture(0.12)
    seen = ObservedFace(face, AT, template(), 0.12)

    def drawn(looks: bool, frames: int = 10) -> tuple[U8 | F32, F32]:
        references, own = MouthReferences(), OwnMouth()
        for _ in range(frames):
            one = draw(picture, seen, moved, template(), LIGHT, references, own, looks, 1.0, 0.04, True)
        assert one is not None
        assert one.mouth is not None
        inside = one.mouth.cover_y > 0.95
        return one.mouth.y[inside], one.mouth.uv[one.mouth.cover_uv > 0.95]

    there = target(0.125)
    moved = TargetFace(np.ascontiguousarray(face[:, :2]), there.target, there.depth, AT, 0.125, 0.0)
    luma, colour = drawn(False)
    assert luma.max() < 0.9 * TEETH, "nobody has seen these teeth"
    assert np.median(colour[:, 1]) > 128 + 0.2 * (LIPS[1] - 128)
    luma, _ = drawn(True)
    assert 0.9 * TEETH < luma.max() < 1.1 * TEETH
    both, _ = drawn(True, frames=1)
    assert both.max() < luma.max(), "of two pictures a mean is shown, not their sum"


def test_rows_of_teeth_that_meet_fit_only_their_own_opening_bug_a_bar_between_them_or_a_second_edge() -> None:
    picture, face = mouth_picture(0.12)
    picture.y[picture.y == 30] = TEETH
    seen = ObservedFace(face, AT, template(), 0.12)
    found = []
    for asked in (0.12, 0.15, 0.09):
        mouth = OwnMouth()
        looks = [mouth.look(picture, seen, target(asked), PLANE, LIGHT, 0.04) for _ in range(20)]
        found.append(0.0 if looks[-1] is None else looks[-1][1])
    assert found[0] > 0.95
    assert max(found[1:]) < 0.15
    assert shares(0.12, 0.135)[-1] > 0.5
    assert shares(0.12, 0.09)[-1] > 0.95, "with depth between them they fit a closer one, too"


def test_a_mouth_shown_as_it_was_is_not_shaded_twice() -> None:
    """Bug: the lips' shadow was laid over a photograph that had it: teeth of luma 210 came out at 166."""
    picture, face = mouth_picture(0.05)
    texture = cut_texture(picture, face, PLANE, LIGHT)
    assert texture is not None
    again, shaded = (
        draw_mouth(texture, picture, face[:, :2], PLANE, LIGHT, softness=1.5, as_seen=seen)
        for seen in (True, False)
    )
    assert again is not None
    assert shaded is not None
    inside = again.cover_y > 0.95
    assert shaded.y[inside].mean() < again.y[inside].mean() - 10


@pytest.mark.parametrize("opening", [0.04, 0.06, 0.12, 0.2])
@pytest.mark.parametrize("met", [False, True])
def test_a_mouth_drawn_onto_its_own_opening_is_itself_bug_moved_widened_and_darkened(
    opening: float, met: bool
) -> None:
    """The rows of teeth were drawn a hundredth of a unit apart and 3 % too wide, and a made-up shadow at the
    corners: on real mouths 29 dB, now 38."""
    picture, face = mouth_picture(opening)
    if met:
        picture.y[picture.y == 30] = TEETH
    left = int(face[78, 0])
    picture.y[:, left : left + 200 : 8] //= 2
    texture = cut_texture(picture, face, PLANE, LIGHT)
    assert texture is not None
    again = draw_mouth(texture, picture, face[:, :2], PLANE, LIGHT, softness=1.0, as_seen=True)
    assert again is not None
    inside = cv2.erode((again.cover_y > 0.95).astype(np.uint8), np.ones((3, 5), np.uint8)) > 0
    true = picture.y[again.box.top : again.box.bottom, again.box.left : again.box.right]
    wrong = np.abs(again.y - true)[inside]
    assert len(wrong) > 50
    assert wrong.mean() < 3


def test_in_an_even_depth_what_rides_on_the_jaw_does_not_hop_bug_noise_chose_the_row() -> None:
    rng, mouth, rows = np.random.default_rng(0), OwnMouth(), []
    picture, face = mouth_picture(0.2)
    seen = ObservedFace(face, AT, template(), 0.2)
    clean = picture.y.copy()
    for _ in range(30):
        picture.y[:] = np.clip(clean + rng.normal(0, 2, clean.shape), 0, 255).astype(np.uint8)
        found = mouth.look(picture, seen, target(0.15), PLANE, LIGHT, 0.04)
        assert found is not None
        rows.append(found[0].split)
    raw = cut_texture(picture, face, PLANE, LIGHT)
    assert raw is not None
    # A pixel is a 160th of a unit.
    assert np.abs(np.diff(rows)).max() < 0.02


def test_where_it_cannot_be_looked_at_the_last_one_fades_bug_it_went_in_one_frame() -> None:
    """A rung was lost, or a hand came before the face: the inside was a third darker at once."""
    picture, face = mouth_picture(0.12)
    seen, mouth = ObservedFace(face, AT, template(), 0.12), OwnMouth()
    for _ in range(10):
        shown = mouth.look(picture, seen, target(0.12), PLANE, LIGHT, 0.04)
    left = [mouth.fade(0.04) for _ in range(6)]
    assert shown is not None
    assert left[0] is not None
    assert left[0][0] is shown[0]
    assert 0.2 < left[0][1] < 0.8
    assert left[-1] is None


def test_one_that_does_not_fit_takes_no_place_of_one_that_fades_bug_the_unfit_one_was_shown() -> None:
    rows, mouth = [], OwnMouth()
    for met in (False,) * 10 + (True,) * 3:
        picture, face = mouth_picture(0.12)
        if met:
            picture.y[picture.y == 30] = TEETH
        seen = ObservedFace(face, AT, template(), 0.12)
        found = mouth.look(picture, seen, target(0.09 if met else 0.12), PLANE, LIGHT, 0.04)
        rows.append(None if found is None else found[0].depth)
    assert rows[9] is not None
    assert rows[10] == rows[9]


def test_it_comes_at_every_frame_rate_bug_small_steps_never_began() -> None:
    picture, face = mouth_picture(0.12)
    seen = ObservedFace(face, AT, template(), 0.12)
    found = []
    for rate in (25, 60, 240):
        mouth = OwnMouth()
        looks = [mouth.look(picture, seen, target(0.12), PLANE, LIGHT, 1 / rate) for _ in range(rate // 2)]
        found.append(0.0 if looks[-1] is None else looks[-1][1])
    assert min(found) > 0.99


def test_one_that_only_just_fits_stays_and_does_not_come() -> None:
    """Else it would come and go with the tracker's tremble."""
    picture, face = mouth_picture(0.12)
    seen = ObservedFace(face, AT, template(), 0.12)
    asked = 0.14
    assert shares(0.12, asked)[-1] == 0
    mouth = OwnMouth()
    for _ in range(10):
        mouth.look(picture, seen, target(0.12), PLANE, LIGHT, 0.04)
    looks = [mouth.look(picture, seen, target(asked), PLANE, LIGHT, 0.04) for _ in range(10)]
    assert looks[-1] is not None
    assert looks[-1][1] > 0.95


def test_teeth_keep_their_length_as_a_mouth_shuts_fast_bug_the_eased_row_cut_through_them() -> None:
    mouth, lengths = OwnMouth(), []
    for opening in (0.2,) * 20 + (0.09,) * 3:
        picture, face = mouth_picture(opening)
        seen = ObservedFace(face, AT, template(), opening)
        found = mouth.look(picture, seen, target(opening), PLANE, LIGHT, 0.04)
        assert found is not None
        patch = draw_mouth(found[0], picture, face[:, :2], PLANE, LIGHT, softness=1.5, as_seen=True)
        assert patch is not None
        column = patch.y[:, round(float(face[13, 0])) - patch.box.left]
        lengths.append(int((column > 120).sum()))
    assert abs(lengths[-1] - lengths[19]) <= 2


def test_where_there_is_no_field_to_draw_in_nothing_old_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    picture, face = mouth_picture(0.12)
    seen, mouth = ObservedFace(face, AT, template(), 0.12), OwnMouth()
    for _ in range(10):
        mouth.look(picture, seen, target(0.12), PLANE, LIGHT, 0.04)
    monkeypatch.setattr(render, "warp_field", lambda *_, **__: None)
    nothing = draw(
        picture, seen, target(0.12), template(), LIGHT, MouthReferences(), mouth, True, 1.0, 0.04, True
    )
    assert nothing is None
    assert mouth.fade(0.0) is None


def inside(opening: float, looks: bool) -> tuple[F32, F32]:
    """Luma that is drawn into a mouth asked to open a hair farther than it does, and what was there."""
    picture, face = mouth_picture(opening)
    seen, own, references = ObservedFace(face, AT, template(), opening), OwnMouth(), MouthReferences()
    there = target(opening + 0.002)
    moved = TargetFace(np.ascontiguousarray(face[:, :2]), there.target, there.depth, AT, there.opening, 0.0)
    for _ in range(10):
        one = draw(picture, seen, moved, template(), LIGHT, references, own, looks, 1.0, 0.04, True)
    assert one is not None
    assert one.mouth is not None
    box, where = one.mouth.box, one.mouth.cover_y > 0.95
    true = picture.y[box.top : box.bottom, box.left : box.right]
    return np.asarray(one.mouth.y[where], np.float32), np.asarray(true[where], np.float32)


def test_a_slit_shows_its_own_pixels_in_their_own_light() -> None:
    drawn, true = inside(0.05, looks=True)
    assert np.median(np.abs(drawn - true)) < 4


def test_a_kept_mouth_is_as_dark_as_the_persons_usually_is(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = inside(0.05, looks=False)
    monkeypatch.setattr(MouthReferences, "luma_at", lambda *_: (0.0, 1.0))
    dark, _ = inside(0.05, looks=False)
    assert dark.mean() < plain.mean() - 5
