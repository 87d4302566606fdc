"""What crosses from an engine's process: only what it changed, and the same result in the end."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from retalk_models.engine import EngineFrame, EngineOutput, EngineResult, EngineWindow, FaceState
from retalk_models.picture import Box, Picture
from stream.changes import applied, changes_of


def noise(width: int, height: int, seed: int) -> Picture:
    planes = np.random.default_rng(seed).integers(0, 256, ((height + height % 2) * 3 // 2, width + width % 2))
    return Picture(planes.astype(np.uint8), width, height)


def window(*pictures: Picture) -> EngineWindow:
    frames = tuple(EngineFrame(one, 40_000 * k, 640 * k, True) for k, one in enumerate(pictures))
    return EngineWindow(frames, np.zeros(640, np.float32), 0, 0)


@pytest.mark.parametrize("size", [(64, 48), (65, 49)])
def test_a_result_is_the_same_on_the_other_side(size: tuple[int, int]) -> None:
    sources = [noise(*size, seed) for seed in range(3)]
    asked = window(*sources)
    # Down to the padding, where there is any.
    dubbed, box = sources[1].copy(), Box(10, 4, size[0] + size[0] % 2, size[1] + size[1] % 2)
    other = noise(*size, 9)
    half = (slice(2, box.bottom // 2), slice(5, box.right // 2))
    dubbed.y[4 : box.bottom, 10 : box.right] = other.y[4 : box.bottom, 10 : box.right]
    dubbed.u[half], dubbed.v[half] = other.u[half], other.v[half]
    outputs = (
        EngineOutput(sources[0], FaceState.NONE, None, 0.0),
        EngineOutput(dubbed, FaceState.TRACKED, box, 0.7),
        EngineOutput(sources[2], FaceState.SMALL, None, 0.2),
    )
    result = EngineResult(outputs, {"track": 3.0}, {"reference_hits": 2})
    sent = pickle.dumps(changes_of(asked, result))
    assert len(sent) < sum(one.planes.nbytes for one in sources[:2])
    before = [one.planes.copy() for one in sources]
    got = applied(asked, pickle.loads(sent))
    assert (got.stage_ms, got.counts) == (result.stage_ms, result.counts)
    for theirs, ours in zip(got.outputs, outputs, strict=True):
        assert (theirs.face, theirs.region, theirs.strength) == (ours.face, ours.region, ours.strength)
        np.testing.assert_array_equal(theirs.picture.planes, ours.picture.planes)
    for source, kept in zip(sources, before, strict=True):
        np.testing.assert_array_equal(source.planes, kept, "the source's own picture stays as it came")


def test_a_picture_of_another_size_is_refused_by_name() -> None:
    output = EngineOutput(noise(32, 24, 0), FaceState.TRACKED, None, 1.0)
    with pytest.raises(ValueError, match="picture of 32x24 for one of 64x48"):
        changes_of(window(noise(64, 48, 0)), EngineResult((output,)))


def test_more_outputs_than_frames_are_refused_by_number() -> None:
    output = EngineOutput(noise(64, 48, 0), FaceState.TRACKED, None, 1.0)
    with pytest.raises(ValueError, match="2 outputs for 1 frames"):
        changes_of(window(noise(64, 48, 0)), EngineResult((output, output)))
