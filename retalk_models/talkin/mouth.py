"""The inside of the mouth: carried over from a reference of the same person, or drawn where there is none yet.

Teeth ride on the skull, so a reference is placed by pose, on a plane at the depth of the teeth, and the
target's lips act as a curtain in front of it; only what the reference's own lips hid is stretched to.
Plane coordinates are canonical x and y: 1 unit = the distance between the outer eye corners.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from retalk_models.face.composite import Patch
from retalk_models.face.geometry import INNER_LIPS, Pose
from retalk_models.picture import F32, U8, Box, Picture

_HALF = len(INNER_LIPS) // 2
LOWER = INNER_LIPS[: _HALF + 1]
"""The lower inner lip from the person's right corner to the left."""
UPPER = (INNER_LIPS[0], *INNER_LIPS[:_HALF:-1], INNER_LIPS[_HALF])
"""The upper inner lip from the person's right corner to the left."""

TEETH_DEPTH = 0.03
"""How far behind the inner lips the front teeth stand, canonical units."""

_TEETH_SHARE = 0.5
"""The upper share of a reference's opening that holds the upper teeth and must not be squeezed."""


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
        return np.asarray((pixels - self.offset) @ np.linalg.inv(self.matrix).T, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """The lips' opening in plane coordinates: upper and lower (11, 2), each by increasing x, corners shared."""

    upper: F32
    lower: F32

    @classmethod
    def of(cls, points: F32, plane: TeethPlane) -> Opening:
        """From (478, 2) pixels."""
        return cls(
            _increasing(plane.to_plane(points[list(UPPER), :2])),
            _increasing(plane.to_plane(points[list(LOWER), :2])),
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

    y: (h, w) and uv: (h / 2, w / 2, 2) uint8, a crop whose top left sample is pixel `corner` of `plane`'s picture.
    light: (3,) mean Y, U, V of the skin round the mouth where it was taken.
    """

    y: U8
    uv: U8
    corner: tuple[int, int]
    plane: TeethPlane
    opening: Opening
    light: F32


def cut_texture(picture: Picture, points: F32, plane: TeethPlane, light: F32) -> MouthTexture | None:
    """A reference texture from a frame: the opening of its (478, 2 or 3) points with a margin; None off frame."""
    lips = points[[*UPPER, *LOWER], :2]
    margin = 0.05 * float(np.linalg.norm(plane.matrix[:, 0])) + 2
    box = _even_box(lips.min(axis=0) - margin, lips.max(axis=0) + margin, picture)
    if box is None:
        return None
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    half_rows, half_columns = slice(box.top // 2, box.bottom // 2), slice(box.left // 2, box.right // 2)
    uv = np.stack([picture.u[half_rows, half_columns], picture.v[half_rows, half_columns]], axis=-1)
    return MouthTexture(
        picture.y[rows, columns].copy(), uv, (box.left, box.top), plane, Opening.of(points, plane), light
    )


def draw_mouth(
    texture: MouthTexture,
    picture: Picture,
    points: F32,
    plane: TeethPlane,
    light: F32,
    softness: float,
    fine: bool = True,
) -> Patch | None:
    """Fill the opening of the target points, (478, 2) pixels, with a texture.

    light: (3,) mean Y, U, V of the skin round the mouth in this frame. softness: the edge's width in pixels.
    fine: match light and colour to the frame.
    Returns None where there is no opening to fill.
    """
    outline = np.concatenate([points[list(UPPER), :2], points[list(LOWER)[-2:0:-1], :2]])
    pad = 2 + 2 * softness
    box = _even_box(outline.min(axis=0) - pad, outline.max(axis=0) + pad, picture)
    if box is None:
        return None
    opening = Opening.of(points, plane)
    cover = _cover(outline, box, softness)
    if cover.max() <= 0:
        return None
    x, y, shade = _reference_place(opening, texture.opening, plane, box)
    place = texture.plane.to_pixels(np.stack([x, y], axis=-1)) - np.array(texture.corner, np.float32)
    gain = 1.0 if not fine else float(np.clip((light[0] - 16) / max(8.0, float(texture.light[0]) - 16), 0.5, 2.0))
    tint = np.clip(light[1:] - texture.light[1:], -12, 12) * float(fine)
    luma = cv2.remap(
        texture.y, place, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    half = (cv2.resize(place, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) - 0.5) / 2
    chroma = cv2.remap(
        texture.uv, half, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    drawn = np.asarray(16 + (luma.astype(np.float32) - 16) * (gain * shade), np.float32)
    return Patch(
        box,
        drawn,
        np.asarray(chroma.astype(np.float32) + tint, np.float32),
        cover,
        cv2.resize(cover, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    )


def _even_box(low: F32, high: F32, picture: Picture) -> Box | None:
    left, top = max(0, int(low[0])) & ~1, max(0, int(low[1])) & ~1
    right = min(picture.padded_width, (int(high[0]) + 3) & ~1)
    bottom = min(picture.padded_height, (int(high[1]) + 3) & ~1)
    if right - left < 4 or bottom - top < 4:
        return None
    return Box(left, top, right, bottom)


def _cover(outline: F32, box: Box, softness: float) -> F32:
    mask = np.zeros((box.height, box.width), np.uint8)
    fixed = np.round((outline - (box.left, box.top)) * 16).astype(np.int32)
    cv2.fillPoly(mask, [fixed], 255, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(mask, (0, 0), max(0.5, softness / 2))
    return soft.astype(np.float32) / 255


def _reference_place(opening: Opening, held: Opening, plane: TeethPlane, box: Box) -> tuple[F32, F32, F32]:
    """For every pixel of the box: plane x and y in the reference, and a shade factor."""
    columns, rows = np.meshgrid(
        np.arange(box.left, box.right, dtype=np.float32), np.arange(box.top, box.bottom, dtype=np.float32)
    )
    inverse = np.linalg.inv(plane.matrix).astype(np.float32)
    dx, dy = columns - plane.offset[0], rows - plane.offset[1]
    x, y = inverse[0, 0] * dx + inverse[0, 1] * dy, inverse[1, 0] * dx + inverse[1, 1] * dy

    # Teeth do not get wider with the lips; only an opening wider than the reference's is squeezed into it.
    middle, held_middle = (opening.left + opening.right) / 2, (held.left + held.right) / 2
    squeeze = min(1.0, 0.97 * (held.right - held.left) / max(1e-3, opening.right - opening.left))
    across = held_middle + (x - middle) * squeeze + (middle - held_middle) * squeeze

    top, bottom = np.interp(x, *opening.upper.T), np.interp(x, *opening.lower.T)
    held_top, held_bottom = np.interp(across, *held.upper.T), np.interp(across, *held.lower.T)
    inset = 0.006
    held_top, held_bottom = held_top + inset, held_bottom - inset
    tall = np.maximum(held_bottom - held_top, 1e-3)

    # A lip raised above the reference's lip takes the teeth along rather than baring what was never seen.
    lift = np.minimum(0.0, top - held_top)
    teeth_end = held_top + lift + _TEETH_SHARE * tall
    below = np.maximum(bottom - teeth_end, 1e-3)
    end = np.minimum(held_bottom, teeth_end - lift + 2.0 * below)
    slope = (end - (teeth_end - lift)) / below
    down = np.where(y <= teeth_end, y - lift, teeth_end - lift + (y - teeth_end) * slope)
    down = np.clip(down, held_top, held_bottom)

    depth = np.clip((y - top) / 0.02, 0, 1)
    sides = np.clip(np.minimum(x - opening.left, opening.right - x) / 0.06, 0, 1)
    shade = (0.72 + 0.28 * depth) * (0.75 + 0.25 * sides)
    return (
        np.asarray(across, np.float32),
        np.asarray(down, np.float32),
        np.asarray(shade, np.float32),
    )
