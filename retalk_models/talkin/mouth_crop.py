"""The small upright picture of the mouth that the rendering net sees, and what is drawn into it.

Crops are (SIDE, SIDE, 3) Y, U, V with the mouth's own place, size and tilt, whatever the frame's. Live frames
and training frames go through the same functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from retalk_models.face.geometry import FACE_OVAL, INNER_LIPS, OUTER_LIPS, Pose, from_canonical
from retalk_models.face.warp import WarpField, warp_field
from retalk_models.picture import F32, U8, Picture

SIDE = 96
"""Samples along a crop's side."""

SPAN = 1.2
"""What a crop shows along its side, canonical units (1.56 is a face's width)."""

CHANNELS = 12
"""Context, first warp and second warp in Y, U, V, and three outlines."""

_BELOW = 0.16
"""How far below the lips' middle the crop's middle lies, canonical units: jaws drop."""

_SURROUND = (164, 206, 426, 216, 436, 212, 432, 149, 176, 148, 152, 377, 400, 378)
"""With the outer lips, what the net may change: from under the nose to the chin."""

_FEATHER = 9
"""Samples over which the net's reach falls to nothing; about a twelfth of the face's width."""

_RIM = 7
"""Samples over which what the net shows gives way to the frame's own skin."""

_REACH_BELOW = 3
"""Samples by which the reach is widened before it is softened."""


_EACH = [channel for channel in range(CHANNELS) for _ in range(2)]


@dataclass(frozen=True, slots=True, eq=False)
class MouthCrop:
    """Where a crop lies. matrix: (2, 3) from crop samples to frame pixels."""

    matrix: F32

    @property
    def scale(self) -> float:
        """Frame pixels per crop sample."""
        return float(np.hypot(self.matrix[0, 0], self.matrix[1, 0]))

    def to_frame(self, places: F32) -> F32:
        """(..., 2) crop samples to frame pixels."""
        return np.asarray(places @ self.matrix[:, :2].T + self.matrix[:, 2], np.float32)

    def inverse(self) -> F32:
        """(2, 3) from frame pixels to crop samples."""
        turn = self.matrix[:, :2].T / np.float32(self.scale**2)
        return np.asarray(np.concatenate([turn, -(turn @ self.matrix[:, 2:])], axis=1), np.float32)

    def to_crop(self, places: F32) -> F32:
        """(..., 2) frame pixels to crop samples."""
        inverse = self.inverse()
        return np.asarray(places @ inverse[:, :2].T + inverse[:, 2], np.float32)


def crop_of(pose: Pose, neutral: F32, side: int = SIDE, span: float = SPAN) -> MouthCrop:
    """The crop of a face. neutral: (478, 3) canonical; its mouth, not the frame's, so that speech moves
    lips through the crop and not the crop with the lips."""
    centre = neutral[list(OUTER_LIPS)].mean(axis=0) + np.array([0, _BELOW, 0], np.float32)
    middle = from_canonical(centre[None], pose)[0, :2]
    across = pose.rotation[:2, 0] / max(1e-6, float(np.linalg.norm(pose.rotation[:2, 0])))
    step = pose.scale * span / side
    turn = np.array([[across[0], -across[1]], [across[1], across[0]]], np.float32) * np.float32(step)
    offset = middle - turn @ np.full(2, (side - 1) / 2, np.float32)
    return MouthCrop(np.concatenate([turn, offset[:, None]], axis=1).astype(np.float32))


