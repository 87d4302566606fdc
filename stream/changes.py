"""What an engine changed of a window's pictures: all of an answer that has to come back from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from retalk_models.engine import EngineFrame, EngineOutput, EngineResult, EngineWindow, FaceState
from retalk_models.picture import U8, Box


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """An EngineOutput without what whoever asked still has.

    planes: Y, U and V of the region, (h, w) and twice (h / 2, w / 2); none where the source is shown.
    """

    face: FaceState
    region: Box | None
    strength: float
    planes: tuple[U8, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """An EngineResult, its outputs as changes of the window's pictures."""

    outputs: tuple[Change, ...]
    stage_ms: Mapping[str, float]
    counts: Mapping[str, int]


def changes_of(window: EngineWindow, result: EngineResult) -> Changes:
    """What of a result is to be sent.

    Raises ValueError for a picture of another size than its frame's, and where outputs and frames differ in
    number.
    """
    if len(result.outputs) != len(window.frames):
        raise ValueError(f"{len(result.outputs)} outputs for {len(window.frames)} frames")
    outputs = zip(window.frames, result.outputs, strict=True)
    return Changes(tuple(_change(*each) for each in outputs), result.stage_ms, result.counts)


def applied(window: EngineWindow, changes: Changes) -> EngineResult:
    """The result, as it was before changes_of."""
    outputs = zip(window.frames, changes.outputs, strict=True)
    return EngineResult(tuple(_output(*each) for each in outputs), changes.stage_ms, changes.counts)


def _change(frame: EngineFrame, output: EngineOutput) -> Change:
    source, picture, region = frame.picture, output.picture, output.region
    if (picture.width, picture.height) != (source.width, source.height):
        raise ValueError(
            f"the engine gave a picture of {picture.width}x{picture.height} for one of "
            f"{source.width}x{source.height}"
        )
    planes: tuple[U8, ...] = ()
    if region is not None:
        planes = tuple(np.ascontiguousarray(part) for part in picture.part(region))
    return Change(output.face, region, output.strength, planes)


def _output(frame: EngineFrame, change: Change) -> EngineOutput:
    picture = frame.picture
    if change.region is not None:
        picture = picture.copy()
        for part, values in zip(picture.part(change.region), change.planes, strict=True):
            part[...] = values
    return EngineOutput(picture, change.face, change.region, change.strength)
