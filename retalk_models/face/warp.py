"""The mesh warp: how far every pixel round the mouth moves when the face's points do.

The map is piecewise affine over the Face Mesh triangles. The lips' opening is bridged by triangles of its
own, so the map is continuous there and may be drawn on a coarse grid; a ring of points round the face
stays fixed, so neck and background stay put.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import cv2
import numpy as np
from numpy.typing import NDArray

from retalk_models.face.geometry import FACE_OVAL, INNER_LIPS, LOWER_LIP, POINTS, UPPER_LIP, template
from retalk_models.picture import F32, Box, Flags

I32 = NDArray[np.int32]
F64 = NDArray[np.float64]

RING_SCALE = 1.35
"""The fixed ring's size relative to the face oval."""

_GRID_CELLS = 128
"""The coarse grid has at most so many cells along the region's longer side."""


_CLOSE_RIM = 4.0
"""Pixels round the points of a close-up."""


@cache
def triangles() -> I32:
    """(t, 3) corner indices; POINTS + i is the ring point beyond FACE_OVAL[i]. Ring triangles come first."""
    from mediapipe.python.solutions.face_mesh_connections import FACEMESH_TESSELATION

    neighbours: dict[int, set[int]] = {}
    for a, b in FACEMESH_TESSELATION:
        neighbours.setdefault(a, set()).add(b)
        neighbours.setdefault(b, set()).add(a)
    faces = sorted(
        {
            tuple(sorted((a, b, c)))
            for a, near in neighbours.items()
            for b, c in combinations(sorted(near), 2)
            if c in neighbours[b]
        }
    )
    count = len(FACE_OVAL)
    ring: list[tuple[int, ...]] = []
    for i in range(count):
        j = (i + 1) % count
        ring.append((FACE_OVAL[i], FACE_OVAL[j], POINTS + i))
        ring.append((FACE_OVAL[j], POINTS + j, POINTS + i))
    bridge: list[tuple[int, ...]] = []
    last = len(UPPER_LIP) - 2
    for i in range(last + 1):
        if i:
            bridge.append((UPPER_LIP[i], LOWER_LIP[i], UPPER_LIP[i + 1]))
        if i < last:
            bridge.append((LOWER_LIP[i], LOWER_LIP[i + 1], UPPER_LIP[i + 1]))
    return np.array([*ring, *faces, *bridge], np.int32)


@cache
def _facing() -> F64:
    """(t,) the sign of every triangle's area on a face seen from the front; 0 for the bridge over the
    opening."""
    front = template()[:, :2]
    sign = np.sign(_turn(np.concatenate([front, fixed_ring(front)])[triangles()].astype(np.float64)))
    sign[-(len(INNER_LIPS) - 2) :] = 0
    return np.asarray(sign)


@dataclass(frozen=True, slots=True, eq=False)
class CloseUp:
    """A part of a field at every pixel, where the grid is too coarse: shut lips meet in a line.

    box: even-aligned, inside the field's. offsets: (height, width, 2) as in WarpField, of every pixel.
    """

    box: Box
    offsets: F32

    def sources(self) -> F32:
        """(height, width, 2) where what is shown at each pixel comes from in the frame, pixels."""
        sources = self.offsets.copy()
        sources[..., 0] += np.arange(self.box.left, self.box.right, dtype=np.float32)
        sources[..., 1] += np.arange(self.box.top, self.box.bottom, dtype=np.float32)[:, None]
        return sources


@dataclass(frozen=True, slots=True, eq=False)
class Cover:
    """Which triangle lies over each node of a grid, and where in it the node is.

    corners: (t, 3) indices as in triangles. owner: (rows, columns) of corners, -1 where none lies.
    second, third: (rows, columns) shares of the triangle's corners; the first has the rest.
    """

    corners: I32
    owner: I32
    second: F32
    third: F32

    def spread(self, points: F32) -> F32:
        """(rows, columns, 2) where in another picture of the face, whose points (478, 2) are given, what lies
        at each node lies; 0 where no triangle is."""
        mesh = np.concatenate([points, fixed_ring(points)])
        return _spread(mesh[self.corners], self)


