"""The inside of the mouth: carried over from a reference of the same person, or drawn where there is none
yet.

Teeth ride on the skull, so a reference is placed by pose, on a plane at the depth of the teeth, and the
target's lips act as a curtain in front of it; only what the reference's own lips hid is stretched to.
Plane coordinates are canonical x and y: 1 unit = the distance between the outer eye corners.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from retalk_models.face.composite import Patch
from retalk_models.face.geometry import INNER_LIPS, LOWER_LIP, OUTER_LIPS, UPPER_LIP, Pose
from retalk_models.picture import F32, U8, Box, Flags, Picture

TEETH_DEPTH = 0.03
"""How far behind the inner lips the front teeth stand, canonical units."""

_BEND = 0.6
"""How much the line between what stays and what moves follows the lips, the rest of it being level."""

_SEAM = 0.045
"""A gap lower than this (plane units) is no opening but the line between the lips."""

_SEAM_COVER = 0.85
"""How dark the line between shut lips is drawn over them."""

_SEAM_LUMA = (0.12, 0.32)
"""Luma of that line, of the skin's, in who has a black mouth and in others."""

_BITE_PX = 1.5
"""How softly the upper part ends over the lower one, pixels."""

_TONGUE = 0.22
"""Luma that the tongue adds to the unlit depth where nothing was ever seen, of the skin's."""

_TONGUE_WIDTH = 0.45
"""How far from the middle it reaches, of the opening's width: at the cheeks there is none."""

_TONGUE_TALL = (0.03, 0.12)
"""How high (plane units) what was never seen is when a tongue begins to show in it, and shows in full: in
less it is a stripe."""

_FLESH = 0.6
"""How much of the lips' colour the inside of a mouth has; median of 15 people of the training clips."""

_COLOURED = 0.3
"""Luma, of the skin's, from which on a place in a mouth shows all of its colour: what is black has none."""

_UNDER = 0.55
"""How far above black a mouth's depth stays, of how far the face's darkest spots do: in a pale picture from a
cheap camera a black hole is nobody's mouth."""

_NARROW, _SHADED = 0.07, 0.35
"""A gap lower than this (plane units) lies in the shadow of the lips, and how much of its light is left to
the lowest: less of it and a slit is blacker and harder than anything else in a face."""

_DIMMEST = 0.6
"""How much of its light what is drawn keeps at least where the person's mouth usually is darker."""

_CAST_REACH = 0.05
"""How far down the upper teeth's shadow falls, plane units."""


@dataclass(frozen=True, slots=True, eq=False)
class TeethPlane:
    """The affine map between plane coordinates and pixels: pixel = matrix @ (x, y) + offset."""

    matrix: F32
    offset: F32

    @classmethod
    def of(cls, pose: Pose, depth: float) -> TeethPlane:
        """The plane at a canonical depth under a pose."""
        matrix = pose.scale * pose.rotation[:2, :2]
        offset = pose.scale * pose.rotation[:2, 2] * depth + pose.translation[:2]
        return cls(np.asarray(matrix, np.float32), np.asarray(offset, np.float32))

    def to_pixels(self, places: F32) -> F32:
        return np.asarray(places @ self.matrix.T + self.offset, np.float32)

    def to_plane(self, pixels: F32) -> F32:
        return np.asarray((pixels - self.offset) @ self.inverse().T, np.float32)

    def inverse(self) -> F32:
        """(2, 2) the matrix from pixels to plane. A plane seen edge-on has none; it is taken as nearly so."""
        (a, b), (c, d) = self.matrix.astype(float)
        area = a * d - b * c
        area = area if abs(area) > 1e-6 else 1e-6
        return np.array([[d, -b], [-c, a]], np.float32) / np.float32(area)


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """The lips' opening in plane coordinates: upper and lower (11, 2), each by increasing x, corners
    shared."""

    upper: F32
    lower: F32

    @classmethod
    def of(cls, points: F32, plane: TeethPlane) -> Opening:
        """From (478, 2) pixels."""
        return cls(
            _increasing(plane.to_plane(points[list(UPPER_LIP), :2])),
            _increasing(plane.to_plane(points[list(LOWER_LIP), :2])),
        )

    @property
    def left(self) -> float:
        return float(self.upper[0, 0])

    @property
    def right(self) -> float:
        return float(self.upper[-1, 0])

    @property
    def height(self) -> float:
        """The gap in the middle third, plane units."""
        return float((self.lower[4:7, 1] - self.upper[4:7, 1]).mean())


def _increasing(line: F32) -> F32:
    line = line.copy()
    line[:, 0] = np.maximum.accumulate(line[:, 0] + 1e-5 * np.arange(len(line), dtype=np.float32))
    return line