def cut_plane(plane: U8, matrix: F32, side: int) -> U8:
    """(side, side) of a plane, matrix taking samples of the cut to the plane's; the edge is repeated."""
    factor = int(np.hypot(matrix[0, 0], matrix[1, 0]) + 0.35)
    matrix = matrix.astype(np.float32).copy()
    if factor > 1:
        corners = np.array([[0, 0], [side - 1, 0], [0, side - 1], [side - 1, side - 1]], np.float32)
        reached = corners @ matrix[:, :2].T + matrix[:, 2]
        height, width = plane.shape
        left, top = (max(0, int(v) - 2 * factor) for v in reached.min(axis=0))
        right, bottom = (int(v) + 2 * factor + 1 for v in reached.max(axis=0))
        across = (min(width, right) - left) // factor
        down = (min(height, bottom) - top) // factor
        if across > 1 and down > 1:
            part = plane[top : top + down * factor, left : left + across * factor]
            plane = np.asarray(cv2.resize(part, (across, down), interpolation=cv2.INTER_AREA), np.uint8)
            matrix /= factor
            # A shrunk sample's middle lies between those it was made of.
            shift = (factor - 1) / 2
            matrix[:, 2] -= (np.array([left, top], np.float32) + shift) / factor
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cut = cv2.warpAffine(plane, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cut, np.uint8)


def halved(matrix: F32) -> F32:
    """The matrix to a chroma plane's samples, from that to the luma plane's."""
    half = matrix / 2
    half[:, 2] -= 0.25
    return np.asarray(half, np.float32)


def cut_crop(picture: Picture, crop: MouthCrop, side: int = SIDE) -> U8:
    """(side, side, 3) Y, U, V of a picture."""
    chroma = halved(crop.matrix)
    planes = (
        cut_plane(picture.y, crop.matrix, side),
        cut_plane(picture.u, chroma, side),
        cut_plane(picture.v, chroma, side),
    )
    return np.asarray(cv2.merge(planes), np.uint8)