@dataclass(frozen=True, slots=True, eq=False)
class WarpField:
    """Where every pixel of a region comes from, on a coarse grid.

    box: the region in frame pixels, even-aligned, inside the frame.
    step: pixels per grid cell across and down; cells tile the box, and node (i, j) is the middle of its
    cell, so that resizing the grid to the box's size reads it at every pixel.
    offsets: (rows, columns, 2) float32, source position minus target position, pixels, x then y.
    reach: (rows, columns) float32, 1 well inside what moves, falling to exactly 0 at its border.
    close: what holds in place of the grid in a part of the box. cover: the mesh over the nodes.
    """

    box: Box
    step: tuple[float, float]
    offsets: F32
    reach: F32
    close: CloseUp | None = None
    cover: Cover | None = None

    def node_axes(self) -> tuple[F32, F32]:
        """(columns,) x and (rows,) y of the nodes in the frame, pixels."""
        rows, columns = self.reach.shape
        x = self.box.left - 0.5 + self.step[0] * (np.arange(columns, dtype=np.float32) + 0.5)
        y = self.box.top - 0.5 + self.step[1] * (np.arange(rows, dtype=np.float32) + 0.5)
        return np.asarray(x, np.float32), np.asarray(y, np.float32)

    def node_sources(self) -> F32:
        """(rows, columns, 2) where what is shown at each node comes from in the frame, pixels."""
        x, y = self.node_axes()
        sources = np.empty_like(self.offsets)
        np.add(self.offsets[..., 0], x, out=sources[..., 0])
        np.add(self.offsets[..., 1], y[:, None], out=sources[..., 1])
        return sources


def fixed_ring(points: F32) -> F32:
    """(36, 2) fixed points beyond the face oval of (478, 2 or 3) points, pixels."""
    oval = points[list(FACE_OVAL), :2]
    centre = oval.mean(axis=0)
    return np.asarray(centre + RING_SCALE * (oval - centre), np.float32)


def warp_field(
    source: F32,
    target: F32,
    depth: F32,
    frame_size: tuple[int, int],
    feather: float,
    threshold: float = 0.02,
    close: Sequence[int] = (),
) -> WarpField | None:
    """The field that moves the source points onto the target points.

    source, target: (478, 2) pixels. depth: (478,) larger is farther; nearer triangles win where the mesh
    folds. frame_size: width, height. feather: how far in pixels the reach falls off inwards.
    close: the points round which every pixel is to be exact.
    Returns None where nothing moves by more than threshold pixels, or nothing of it is seen in the frame.
    """
    ring = fixed_ring(source)
    before = np.concatenate([source, ring]).astype(np.float64)
    after = np.concatenate([target, ring]).astype(np.float64)
    moved = np.abs(after - before).max(axis=1) > threshold
    mesh = triangles()
    moving = moved[mesh].any(axis=1)
    active, facing = mesh[moving], _facing()[moving]
    if not len(active):
        return None
    box = _region(after[np.unique(active)], frame_size)
    if box is None:
        return None
    coarse = max(1.0, max(box.width, box.height) / _GRID_CELLS)
    rows, columns = int(np.ceil(box.height / coarse)), int(np.ceil(box.width / coarse))
    step = (box.width / columns, box.height / rows)

    deep = np.concatenate([depth, np.full(len(ring), np.inf)])
    order = np.argsort(-(deep[active[:, 0]] + deep[active[:, 1]] + deep[active[:, 2]]), kind="stable")
    active, facing = active[order], facing[order]
    corners = (after[active] - (box.left - 0.5, box.top - 0.5)) / step - 0.5
    # A triangle seen from behind lies under its neighbours; the bridge over shut lips has no front.
    kept = _turn(corners) * facing >= 0
    kept &= _reaches(corners, columns, rows)
    if not kept.any():
        return None
    active, corners, bridge = active[kept], corners[kept], facing[kept] == 0
    index = rasterise(corners, rows, columns)
    cover = _cover(active, corners, index)
    offsets = _spread((before - after)[active], cover)

    inside = (index >= 0).astype(np.uint8)
    cells = max(1, round(feather / coarse / 2))
    reach = _soft_inside(inside, cells)
    # Offsets stop short at the frame's border: what lies beyond it is not known.
    seen = detail = None
    if close:
        exact = target[list(close)].astype(np.float64)
        seen = _region(np.concatenate([exact - _CLOSE_RIM, exact + _CLOSE_RIM]), frame_size)
    if seen is not None and _lies_within(seen, box, frame_size, feather):
        places = after[active] - (seen.left, seen.top)
        near = _reaches(places, seen.width, seen.height)
        # Where the lips meet, the bridge between them is thinner than a pixel: dots of the inside.
        near[bridge] &= _height(places[bridge]) >= 1
        if near.any():
            places, values = places[near], (before - after)[active[near]]
            nearby = _cover(active[near], places, rasterise(places, seen.height, seen.width))
            detail = CloseUp(seen, _spread(values, nearby))
    field = WarpField(box, step, offsets, reach, detail, cover)
    _settle_at_frame_edge(field, frame_size, feather)
    return field