@dataclass(frozen=True, slots=True, eq=False)
class MouthTexture:
    """Pixels to fill an opening with.

    y: (h, w) and uv: (h / 2, w / 2, 2) uint8, a crop whose top left sample is pixel `corner` of `plane`'s
    picture.
    light: (4,) mean Y, U, V of the skin round the mouth where it was taken, Y of the face's darkest spots.
    split: the plane y between what stays with the skull and what rides on the jaw: the darkest row.
    depth: 0..1, how dark it is there; 0 where the rows of teeth meet. dark: (3,) the depth behind them, as
    `dark_of` has it. cast: 0..1, how dark a shadow the upper teeth throw on what a closer opening brings up
    to them; a photograph has its own.
    """

    y: U8
    uv: U8
    corner: tuple[int, int]
    plane: TeethPlane
    opening: Opening
    light: F32
    split: float
    depth: float
    dark: F32
    cast: float = 0.0

    def over_skin(self, luma: U8 | F32) -> F32:
        """Luma of any shape, from black on, over that of the skin where this was taken."""
        return over_skin(luma, self.light)


def over_skin(luma: U8 | F32, light: F32) -> F32:
    """Luma of any shape, from black on, over that of the skin in this light."""
    return np.asarray((luma.astype(np.float32) - 16) / np.float32(_skin(light)), np.float32)


def _skin(light: F32) -> float:
    """Luma of the skin from black on; in the dark a little more, for it divides."""
    return max(24.0, float(light[0]) - 16)


