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

from retalk_models.easing import ease_each
from retalk_models.face.composite import Patch
from retalk_models.face.geometry import LOWER_LIP, UPPER_LIP
from retalk_models.picture import F32, Box, Picture
from retalk_models.talkin.mouth_texture import MouthTexture, Opening, TeethPlane, even_box
from retalk_models.talkin.mouth_tone import FLESH, black_of, coloured, glow, halved, skin_of

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

_NARROW, _SHADED = 0.07, 0.35
"""A gap lower than this (plane units) lies in the shadow of the lips, and how much of its light is left to
the lowest: less of it and a slit is blacker and harder than anything else in a face."""

_DIMMED = 0.4
"""How much of its light what is drawn loses at most where the person's mouth usually is darker."""

_UNDER_LIP = (1.4, 0.3)
"""Of that, how much it loses under the upper lip and at the lower one: evenly dim teeth look dirty."""

_CAST_REACH = 0.05
"""How far down the upper teeth's shadow falls, plane units."""


def _seam_tone(texture: MouthTexture, light: F32, tint: F32) -> F32:
    """(3,) Y, U, V of the line between shut lips: lips in their own shadow, as dark as what is behind.

    tint: (2,) how much other than the texture's this light's U and V are.
    """
    share = _SEAM_LUMA[0] + (_SEAM_LUMA[1] - _SEAM_LUMA[0]) * glow(texture.dark, texture.light)
    luma = np.array(max(16 + share * max(0.0, float(light[0]) - 16), black_of(light)), np.float32)
    lips = (texture.dark[1:] - 128) / FLESH + tint
    return np.array([luma, *(128 + coloured(luma, light) * lips)], np.float32)


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
    as_seen: bool = False,
) -> Patch | None:
    """Fill the opening of the target points, (478, 2) pixels, with a texture.

    light: (4,) as in MouthTexture, of this frame. softness: the edge's width in pixels.
    seam: 0..1, how much of a shadow to lay between shut lips, where the frame's own lips are apart and theirs
    is not there. fine: match light and colour to the frame. usual: how light the person's mouth is inside, so
    far open, over the skin's, and how sure that is, as of `InnerLight`.
    as_seen: the texture has the lips' shadow of an opening like this one already.
    Returns None where there is no opening to fill.
    """
    outline = points[[*UPPER_LIP, *LOWER_LIP], :2]
    pad = 1 + softness
    box = even_box(outline.min(axis=0) - pad, outline.max(axis=0) + pad, picture)
    if box is None:
        return None
    opening = Opening.of(points, plane)
    at = _placed(opening, texture, plane, box, softness, seam, as_seen)
    if at.cover.max() <= 0:
        return None
    gain = (
        1.0
        if not fine
        else float(np.clip((light[0] - 16) / max(8.0, float(texture.light[0]) - 16), 0.5, 2.0))
    )
    tint = np.clip(light[1:3] - texture.light[1:3], -12, 12) * float(fine)
    luma, chroma = _seen(texture, at.x, at.skull)
    if at.jaw_share.max() > 0:
        # What is seen jumps where the upper teeth bite over the lower ones: each is looked up by itself.
        luma_below, chroma_below = _seen(texture, at.x, at.jaw)
        luma = luma + at.jaw_share * (luma_below - luma)
        chroma = chroma + halved(at.jaw_share)[..., None] * (chroma_below - chroma)
    rise = _TONGUE * glow(texture.dark, texture.light)
    hollow = texture.dark[0] + at.tongue * (rise * max(0.0, float(texture.light[0]) - 16))
    deep = 128 + coloured(halved(hollow), texture.light) * (texture.dark[1:] - 128)
    lit = luma + at.unseen * (hollow - luma)
    colour = chroma + halved(at.unseen)[..., None] * (deep - chroma)
    seam_tone = _seam_tone(texture, light, tint)
    drawn = 16 + (lit - 16) * gain
    shade = np.asarray(at.shade * (1 - at.under * _dimmed(drawn, at, light, usual)), np.float32)
    drawn -= np.maximum(drawn - black_of(light), 0) * (1 - shade)
    drawn += at.shut * (seam_tone[0] - drawn)
    colour = colour + coloured(halved(lit), texture.light) * tint
    # What light there is in the shadow of the lips has gone through them.
    lips = 128 + coloured(halved(drawn), light) * ((texture.dark[1:] - 128) / FLESH + tint)
    colour += FLESH * halved(1 - shade)[..., None] * (lips - colour)
    colour += halved(at.shut)[..., None] * (seam_tone[1:] - colour)
    return Patch(
        box,
        np.asarray(drawn, np.float32),
        np.asarray(colour, np.float32),
        at.cover,
        halved(at.cover),
    )


def _dimmed(drawn: F32, at: _Place, light: F32, usual: tuple[float, float]) -> float:
    """How much of its light what is drawn loses, to be no lighter than the person's mouth usually is."""
    luma, sure = usual
    black = black_of(light)
    lit = float((np.maximum(drawn - black, 0) * at.shade * at.cover).sum()) / float(at.cover.sum())
    asked = 16 + luma * skin_of(light) - black
    return sure * float(np.clip(1 - asked / max(1.0, lit), 0, _DIMMED))


