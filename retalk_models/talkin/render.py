"""Draws one dubbed frame: warps the frame's own face, fills the mouth from a reference, and lays both in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from retalk_models.face.composite import Patch, mix_patches
from retalk_models.face.geometry import INNER_LIPS, ObservedFace
from retalk_models.face.warp import WarpField, warp_field
from retalk_models.picture import F32, Box, Picture
from retalk_models.talkin.mouth import draw_mouth
from retalk_models.talkin.mouth_texture import TEETH_DEPTH, Opening, TeethPlane
from retalk_models.talkin.mouth_tone import lip_colour
from retalk_models.talkin.own_mouth import OwnMouth
from retalk_models.talkin.references import MouthReferences
from retalk_models.talkin.target import TargetFace

_FEATHER = 0.08
"""Width of the soft border over the face's width."""

_EDGE_SOFTNESS = 0.007
"""Width of the lips' inner edge over the face's width."""

_ALL = 0.96
"""From this share of a frame's own mouth on nothing is seen of another."""


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """What is to be laid into a frame: the face's motion and the inside of the mouth with its opacity.

    target: the geometry that it was drawn for, where it was drawn for this very frame.
    """

    field: WarpField
    mouth: Patch | None
    opacity: float
    target: TargetFace | None = None

    def shifted(self, shift: F32, frame_size: tuple[int, int]) -> Drawing | None:
        """The same drawing moved by whole pairs of pixels; None where it would leave the frame."""
        dx, dy = (2 * int(np.rint(v / 2)) for v in shift)
        field_box, mouth = _move(self.field.box, dx, dy), self.mouth
        if mouth is not None:
            mouth = replace(mouth, box=_move(mouth.box, dx, dy))
        width, height = frame_size
        if field_box.left < 0 or field_box.top < 0 or field_box.right > width or field_box.bottom > height:
            return None
        close = self.field.close
        if close is not None:
            close = replace(close, box=_move(close.box, dx, dy))
        return Drawing(replace(self.field, box=field_box, close=close), mouth, self.opacity)


def _move(box: Box, dx: int, dy: int) -> Box:
    return Box(box.left + dx, box.top + dy, box.right + dx, box.bottom + dy)


def face_width(points: F32) -> float:
    """Distance between the cheeks' outer ends (234, 454), pixels."""
    return float(np.linalg.norm(points[234, :2] - points[454, :2]))


def teeth_plane(face: ObservedFace, neutral: F32) -> TeethPlane:
    """Where the front teeth stand in this frame. neutral: (478, 3) canonical."""
    return TeethPlane.of(face.pose, float(neutral[[13, 14], 2].mean()) + TEETH_DEPTH)


def draw(
    picture: Picture,
    face: ObservedFace,
    target: TargetFace,
    neutral: F32,
    light: F32,
    references: MouthReferences,
    own: OwnMouth,
    looks: bool,
    strength: float,
    elapsed_s: float,
    fine: bool,
) -> Drawing | None:
    """The drawing for one frame, or None where nothing is to change.

    light: (4,) as in MouthTexture. own: says how much of the frame's own mouth is shown. looks: whether it
    may look at this frame's, the face being where the frame has it. strength: 0..1. fine: with light and
    detail matched.
    """
    width = face_width(face.points)
    field = warp_field(
        target.source,
        target.target,
        target.depth,
        (picture.padded_width, picture.padded_height),
        feather=max(2.0, _FEATHER * width),
        close=INNER_LIPS if fine and target.apart > 0 else (),
    )
    if field is None:
        own.rest()
        return None
    plane = teeth_plane(face, neutral)
    canonical = TeethPlane(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    lips = partial(lip_colour, picture, face.points)
    chosen = references.choose(
        face.pose, target.opening, Opening.of(neutral, canonical), light, lips, elapsed_s
    )
    mouth: Patch | None = None
    if target.opening <= 0 and target.apart <= 0:
        own.rest()
    else:
        softness = max(1.0, _EDGE_SOFTNESS * width)
        place = (picture, target.target, plane, light, softness, target.apart, fine)
        seen = own.look(picture, face, target, plane, light, elapsed_s) if looks else own.fade(elapsed_s)
        share = seen[1] if seen is not None else 0.0
        usual = references.luma_at(target.opening)
        patches = [
            (draw_mouth(texture, *place, usual), weight * (1 - share))
            for texture, weight in chosen
            if share < _ALL
        ]
        if seen is not None:
            patches.append((draw_mouth(seen[0], *place, as_seen=True), share))
        mouth = mix_patches([(patch, weight) for patch, weight in patches if patch is not None])
    return Drawing(field, mouth, strength, target)
