"""The mesh warp moves what the points move, and nothing else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from retalk_models.face.geometry import INNER_LIPS, OUTER_LIPS, POINTS
from retalk_models.face.warp import WarpField, fixed_ring, rasterise, triangles, warp_field
from tests.retalk_models.faces import points, pose

SIZE = (640, 480)


def field(before: float, after: float, yaw: float = 0.0) -> WarpField:
    source, target = points(before, pose(yaw)), points(after, pose(yaw))
    found = warp_field(source[:, :2], target[:, :2], target[:, 2], SIZE, feather=16)
    assert found is not None
    return found


def test_the_mesh_has_no_hole_or_double_layer_at_the_lips() -> None:
    edges: dict[tuple[int, int], int] = {}
    for a, b, c in triangles().tolist():
        for edge in ((a, b), (b, c), (a, c)):
            key = (min(edge), max(edge))
            edges[key] = edges.get(key, 0) + 1
    lips = [key for key, count in edges.items() if count != 2 and set(key) & set(OUTER_LIPS)]
    assert not lips


def test_points_that_do_not_move_need_no_field() -> None:
    still = points()
    assert warp_field(still[:, :2], still[:, :2], still[:, 2], SIZE, feather=16) is None


@pytest.mark.parametrize("yaw", [0.0, 0.4])
def test_the_map_takes_every_lip_point_back_to_where_it_came_from(yaw: float) -> None:
    moved = field(0.0, 0.15, yaw)
    source, target = points(0.0, pose(yaw)), points(0.15, pose(yaw))
    places, sources = np.stack(np.meshgrid(*moved.node_axes()), axis=-1), moved.node_sources()
    for index in OUTER_LIPS:
        spot = target[index, :2]
        nearest = np.unravel_index(np.linalg.norm(places - spot, axis=-1).argmin(), places.shape[:2])
        came_from = sources[nearest]
        # Within a cell of the grid and what the node is away from the point itself.
        assert np.abs(came_from - source[index, :2]).max() < 2.5


def test_the_map_is_continuous_across_the_lips_opening() -> None:
    moved = field(0.0, 0.15)
    steps = np.abs(np.diff(moved.offsets[..., 1], axis=0)) / moved.step[1]
    # A tear would show as the whole opening, 18 pixels, between two nodes.
    assert steps.max() < 4


def test_nothing_moves_at_the_border_of_the_region_or_of_the_frame() -> None:
    moved = field(0.2, 0.0)
    for rim in (moved.reach[0], moved.reach[-1], moved.reach[:, 0], moved.reach[:, -1]):
        assert not rim.any()
    low = points(0.2, pose(y=340.0))
    shut = points(0.0, pose(y=340.0))
    cut = warp_field(low[:, :2], shut[:, :2], shut[:, 2], SIZE, feather=16)
    assert cut is not None
    assert cut.box.bottom <= SIZE[1]
    assert np.abs(cut.offsets[-1]).max() < 1.0


def test_the_region_covers_the_lower_of_both_jaws() -> None:
    for before, after in ((0.2, 0.0), (0.0, 0.2)):
        box = field(before, after).box
        chin = max(points(before)[152, 1], points(after)[152, 1])
        assert box.bottom > chin


def test_a_face_outside_the_frame_has_no_field() -> None:
    source, target = points(0.0, pose(x=-900.0)), points(0.2, pose(x=-900.0))
    assert warp_field(source[:, :2], target[:, :2], target[:, 2], SIZE, feather=16) is None


@pytest.mark.parametrize("x", [-200.0, -186.0, -110.0])
def test_a_face_on_its_side_at_the_frames_edge_has_no_field_or_a_whole_one(x: float) -> None:
    """Bug: where not one triangle of it faced the camera, looking for the nearest failed."""
    at = pose(yaw=-1.55, x=x, scale=400.0)
    source, target = points(0.0, at), points(0.2, at)
    found = warp_field(source[:, :2], target[:, :2], target[:, 2], SIZE, feather=16, close=INNER_LIPS)
    assert found is None or np.isfinite(found.offsets).all()


def test_ring_is_beyond_the_oval() -> None:
    face = points()
    ring = fixed_ring(face)
    assert ring.shape == (36, 2)
    assert triangles().max() == POINTS + len(ring) - 1
    assert np.ptp(ring, axis=0).min() > np.ptp(face[:, :2], axis=0).min() * 1.2


def test_triangles_cover_what_opencv_would_fill() -> None:
    rng = np.random.default_rng(3)
    corners = rng.uniform(-4, 50, (60, 1, 2)) + rng.uniform(-9, 9, (60, 3, 2))
    corners[:6, 2] = corners[:6, 1]  # lips that are shut leave triangles without an area
    index = rasterise(corners, 40, 48)
    filled = np.full((40, 48), -1, np.int32)
    for number, corner in enumerate(np.round(corners * 16).astype(np.int32)):
        cv2.fillConvexPoly(filled, corner, number, cv2.LINE_8, 4)
    # They differ by which of two neighbours gets a common edge, and by single nodes on a rim.
    assert (index != filled).mean() < 0.05
    assert ((index < 0) != (filled < 0)).mean() < 0.03


def test_a_mesh_without_gaps_leaves_no_node_out() -> None:
    places = np.stack(np.meshgrid(np.arange(-2, 52, 3.7), np.arange(-2, 44, 2.3)), axis=-1)
    places += np.random.default_rng(4).uniform(-0.8, 0.8, places.shape)
    a, b, c, d = places[:-1, :-1], places[:-1, 1:], places[1:, 1:], places[1:, :-1]
    mesh = np.stack([np.stack(three, axis=2) for three in ((a, b, c), (a, c, d))]).reshape(-1, 3, 2)
    assert (rasterise(mesh, 40, 48) >= 0).all()