def _seen(texture: MouthTexture, x: F32, y: F32) -> tuple[F32, F32]:
    """(h, w) luma and (h / 2, w / 2, 2) chroma of a texture at plane coordinates."""
    place = texture.plane.to_pixels(np.stack([x, y], axis=-1)) - np.array(texture.corner, np.float32)
    luma = cv2.remap(texture.y, place, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    half = (halved(place) - 0.5) / 2
    chroma = cv2.remap(texture.uv, half, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return luma.astype(np.float32), chroma.astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Of every pixel of a box, (h, w) each: what of a reference it shows, and in which light.

    x: plane x in the reference. skull, jaw: plane y there of what stays with the skull and of what rides on
    the jaw. jaw_share: how much of the pixel shows the latter. shade: how much light reaches it. under: how
    much more than its part of any further shadow falls on it. unseen: how far it was never seen. tongue: how
    far the tongue rises in what was not. shut: how far the lips are shut there. cover: how much of the pixel
    lies in the opening.
    """

    x: F32
    skull: F32
    jaw: F32
    jaw_share: F32
    shade: F32
    under: F32
    unseen: F32
    tongue: F32
    shut: F32
    cover: F32


def _placed(
    opening: Opening,
    texture: MouthTexture,
    plane: TeethPlane,
    box: Box,
    softness: float,
    seam: float,
    as_seen: bool,
) -> _Place:
    held = texture.opening
    columns, rows = np.meshgrid(
        np.arange(box.left, box.right, dtype=np.float32), np.arange(box.top, box.bottom, dtype=np.float32)
    )
    inverse = plane.inverse()
    dx, dy = columns - plane.offset[0], rows - plane.offset[1]
    x, y = inverse[0, 0] * dx + inverse[0, 1] * dy, inverse[1, 0] * dx + inverse[1, 1] * dy

    # Teeth do not get wider with the lips; only an opening wider than the reference's is squeezed into it.
    middle, held_middle = (opening.left + opening.right) / 2, (held.left + held.right) / 2
    room = (1.0 if as_seen else 0.97) * (held.right - held.left)
    squeeze = min(1.0, room / max(1e-3, opening.right - opening.left))
    across = np.clip(held_middle + (x - held_middle) * squeeze, held.left, held.right)

    top, bottom = np.interp(x, *opening.upper.T), np.interp(x, *opening.lower.T)
    inset = 0.006
    held_top = np.interp(across, *held.upper.T) + inset
    held_bottom = np.interp(across, *held.lower.T) - inset

    # What is above the split stands still with the skull; a lip raised above the reference's takes it along
    # rather than baring what was never seen. What is below rides on the jaw. The upper part bites over.
    lift = np.minimum(0.0, top - held_top + inset)
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
    hollow = ease_each((y - upper_end) / edge + 0.5) * (1 - ease_each((y - lower_start) / edge + 0.5))
    unseen = hollow * ease_each((lower_start - upper_end) / 0.02)
    aside = (x - middle) / (_TONGUE_WIDTH * max(1e-3, opening.right - opening.left))
    # Its back lies in the dark, its tip in the shadow of the lower teeth; of a low one only that is seen.
    tall = lower_start - upper_end
    down = (y - upper_end) / np.maximum(tall, 1e-3)
    tongue = ease_each(down / 0.7) * ease_each((1.25 - down) / 0.5) * ease_each(1 - aside * aside)
    tongue *= ease_each((tall - _TONGUE_TALL[0]) / (_TONGUE_TALL[1] - _TONGUE_TALL[0]))
    gap = np.maximum(bottom - top, 0)
    shadow = _SHADED + (1 - _SHADED) * ease_each(gap / _NARROW)
    depth = np.clip((y - top) / 0.02, 0, 1)
    sides = np.clip(np.minimum(x - opening.left, opening.right - x) / 0.06, 0, 1)
    shade = shadow * (0.75 + 0.25 * depth) * (0.75 + 0.25 * sides)
    shut = 1 - ease_each(gap / _SEAM)
    if as_seen:
        held_gap = np.maximum(held_bottom - held_top + 2 * inset, 0)
        shade = np.minimum(1, shadow / (_SHADED + (1 - _SHADED) * ease_each(held_gap / _NARROW)))
        shut = np.maximum(0, shut - (1 - ease_each(held_gap / _SEAM)))
    if texture.cast:
        left_out = texture.cast * ease_each((upper_end - lower_start) / 0.04)
        shade *= 1 - left_out * jaw * (1 - ease_each((y - upper_end) / _CAST_REACH))

    inside = np.minimum(y - top, bottom - y) * (unit / softness) + 0.5 * seam
    between_corners = np.minimum(x - opening.left, opening.right - x) * (unit / softness)
    cover = np.clip(np.minimum(inside, between_corners) + 0.5, 0, 1) * np.clip(
        gap * (unit / softness) + _SEAM_COVER * seam, 0, 1
    )
    under = _UNDER_LIP[0] + (_UNDER_LIP[1] - _UNDER_LIP[0]) * np.clip((y - top) / np.maximum(gap, 1e-3), 0, 1)
    return _Place(
        x=np.asarray(across, np.float32),
        skull=np.asarray(above, np.float32),
        jaw=np.asarray(below, np.float32),
        jaw_share=np.asarray(jaw, np.float32),
        shade=np.asarray(shade, np.float32),
        under=np.asarray(under, np.float32),
        unseen=np.asarray(unseen, np.float32),
        tongue=np.asarray(tongue, np.float32),
        shut=np.asarray(shut, np.float32),
        cover=np.asarray(cover, np.float32),
    )


def _split_line(texture: MouthTexture, middle: float, top: F32, bottom: F32) -> F32:
    """The split's plane y where the reference's opening runs from top to bottom: level, but bent with the
    lips."""
    upper = float(np.interp(middle, *texture.opening.upper.T))
    lower = float(np.interp(middle, *texture.opening.lower.T))
    share = float(np.clip((texture.split - upper) / max(1e-3, lower - upper), 0, 1))
    bent = top + share * (bottom - top)
    return np.asarray((1 - _BEND) * texture.split + _BEND * bent, np.float32)