def _filled(points: F32, indices: tuple[int, ...], side: int = SIDE) -> U8:
    canvas: U8 = np.zeros((side, side), np.uint8)
    cv2.fillPoly(canvas, [np.round(points[list(indices), :2] * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return canvas


def outlines(points: F32) -> U8:
    """(SIDE, SIDE, 3) outer lips, inner lips and face oval of (478, 2) crop points, filled."""
    drawn = [_filled(points, ring) for ring in (OUTER_LIPS, INNER_LIPS, FACE_OVAL)]
    return np.asarray(cv2.merge(drawn), np.uint8)


def lips_mask(points: F32, wider: int = 3) -> F32:
    """(SIDE, SIDE) 1 on the lips and what they enclose, some samples wider, of (478, 2) crop points; narrower
    where that is negative."""
    size = 2 * abs(wider) + 1
    change = cv2.dilate if wider >= 0 else cv2.erode
    grown = change(_filled(points, OUTER_LIPS), np.ones((size, size), np.uint8))
    return np.asarray(grown, np.float32) / 255


def lips_reach(points: F32) -> F32:
    """(SIDE, SIDE) 0..1, where the net's picture is shown, of (478, 2) crop points: on the lips and, falling
    off, a little beyond.

    Farther out the frame's own skin, moved, has all its grain, moles and light; two pictures of it are never
    quite in line.
    """
    soft = cv2.blur(lips_mask(points), (_RIM, _RIM), borderType=cv2.BORDER_CONSTANT)
    return np.asarray(np.clip(1.6 * soft - 0.3, 0, 1), np.float32)


def reach_mask(source: F32, target: F32) -> F32:
    """(SIDE, SIDE) 0..1, what the net may change; 0 along the crop's border.

    The mouth and chin of both (478, 2), or a chin would double.
    """
    canvas: U8 = np.zeros((SIDE, SIDE), np.uint8)
    ring = [*OUTER_LIPS, *_SURROUND]
    for points in (source, target):
        hull = cv2.convexHull(np.round(points[ring, :2] * 16).astype(np.int32))
        cv2.fillConvexPoly(canvas, hull, 255, cv2.LINE_8, 4)
    wide = 2 * _REACH_BELOW + 1
    canvas = np.asarray(cv2.dilate(canvas, np.ones((wide, wide), np.uint8)), np.uint8)
    edge = _FEATHER // 2 + 2
    canvas[:edge] = canvas[-edge:] = 0
    canvas[:, :edge] = canvas[:, -edge:] = 0
    soft = cv2.blur(canvas.astype(np.float32), (_FEATHER, _FEATHER), borderType=cv2.BORDER_CONSTANT)
    return np.asarray(soft / 255, np.float32)


def _own_places() -> F32:
    """(SIDE, SIDE, 2) every crop sample's own."""
    columns, rows = np.meshgrid(np.arange(SIDE, dtype=np.float32), np.arange(SIDE, dtype=np.float32))
    return np.asarray(np.stack([columns, rows], axis=-1), np.float32)


def warp_places(source: F32, target: F32, depth: F32) -> F32:
    """(SIDE, SIDE, 2) for every crop sample, the crop sample of the reference that it is drawn with.

    source, target: (478, 2) the reference's and the target's points, both in crop samples. depth: (478,).
    """
    places = _own_places()
    # On every other sample: the map is smooth but for the lips' edge, which the crop itself shows no finer.
    side = SIDE // 2
    field = warp_field((source - 0.5) / 2, (target - 0.5) / 2, depth, (side, side), feather=1.0)
    if field is None:
        return places
    left, top, right, bottom = (2 * edge for edge in field.box)
    offsets = cv2.resize(2 * field.offsets, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    places[top:bottom, left:right] += offsets
    return places


def field_places(field: WarpField, crop: MouthCrop, points: F32) -> F32:
    """(SIDE, SIDE, 2) as warp_places gives them, by the field that moved the frame's own face to the target.

    That knows already where the target's mesh lies, so it takes half the time. Outside of it, where nothing
    is to be drawn, samples stay.
    points: (478, 2) the reference's, crop samples.
    """
    places = _own_places()
    cover = field.cover
    if cover is None:
        return places
    x, y = field.node_axes()
    inverse = crop.inverse()
    moved = cover.spread(points)
    moved -= x[None, :, None] * inverse[:, 0]
    moved -= y[:, None, None] * inverse[:, 1] + inverse[:, 2]
    moved[cover.owner < 0] = 0
    return places + on_crop(moved, field, crop)


def on_crop(values: F32, field: WarpField, crop: MouthCrop) -> F32:
    """(SIDE, SIDE, ...) what a field's nodes (rows, columns, ...) have where the crop's samples lie."""
    matrix = crop.matrix.copy()
    matrix[:, 2] -= (field.box.left - 0.5, field.box.top - 0.5)
    matrix /= np.array(field.step, np.float32)[:, None]
    matrix[:, 2] -= 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(values, matrix, (SIDE, SIDE), flags=flags), np.float32)


def look(crop: U8, places: F32) -> U8:
    """(SIDE, SIDE, 3) a crop seen through places."""
    seen = cv2.remap(crop, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(seen, np.uint8)


def tone_shift(first: U8, second: U8, reach: F32) -> F32:
    """(3,) what to add to the second crop to give it the first's light and colour round the reach's rim."""
    # Every other sample each way: a median of hundreds is as good as one of thousands.
    thin = (slice(None, None, 2), slice(None, None, 2))
    rim = (reach[thin] > 0.05) & (reach[thin] < 0.7)
    places = np.flatnonzero(rim)
    if len(places) < 8:
        return np.zeros(3, np.float32)
    rims = [
        np.ascontiguousarray(one[thin]).reshape(-1, 3)[places].astype(np.int16) for one in (first, second)
    ]
    difference = (rims[0] - rims[1]).T
    middle = len(places) // 2
    return np.clip(np.partition(difference, middle, axis=1)[:, middle], -40, 40).astype(np.float32)


def net_input(context: U8, first: U8, second: U8, drawn: U8, reach: F32) -> F32:
    """(SIDE, SIDE, CHANNELS) as the net takes it: about -1..1, the context blanked where it is to be drawn.

    context: the frame. first: its own face, moved and filled. second: another view of the person, moved.
    drawn: outlines of the target.
    """
    levels: U8 = np.empty((SIDE, SIDE, CHANNELS), np.uint8)
    cv2.mixChannels([context, first, second, drawn], [levels], _EACH)
    value = np.multiply(levels, np.float32(1 / 127.5), dtype=np.float32)
    value -= 1
    blank = reach > 0.01
    # One channel at a time: NumPy is far slower at three beside each other.
    for channel in range(3):
        value[..., channel][blank] = 0
    return value