def _lies_within(inner: Box, outer: Box, frame_size: tuple[int, int], feather: float) -> bool:
    """Whether a part is the field's, and so far from the frame's border that nothing is settled there."""
    return (
        inner.left >= max(outer.left, feather)
        and inner.top >= max(outer.top, feather)
        and inner.right <= min(outer.right, frame_size[0] - feather)
        and inner.bottom <= min(outer.bottom, frame_size[1] - feather)
    )


def _reaches(corners: F64, columns: int, rows: int) -> Flags:
    """(t,) whether the box round a triangle (t, 3, 2) touches a grid."""
    # Of three corners each: NumPy takes ten times as long to reduce an axis so short.
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    low, high = np.minimum(np.minimum(a, b), c), np.maximum(np.maximum(a, b), c)
    touched = (high > -1) & (low < (columns, rows))
    return np.asarray(touched[:, 0] & touched[:, 1])


def _turn(corners: F64) -> F64:
    """(t,) twice the signed area of triangles (t, 3, 2)."""
    edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    return np.asarray(edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0])


def _height(corners: F64) -> F64:
    """(t,) how high triangles (t, 3, 2) stand on their longest sides."""
    sides = np.linalg.norm(corners - corners[:, (1, 2, 0)], axis=2).max(axis=1)
    return np.asarray(np.abs(_turn(corners)) / np.maximum(sides, 1e-9))


def _region(points: F64, frame_size: tuple[int, int]) -> Box | None:
    width, height = frame_size
    low, high = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
    if not np.isfinite([*low, *high]).all():
        return None
    left, top = max(0, int(low[0])) & ~1, max(0, int(low[1])) & ~1
    right, bottom = min(width, int(high[0]) + 1), min(height, int(high[1]) + 1)
    right, bottom = right + (right & 1), bottom + (bottom & 1)
    if right - left < 8 or bottom - top < 8:
        return None
    return Box(left, top, right, bottom)


def rasterise(corners: F64, rows: int, columns: int) -> I32:
    """(rows, columns) index of the triangle that covers each node, -1 where none does; later ones win.

    corners: (t, 3, 2), in cells. A triangle covers what lies in it and, within half a cell, on its rim.
    Not one call of OpenCV's a triangle: each gives up the interpreter's lock, and where several sessions run
    it comes back milliseconds later.
    """
    top, middle, low = _sorted_ends(corners, 1)
    triangle, row = _runs(top[1], low[1], rows)
    height = np.minimum(np.maximum(row, top[1][triangle]), low[1][triangle])
    one = _across(top, low, triangle, height)
    other = np.where(
        height < middle[1][triangle],
        _across(top, middle, triangle, height),
        _across(middle, low, triangle, height),
    )
    line, column = _runs(np.minimum(one, other), np.maximum(one, other), columns)

    # What is thinner than a cell may lie between the rows: level edges are drawn by columns.
    ends = np.stack([corners, corners[:, (1, 2, 0)]], axis=2).reshape(-1, 2, 2)
    reach = np.abs(ends[:, 1] - ends[:, 0])
    level = np.flatnonzero(reach[:, 0] > reach[:, 1])
    start, end = _sorted_ends(ends[level], 0)[:, ::-1]
    edge, edge_column = _runs(start[1], end[1], columns)
    place = np.minimum(np.maximum(edge_column, start[1][edge]), end[1][edge])
    edge_row = np.floor(_across(start, end, edge, place) + 0.5).astype(np.intp)
    inside = (edge_row >= 0) & (edge_row < rows)
    owner = level[edge] // 3

    index: I32 = np.full(rows * columns, -1, np.int32)
    # Plain assignment promises no order among equal places.
    np.maximum.at(index, row[line] * columns + column, triangle[line].astype(np.int32))
    np.maximum.at(index, (edge_row * columns + edge_column)[inside], owner[inside].astype(np.int32))
    return index.reshape(rows, columns)


