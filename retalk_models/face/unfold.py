"""Face Mesh draws the skin under a far open mouth over the lower lip; here it is laid back under it."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from retalk_models.face.geometry import FACE_OVAL, OUTER_LIPS, lower_face_weights, template
from retalk_models.picture import F32

_LOWER_EDGE = OUTER_LIPS[: len(OUTER_LIPS) // 2 + 1]
"""The lower lip's outer edge, by increasing x."""

_JAW_EDGE = (172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397)
"""The jaw's edge under the mouth, by increasing x."""

_UNFOLDED = 0.7
"""How much of its usual share of the way from lip to jaw a point under the lip keeps at least."""

_LIP_EDGE = 0.05
"""How far under the lip's edge (canonical units) what is next to it lies at least: on a wide mouth Face Mesh
draws the edge up to 0.02 inside the lip."""


@cache
def _under_lip() -> tuple[NDArray[np.intp], F32]:
    """The points of the skin between lower lip and jaw, and how far down that way each lies at rest, 0..1."""
    rest = template()
    lip, jaw = _edges(rest, rest[:, 0])
    share = (rest[:, 1] - lip) / np.maximum(jaw - lip, 1e-6)
    within = np.abs(rest[:, 0]) < 0.95 * float(rest[_LOWER_EDGE[-1], 0])
    skin = within & (share > 0.02) & (share < 0.98) & (lower_face_weights() > 0.5)
    skin[[*OUTER_LIPS, *FACE_OVAL]] = False
    places = np.flatnonzero(skin)
    return places, np.asarray(share[places], np.float32)


def _edges(shape: F32, x: F32) -> tuple[F32, F32]:
    """(n,) y of the lower lip's outer edge and of the jaw's at each x, canonical."""
    found = []
    for edge in (_LOWER_EDGE, _JAW_EDGE):
        line = shape[list(edge)]
        found.append(np.interp(x, np.maximum.accumulate(line[:, 0]), line[:, 1]).astype(np.float32))
    return found[0], found[1]


def unfolded(shape: F32) -> F32:
    """A canonical shape (478, 3) whose skin under the lower lip lies under it.

    Face Mesh folds it up over a lip that is far down: in half of the frames with an aperture above 0.2 the
    point 18 lies above the lip's edge, 17 (training clips). A warp that samples there shows a second lip.
    """
    places, share = _under_lip()
    lip, jaw = _edges(shape, shape[places, 0])
    way, first = np.maximum(jaw - lip, 0), np.float32(share.min())
    down = np.float32(_UNFOLDED) * share * way
    missing = np.minimum(_LIP_EDGE, way / 2) - np.float32(_UNFOLDED) * first * way
    down += np.maximum(missing, 0) * (1 - share) / (1 - first)
    out = shape.copy()
    out[places, 1] = np.maximum(shape[places, 1], lip + down)
    return out
