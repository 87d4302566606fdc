"""The reference cache: novelty in, coverage out, never more than its capacity."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retalk_models.pose_cache import PoseCache, Reference

ANGLE = st.floats(-1.2, 1.2)


@given(st.lists(st.tuples(ANGLE, ANGLE, st.floats(0, 1)), max_size=60))
def test_it_never_holds_more_than_its_capacity(seen: list[tuple[float, float, float]]) -> None:
    cache: PoseCache[int] = PoseCache(capacity=5)
    for number, (yaw, pitch, quality) in enumerate(seen):
        if cache.wants(yaw, pitch, quality):
            cache.add(Reference(number, yaw, pitch, quality))
        assert len(cache) <= 5
    if seen:
        assert cache.nearest(0.0, 0.0) is not None


def test_a_better_reference_takes_its_cell_and_a_like_one_does_not() -> None:
    cache: PoseCache[str] = PoseCache()
    cache.add(Reference("first", 0.0, 0.0, 0.5))
    assert not cache.wants(0.01, 0.0, 0.55)
    assert cache.wants(0.01, 0.0, 0.7)
    cache.add(Reference("better", 0.01, 0.0, 0.7))
    assert len(cache) == 1
    kept = cache.nearest(0.0, 0.0)
    assert kept is not None
    assert kept.item == "better"


def test_nearest_follows_the_pose_but_not_at_once() -> None:
    cache: PoseCache[str] = PoseCache()
    left, right = Reference("left", -0.5, 0.0, 0.8), Reference("right", 0.5, 0.0, 0.8)
    cache.add(left)
    cache.add(right)
    assert cache.nearest(-0.4, 0.0) is left
    assert cache.nearest(0.05, 0.0, current=left) is left
    assert cache.nearest(0.4, 0.0, current=left) is right


def test_a_full_cache_gives_up_a_crowded_weak_one() -> None:
    cache: PoseCache[str] = PoseCache(capacity=3)
    cache.add(Reference("alone", -0.9, 0.0, 0.6))
    cache.add(Reference("crowded", 0.27, 0.0, 0.6))
    cache.add(Reference("centre", 0.0, 0.0, 0.9))
    assert cache.wants(0.9, 0.0, 0.8)
    cache.add(Reference("new", 0.9, 0.0, 0.8))
    items = {found.item for yaw in (-0.9, 0.0, 0.9) if (found := cache.nearest(yaw, 0.0)) is not None}
    assert items == {"alone", "centre", "new"}


def test_clear_empties_it_and_a_capacity_of_none_is_refused() -> None:
    cache: PoseCache[str] = PoseCache()
    cache.add(Reference("one", 0.0, 0.0, 0.5))
    cache.clear()
    assert len(cache) == 0
    assert cache.nearest(0.0, 0.0) is None
    with pytest.raises(ValueError, match="capacity"):
        PoseCache(capacity=0)


def test_use_is_counted_by_the_poses_own_cell() -> None:
    cache: PoseCache[str] = PoseCache(cell=0.2)
    assert cache.seek(0.0, 0.0) is None
    cache.add(Reference("front", 0.0, 0.0, 0.5))
    assert cache.seek(0.05, -0.05) is not None
    assert cache.seek(0.3, 0.0) is not None
    assert cache.seek(0.0, 0.0, roll=0.3) is not None
    assert cache.take_use().counts() == {"reference_hits": 1, "reference_misses": 3}
    assert cache.take_use().counts() == {"reference_hits": 0, "reference_misses": 0}


def test_tilted_heads_have_references_of_their_own() -> None:
    cache: PoseCache[str] = PoseCache(cell=0.2)
    cache.add(Reference("upright", 0.0, 0.0, 0.5))
    assert not cache.wants(0.0, 0.0, 0.5)
    assert cache.wants(0.0, 0.0, 0.5, roll=0.3)
    cache.add(Reference("tilted", 0.0, 0.0, 0.5, roll=0.3))
    found = cache.nearest(0.0, 0.0, roll=0.35)
    assert found is not None
    assert found.item == "tilted"


def test_a_full_cache_of_equals_still_takes_in_what_is_new() -> None:
    cache: PoseCache[int] = PoseCache(capacity=4, cell=0.1)
    for number in range(4):
        cache.add(Reference(number, 0.1 * number, 0.0, 1.0))
    assert cache.wants(0.9, 0.0, 1.0)
    assert not cache.wants(0.4, 0.0, 1.0)
    cache.add(Reference(9, 0.9, 0.0, 1.0))
    assert len(cache) == 4
    found = cache.nearest(0.9, 0.0)
    assert found is not None
    assert found.item == 9