def _runs(low: F64, high: F64, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Every integer of 0..count - 1 within half of each range (n,) low..high: whose it is, and it."""
    first = np.maximum(np.floor(low + 0.5), 0).astype(np.intp)
    last = np.minimum(np.floor(high + 0.5), count - 1).astype(np.intp)
    counts = np.maximum(last - first + 1, 0)
    which = np.repeat(np.arange(len(low)), counts)
    return which, np.arange(len(which)) + (first - (np.cumsum(counts) - counts))[which]


def _sorted_ends(corners: F64, axis: int) -> F64:
    """(c, 2, n) of (n, c, 2) corners, those of each n in the order of their place on an axis."""
    count, each = corners.shape[:2]
    order = np.argsort(corners[..., axis], axis=1) + each * np.arange(count)[:, None]
    return np.ascontiguousarray(corners.reshape(-1, 2)[order].transpose(1, 2, 0))


def _across(start: F64, end: F64, which: NDArray[np.intp], height: F64) -> F64:
    """(m,) x at a height (m,) on lines (2, n) from start to end, those numbered `which` (m,)."""
    slope = (end[0] - start[0]) / np.maximum(end[1] - start[1], 1e-9)
    return np.asarray(start[0][which] + (height - start[1][which]) * slope[which])


def _cover(active: I32, corners: F64, index: I32) -> Cover:
    """Where every node of the index picture lies in its triangle. corners: (t, 3, 2) of active, in cells."""
    a, edge1, edge2 = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = _turn(corners)
    # A triangle seen edge-on covers nothing worth a slope.
    inverse = np.where(np.abs(area) > 1e-4, 1.0 / np.where(area == 0, 1.0, area), 0.0)
    first = np.stack([edge2[:, 1] * inverse, -edge2[:, 0] * inverse], axis=1)
    second = np.stack([-edge1[:, 1] * inverse, edge1[:, 0] * inverse], axis=1)
    shift1, shift2 = -(first * a).sum(axis=1, keepdims=True), -(second * a).sum(axis=1, keepdims=True)
    table = np.ascontiguousarray(np.concatenate([first, shift1, second, shift2], axis=1).T, np.float32)
    # Every node, covered or not: to pick those that are out and put them back takes as long as the sums.
    owner = np.maximum(index, 0).astype(np.intp)
    rows, columns = index.shape
    x, y = np.arange(columns, dtype=np.float32), np.arange(rows, dtype=np.float32)[:, None]
    # A node on a thin triangle's rim may lie beside it: held to its edge, the map stays continuous.
    along1 = np.clip(table[0].take(owner) * x + table[1].take(owner) * y + table[2].take(owner), 0, 1)
    along2 = table[3].take(owner) * x + table[4].take(owner) * y + table[5].take(owner)
    along2 = np.maximum(np.minimum(along2, 1 - along1), 0)
    return Cover(active, index, along1, along2)


def _spread(values: F64 | F32, cover: Cover) -> F32:
    """Values (t, 3, 2) at the triangles' corners to every node, affine in each triangle; 0 where none is."""
    rises = [values[:, 0], values[:, 1] - values[:, 0], values[:, 2] - values[:, 0]]
    table = np.ascontiguousarray(np.concatenate(rises, axis=1).T, np.float32)
    owner = np.maximum(cover.owner, 0).astype(np.intp)
    out: F32 = np.empty((*cover.owner.shape, 2), np.float32)
    for axis in (0, 1):
        start, rise_one, rise_two = (table[row + axis].take(owner) for row in (0, 2, 4))
        out[..., axis] = start + cover.second * rise_one + cover.third * rise_two
    out[cover.owner < 0] = 0
    return out


def _soft_inside(inside: NDArray[np.uint8], cells: int) -> F32:
    size = 2 * cells + 1
    padded = cv2.copyMakeBorder(inside, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    # One cell more than the blur reaches back, so that the outermost nodes are exactly 0.
    core = cv2.erode(
        padded, np.ones((size + 2, size + 2), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    soft = cv2.blur(core.astype(np.float32), (size, size), borderType=cv2.BORDER_CONSTANT)
    soft[padded == 0] = 0
    return np.ascontiguousarray(soft[1:-1, 1:-1])


def _settle_at_frame_edge(field: WarpField, frame_size: tuple[int, int], feather: float) -> None:
    near_x, near_y = (
        np.minimum(np.minimum(at, side - 1 - at) / feather, 1)
        for at, side in zip(field.node_axes(), frame_size, strict=True)
    )
    if min(near_x.min(), near_y.min()) < 1:
        near = np.maximum(np.minimum(near_x, near_y[:, None]), 0)
        field.offsets[...] *= near[..., None]
