"""Short, small pieces of real clips, for nets that take seconds a frame."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from retalk_models.picture import Picture
from stream.files import VideoFile


def pictures(path: Path, count: int, every: int = 1, side: int | None = None) -> list[Picture]:
    """The first `count` of every so-many pictures; scaled so that the longer side is `side`."""
    with VideoFile(path) as file:
        found = [frame.picture for frame in islice(file.once(), 0, count * every, every)]
    if side is None:
        return found
    out = []
    for one in found:
        scale = side / max(one.width, one.height)
        size = (round(one.width * scale / 2) * 2, round(one.height * scale / 2) * 2)
        out.append(
            Picture.from_rgb(np.asarray(cv2.resize(one.rgb(), size, interpolation=cv2.INTER_AREA), np.uint8))
        )
    return out
