"""Pixels of the inside of a mouth, cut from a frame to fill another opening with, and the plane they fill."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from retalk_models.face.geometry import LOWER_LIP, UPPER_LIP, Pose
from retalk_models.picture import F32, U8, Box, Flags, Picture
from retalk_models.talkin.mouth_tone import dark_of, lip_colour, over_skin

TEETH_DEPTH = 0.03
"""How far behind the inner lips the front teeth stand, canonical units."""


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


def cut_texture(picture: Picture, points: F32, plane: TeethPlane, light: F32) -> MouthTexture | None:
    """A reference texture from a frame: the opening of its (478, 2 or 3) points with a margin; None off
    frame."""
    lips = points[[*UPPER_LIP, *LOWER_LIP], :2]
    margin = 0.05 * float(np.linalg.norm(plane.matrix[:, 0])) + 2
    box = even_box(lips.min(axis=0) - margin, lips.max(axis=0) + margin, picture)
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
    box = even_box(both.min(axis=0), both.max(axis=0), picture)
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


def even_box(low: F32, high: F32, picture: Picture) -> Box | None:
    left, top = max(0, int(low[0])) & ~1, max(0, int(low[1])) & ~1
    right = min(picture.padded_width, (int(high[0]) + 3) & ~1)
    bottom = min(picture.padded_height, (int(high[1]) + 3) & ~1)
    if right - left < 4 or bottom - top < 4:
        return None
    return Box(left, top, right, bottom)