def cut_texture(picture: Picture, points: F32, plane: TeethPlane, light: F32) -> MouthTexture | None:
    """A reference texture from a frame: the opening of its (478, 2 or 3) points with a margin; None off
    frame."""
    lips = points[[*UPPER_LIP, *LOWER_LIP], :2]
    margin = 0.05 * float(np.linalg.norm(plane.matrix[:, 0])) + 2
    box = _even_box(lips.min(axis=0) - margin, lips.max(axis=0) + margin, picture)
    if box is None:
        return None
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    half_rows, half_columns = slice(box.top // 2, box.bottom // 2), slice(box.left // 2, box.right // 2)
    y = picture.y[rows, columns].copy()
    uv = np.stack([picture.u[half_rows, half_columns], picture.v[half_rows, half_columns]], axis=-1)
    opening = Opening.of(points, plane)
    corner = (box.left, box.top)
    split, depth, luma = _find_split(y, corner, plane, opening, float(light[0]))
    dark = dark_of(light, lip_colour(picture, points))
    dark[0] = min(luma, dark[0])
    return MouthTexture(y, uv, corner, plane, opening, light, split, depth, dark)


def inside_of(texture: MouthTexture) -> Flags:
    """(h, w) which samples of a texture lie in its opening."""
    upper, lower = (texture.plane.to_pixels(line) for line in (texture.opening.upper, texture.opening.lower))
    return _between(upper, lower, texture.corner, texture.y.shape)


def seen_inside(picture: Picture, points: F32) -> U8 | None:
    """(n,) luma of what a frame shows between the lips of its (478, 2 or 3) points; None off frame."""
    upper, lower = points[list(UPPER_LIP), :2], points[list(LOWER_LIP), :2]
    both = np.concatenate([upper, lower])
    box = _even_box(both.min(axis=0), both.max(axis=0), picture)
    if box is None:
        return None
    part = picture.y[box.top : box.bottom, box.left : box.right]
    return part[_between(upper, lower, (box.left, box.top), part.shape)]


def _between(upper: F32, lower: F32, corner: tuple[int, int], shape: tuple[int, ...]) -> Flags:
    """Which samples of a part of a frame lie between two lines of (11, 2) pixels that share their ends."""
    mask = np.zeros(shape, np.uint8)
    outline = np.concatenate([upper, lower[-2:0:-1]]) - np.array(corner, np.float32)
    cv2.fillPoly(mask, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_8, 4)
    return np.asarray(mask > 0, np.bool_)


def halved(plane: F32) -> F32:
    """(h, w) or (h, w, n) at half the size, each sample the mean of four."""
    return np.asarray(cv2.resize(plane, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.float32)


def lip_colour(picture: Picture, points: F32) -> F32:
    """(2,) U and V of a face's lips, midway between their outlines; grey where none of it is in the picture.

    points: (478, 2 or 3) pixels.
    """
    middle = (points[list(INNER_LIPS), :2] + points[list(OUTER_LIPS), :2]) / 2
    places = np.rint((middle - 0.5) / 2).astype(int)
    within = ((places >= 0) & (places < picture.u.shape[::-1])).all(axis=1)
    if not within.any():
        return np.full(2, 128, np.float32)
    column, row = places[within].T
    return np.array([np.median(picture.u[row, column]), np.median(picture.v[row, column])], np.float32)


def dark_of(light: F32, lips: F32) -> F32:
    """(3,) a mouth's depth in this light: Y where no light falls, U and V where some does.

    lips: (2,) their U and V. What is inside a mouth has the lips' hue more than the skin's.
    """
    return np.array([_unlit(light), *(128 + _FLESH * (lips - 128))], np.float32)


def _unlit(light: F32) -> float:
    return max(16 + 0.1 * max(0.0, float(light[0]) - 16), black_of(light))


def coloured(luma: F32, light: F32) -> F32:
    """(..., 1) 0..1, how much of its colour a place inside a mouth shows, by its luma of any shape."""
    lit = (luma - 16) / (_COLOURED * _skin(light))
    return np.asarray(np.sqrt(np.clip(lit, 0, 1)), np.float32)[..., None]


def _glow(dark: F32, light: F32) -> float:
    """0..1, how much a mouth's depth has of the light that a depth usually has.

    Where a person's own is black, a tongue in the part that was never seen would be a stripe in it.
    """
    return float(np.clip((dark[0] - 16) / max(1.0, _unlit(light) - 16), 0, 1))


def black_of(light: F32) -> float:
    """The least luma that a picture in this light may have in a mouth: a little under the face's darkest."""
    return 16 + _UNDER * max(0.0, float(light[3]) - 16)


def _seam_tone(texture: MouthTexture, light: F32, tint: F32) -> F32:
    """(3,) Y, U, V of the line between shut lips: lips in their own shadow, as dark as what is behind.

    tint: (2,) how much other than the texture's this light's U and V are.
    """
    share = _SEAM_LUMA[0] + (_SEAM_LUMA[1] - _SEAM_LUMA[0]) * _glow(texture.dark, texture.light)
    luma = np.array(max(16 + share * max(0.0, float(light[0]) - 16), black_of(light)), np.float32)
    lips = (texture.dark[1:] - 128) / _FLESH + tint
    return np.array([luma, *(128 + coloured(luma, light) * lips)], np.float32)


def _find_split(
    y: U8, corner: tuple[int, int], plane: TeethPlane, opening: Opening, skin: float
) -> tuple[float, float, float]:
    """The plane y of the darkest row in the middle of an opening, how dark it is, 0..1, and its luma."""
    middle, half = (opening.left + opening.right) / 2, (opening.right - opening.left) / 2
    across = middle + half * np.linspace(-0.35, 0.35, 9, dtype=np.float32)
    top, bottom = np.interp(middle, *opening.upper.T), np.interp(middle, *opening.lower.T)
    # The lips' own shadow lies along the edges.
    down = np.linspace(top + 0.22 * (bottom - top), bottom - 0.06 * (bottom - top), 24)
    places = np.stack(np.meshgrid(across, down), axis=-1)
    at = plane.to_pixels(np.asarray(places, np.float32)) - np.array(corner, np.float32)
    seen = cv2.remap(y, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    profile = cv2.blur(np.median(seen, axis=1).reshape(-1, 1), (1, 3), borderType=cv2.BORDER_REPLICATE)[:, 0]
    row = int(np.argmin(profile))
    level = (float(profile[row]) - 16) / max(8.0, skin - 16)
    return float(down[row]), float(np.clip((0.6 - level) / 0.25, 0, 1)), float(profile[row])


def draw_mouth(
    texture: MouthTexture,
    picture: Picture,
    points: F32,
    plane: TeethPlane,
    light: F32,
    softness: float,
    seam: float = 0.0,
    fine: bool = True,
    usual: tuple[float, float] = (0.0, 0.0),
) -> Patch | None:
    """Fill the opening of the target points, (478, 2) pixels, with a texture.

    light: (4,) as in MouthTexture, of this frame. softness: the edge's width in pixels.
    seam: 0..1, how much of a shadow to lay between shut lips, where the frame's own lips are apart and theirs
    is not there. fine: match light and colour to the frame. usual: how light the person's mouth is inside, so
    far open, over the skin's, and how sure that is, as of `InnerLight`.
    Returns None where there is no opening to fill.
    """
    outline = points[[*UPPER_LIP, *LOWER_LIP], :2]
    pad = 1 + softness
    box = _even_box(outline.min(axis=0) - pad, outline.max(axis=0) + pad, picture)
    if box is None:
        return None
    opening = Opening.of(points, plane)
    x, upper, lower, jaw, shade, unseen, tongue, shut, cover = _reference_place(
        opening, texture, plane, box, softness, seam
    )
    if cover.max() <= 0:
        return None
    gain = (
        1.0
        if not fine
        else float(np.clip((light[0] - 16) / max(8.0, float(texture.light[0]) - 16), 0.5, 2.0))
    )
    tint = np.clip(light[1:3] - texture.light[1:3], -12, 12) * float(fine)
    luma, chroma = _seen(texture, x, upper)
    if jaw.max() > 0:
        # What is seen jumps where the upper teeth bite over the lower ones: each is looked up by itself.
        luma_below, chroma_below = _seen(texture, x, lower)
        luma = luma + jaw * (luma_below - luma)
        jaw = halved(jaw)
        chroma = chroma + jaw[..., None] * (chroma_below - chroma)
    rise = _TONGUE * _glow(texture.dark, texture.light)
    hollow = texture.dark[0] + tongue * (rise * max(0.0, float(texture.light[0]) - 16))
    deep = 128 + coloured(halved(hollow), texture.light) * (texture.dark[1:] - 128)
    lit = luma + unseen * (hollow - luma)
    colour = chroma + halved(unseen)[..., None] * (deep - chroma)
    seam_tone = _seam_tone(texture, light, tint)
    drawn = 16 + (lit - 16) * gain
    shade *= _light_left(drawn, shade, cover, light, usual)
    drawn -= np.maximum(drawn - black_of(light), 0) * (1 - shade)
    drawn += shut * (seam_tone[0] - drawn)
    colour = colour + coloured(halved(lit), texture.light) * tint
    # What light there is in the shadow of the lips has gone through them.
    lips = 128 + coloured(halved(drawn), light) * ((texture.dark[1:] - 128) / _FLESH + tint)
    colour += _FLESH * halved(1 - shade)[..., None] * (lips - colour)
    colour += halved(shut)[..., None] * (seam_tone[1:] - colour)
    return Patch(
        box,
        np.asarray(drawn, np.float32),
        np.asarray(colour, np.float32),
        cover,
        halved(cover),
    )


def _light_left(drawn: F32, shade: F32, cover: F32, light: F32, usual: tuple[float, float]) -> np.float32:
    """How much of its light what is drawn keeps, to be no lighter than the person's mouth usually is."""
    luma, sure = usual
    black = black_of(light)
    lit = float((np.maximum(drawn - black, 0) * shade * cover).sum()) / float(cover.sum())
    asked = 16 + luma * _skin(light) - black
    return np.float32(1 + sure * (float(np.clip(asked / max(1.0, lit), _DIMMEST, 1)) - 1))


def _seen(texture: MouthTexture, x: F32, y: F32) -> tuple[F32, F32]:
    """(h, w) luma and (h / 2, w / 2, 2) chroma of a texture at plane coordinates."""
    place = texture.plane.to_pixels(np.stack([x, y], axis=-1)) - np.array(texture.corner, np.float32)
    luma = cv2.remap(texture.y, place, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    half = (halved(place) - 0.5) / 2
    chroma = cv2.remap(texture.uv, half, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return luma.astype(np.float32), chroma.astype(np.float32)


def _even_box(low: F32, high: F32, picture: Picture) -> Box | None:
    left, top = max(0, int(low[0])) & ~1, max(0, int(low[1])) & ~1
    right = min(picture.padded_width, (int(high[0]) + 3) & ~1)
    bottom = min(picture.padded_height, (int(high[1]) + 3) & ~1)
    if right - left < 4 or bottom - top < 4:
        return None
    return Box(left, top, right, bottom)


def _reference_place(
    opening: Opening, texture: MouthTexture, plane: TeethPlane, box: Box, softness: float, seam: float
) -> tuple[F32, F32, F32, F32, F32, F32, F32, F32, F32]:
    """For every pixel of the box: plane x in the reference, plane y there of what stays with the skull and of
    what rides on the jaw, how much of the pixel shows the latter, a shade factor, how far it was never seen,
    how far the tongue rises in what was not, how far the lips are shut there, and how much of the pixel lies
    in the opening."""
    held = texture.opening
    columns, rows = np.meshgrid(
        np.arange(box.left, box.right, dtype=np.float32), np.arange(box.top, box.bottom, dtype=np.float32)
    )
    inverse = plane.inverse()
    dx, dy = columns - plane.offset[0], rows - plane.offset[1]
    x, y = inverse[0, 0] * dx + inverse[0, 1] * dy, inverse[1, 0] * dx + inverse[1, 1] * dy

    # Teeth do not get wider with the lips; only an opening wider than the reference's is squeezed into it.
    middle, held_middle = (opening.left + opening.right) / 2, (held.left + held.right) / 2
    squeeze = min(1.0, 0.97 * (held.right - held.left) / max(1e-3, opening.right - opening.left))
    across = np.clip(
        held_middle + (x - middle) * squeeze + (middle - held_middle) * min(1.0, squeeze),
        held.left,
        held.right,
    )

    top, bottom = np.interp(x, *opening.upper.T), np.interp(x, *opening.lower.T)
    inset = 0.006
    held_top = np.interp(across, *held.upper.T) + inset
    held_bottom = np.interp(across, *held.lower.T) - inset

    # What is above the split stands still with the skull; a lip raised above the reference's takes it along
    # rather than baring what was never seen. What is below rides on the jaw. The upper part bites over.
    lift = np.minimum(0.0, top - held_top)
    drop = float(np.interp(middle, *opening.lower.T) - np.interp(held_middle, *held.lower.T))
    split = _split_line(texture, held_middle, held_top, held_bottom)
    upper_end, lower_start = split + lift, split + drop
    above = np.clip(np.minimum(y - lift, split), held_top, held_bottom)
    below = np.clip(np.maximum(y - drop, split), held_top, held_bottom)
    unit = 1 / float(np.sqrt(abs(inverse[0, 0] * inverse[1, 1] - inverse[0, 1] * inverse[1, 0])))
    jaw = np.clip((y - upper_end) * (unit / _BITE_PX) + 0.5, 0, 1)
    if not (upper_end > lower_start).any():
        # Nothing jumps, so one look does.
        above, jaw = np.where(y <= upper_end, above, below), np.zeros_like(jaw)
    edge = 0.014
    hollow = _smooth((y - upper_end) / edge + 0.5) * (1 - _smooth((y - lower_start) / edge + 0.5))
    unseen = hollow * _smooth((lower_start - upper_end) / 0.02)
    aside = (x - middle) / (_TONGUE_WIDTH * max(1e-3, opening.right - opening.left))
    # Its back lies in the dark, its tip in the shadow of the lower teeth; of a low one only that is seen.
    tall = lower_start - upper_end
    down = (y - upper_end) / np.maximum(tall, 1e-3)
    tongue = _smooth(down / 0.7) * _smooth((1.25 - down) / 0.5) * _smooth(1 - aside * aside)
    tongue *= _smooth((tall - _TONGUE_TALL[0]) / (_TONGUE_TALL[1] - _TONGUE_TALL[0]))
    gap = np.maximum(bottom - top, 0)
    shadow = _SHADED + (1 - _SHADED) * _smooth(gap / _NARROW)
    depth = np.clip((y - top) / 0.02, 0, 1)
    sides = np.clip(np.minimum(x - opening.left, opening.right - x) / 0.06, 0, 1)
    shade = shadow * (0.75 + 0.25 * depth) * (0.75 + 0.25 * sides)
    if texture.cast:
        left_out = texture.cast * _smooth((upper_end - lower_start) / 0.04)
        shade *= 1 - left_out * jaw * (1 - _smooth((y - upper_end) / _CAST_REACH))

    inside = np.minimum(y - top, bottom - y) * (unit / softness) + 0.5 * seam
    between_corners = np.minimum(x - opening.left, opening.right - x) * (unit / softness)
    cover = np.clip(np.minimum(inside, between_corners) + 0.5, 0, 1) * np.clip(
        gap * (unit / softness) + _SEAM_COVER * seam, 0, 1
    )
    return (
        np.asarray(across, np.float32),
        np.asarray(above, np.float32),
        np.asarray(below, np.float32),
        np.asarray(jaw, np.float32),
        np.asarray(shade, np.float32),
        np.asarray(unseen, np.float32),
        np.asarray(tongue, np.float32),
        np.asarray(1 - _smooth(gap / _SEAM), np.float32),
        np.asarray(cover, np.float32),
    )


def _split_line(texture: MouthTexture, middle: float, top: F32, bottom: F32) -> F32:
    """The split's plane y where the reference's opening runs from top to bottom: level, but bent with the
    lips."""
    upper = float(np.interp(middle, *texture.opening.upper.T))
    lower = float(np.interp(middle, *texture.opening.lower.T))
    share = float(np.clip((texture.split - upper) / max(1e-3, lower - upper), 0, 1))
    bent = top + share * (bottom - top)
    return np.asarray((1 - _BEND) * texture.split + _BEND * bent, np.float32)


def _smooth(value: F32) -> F32:
    """0 below 0, 1 above 1, smooth between."""
    share = np.clip(value, 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)
