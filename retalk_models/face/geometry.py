"""Rigid pose, canonical shape and identity of a tracked face.

Points are (478, 3) float32 in pixels: x right, y down, z away from the camera on the scale of x
(MediaPipe's z times the picture's width). The canonical frame is a frontal face about the mean of its
stable points, x right, y down, with 1 unit = the distance between the outer eye corners.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from retalk_models.picture import F32

POINTS = 478

OUTER_LIPS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185,
)  # fmt: skip
"""The lips' outer outline as a closed ring, from the person's right corner along the lower lip."""

INNER_LIPS = (
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191,
)  # fmt: skip
"""The lips' inner outline, same order as OUTER_LIPS."""

LOWER_LIP = INNER_LIPS[:11]
"""The lower inner lip from the person's right corner to the left."""

UPPER_LIP = (INNER_LIPS[0], *INNER_LIPS[:9:-1])
"""The upper inner lip from the person's right corner to the left: each point is over that of LOWER_LIP."""

LIP_BODIES = (
    11, 12, 15, 16, 38, 41, 42, 62, 72, 73, 74, 76, 77, 85, 86, 89, 90, 96, 179, 180,
    183, 184, 268, 271, 272, 292, 302, 303, 304, 306, 307, 315, 316, 319, 320, 325, 403, 404, 407, 408,
)  # fmt: skip
"""Points on the lips, between their outlines."""

FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""The face's outline as a closed ring, from the top of the forehead."""

CHIN = (152, 148, 377, 176, 400, 149, 378, 175, 199, 200, 171, 396, 140, 369, 208, 428, 201, 421)
"""Points that ride on the jaw bone under the lower lip."""

STABLE = (
    33, 133, 263, 362, 168, 6, 197, 195, 8, 9, 151, 10, 127, 356, 162, 389, 21, 251, 54, 284, 103, 332,
    67, 297, 109, 338,
)  # fmt: skip
"""Points that neither speech nor brows move much: eye corners, nose bridge, forehead, temples."""

MOUTH_CORNERS = (78, 308)
"""The inner lips' corners: left and right in the picture."""

INNER_PAIRS = ((13, 14), (82, 87), (312, 317), (81, 178), (311, 402))
"""Inner lip points (upper, lower) facing each other; their mean gap is the lip aperture."""

_UPPER_INNER, _LOWER_INNER = np.array(INNER_PAIRS, np.intp).T

_EYE_CORNERS = (33, 263, 133, 362)
_BRIDGE = (168, 6, 197, 195)

_BUNDLE = "talkin_basis.safetensors"


@cache
def _bundle() -> dict[str, NDArray[np.float32]]:
    return dict(load(files("retalk_models").joinpath("weights", _BUNDLE).read_bytes()))


def template() -> F32:
    """(478, 3) canonical mean face, lips closed, symmetric; do not write to it."""
    return _bundle()["template"]


def mirror_index() -> NDArray[np.intp]:
    """(478,) index of every point's mirror image; mirror[mirror[i]] == i."""
    return _bundle()["mirror"].astype(np.intp)


def lower_face_weights() -> F32:
    """(478,) how far a point may follow speech: 1 at lips and chin, smoothly 0 at cheeks, nose and ears."""
    return _bundle()["lower_face"]


@cache
def _stable_weights() -> F32:
    weights = np.ones(len(STABLE), np.float32)
    for place, index in enumerate(STABLE):
        weights[place] = 3.0 if index in _EYE_CORNERS else 2.0 if index in _BRIDGE else 1.0
    return np.asarray(weights / weights.sum(), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Pose:
    """points = scale * canonical @ rotation.T + translation.

    rotation: (3, 3) float32, a proper rotation. translation: (3,) float32 pixels.
    scale: pixels per canonical unit (the outer eye corners' distance in 3D).
    """

    rotation: F32
    translation: F32
    scale: float

    @property
    def yaw(self) -> float:
        """Radians; positive where the face turns to the picture's right."""
        return float(np.arctan2(-self.rotation[0, 2], self.rotation[2, 2]))

    @property
    def pitch(self) -> float:
        """Radians; positive where the face looks down."""
        return float(np.arcsin(np.clip(-self.rotation[1, 2], -1.0, 1.0)))

    @property
    def roll(self) -> float:
        """Radians; positive clockwise in the picture."""
        return float(np.arctan2(self.rotation[1, 0], self.rotation[0, 0]))


@dataclass(frozen=True, slots=True, eq=False)
class ObservedFace:
    """A tracked frame, factorised and steadied.

    points: (478, 3) pixels. shape: the same, canonical. opening: its aperture, canonical units, at least 0.
    """

    points: F32
    pose: Pose
    shape: F32
    opening: float


def fit_similarity(source: F32, target: F32, weights: F32) -> Pose:
    """The similarity that takes source to target, by weighted least squares (Umeyama 1991).

    source, target: (n, 3), n >= 3 and not collinear; weights: (n,) non-negative, sum 1.
    """
    source64, target64 = source.astype(np.float64), target.astype(np.float64)
    weight = weights.astype(np.float64)[:, None]
    source_mean, target_mean = (source64 * weight).sum(0), (target64 * weight).sum(0)
    centred, goal = source64 - source_mean, target64 - target_mean
    left, singular, right = np.linalg.svd((goal * weight).T @ centred)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    rotation = left @ np.diag(signs) @ right
    scale = float((singular * signs).sum() / (weight * centred**2).sum())
    translation = target_mean - scale * rotation @ source_mean
    return Pose(rotation.astype(np.float32), translation.astype(np.float32), scale)


def fit_pose(points: F32, reference: F32 | None = None) -> Pose:
    """The rigid pose of (478, 3) pixel points, from the stable points.

    reference: (478, 3) canonical shape to fit; the bundled template where None. A person's own
    neutral shape gives a steadier pose than the template.
    Raises ValueError for another shape or for points that are not finite.
    """
    if points.shape != (POINTS, 3):
        raise ValueError(f"points must be ({POINTS}, 3), not {points.shape}")
    stable = list(STABLE)
    if not np.isfinite(points[stable]).all():
        raise ValueError("points must be finite; a frame without a face has no pose")
    base = template() if reference is None else reference
    return fit_similarity(base[stable], points[stable], _stable_weights())


def to_canonical(points: F32, pose: Pose) -> F32:
    """Pixel points (n, 3) to the canonical frame."""
    return np.asarray(((points - pose.translation) @ pose.rotation) / pose.scale, np.float32)


def from_canonical(shape: F32, pose: Pose) -> F32:
    """Canonical points (n, 3) to pixels; the inverse of to_canonical."""
    return np.asarray(pose.scale * shape @ pose.rotation.T + pose.translation, np.float32)


def aperture(shape: F32) -> float:
    """Mean signed gap of the inner lips of a canonical shape, in canonical units; about 0 when shut.

    Linear in the shape, so that a linear basis can own it.
    """
    down = shape[:, 1]
    return float((down[_LOWER_INNER] - down[_UPPER_INNER]).mean())


def lip_opening(points: F32) -> float:
    """Inner lip gap (13 to 14) over face height (10 to 152), both in the picture plane."""
    return float(
        np.linalg.norm(points[13, :2] - points[14, :2]) / np.linalg.norm(points[10, :2] - points[152, :2])
    )


def lip_width(points: F32) -> float:
    """Mouth corner distance (61 to 291) over face height, in the picture plane."""
    return float(
        np.linalg.norm(points[61, :2] - points[291, :2]) / np.linalg.norm(points[10, :2] - points[152, :2])
    )


class LipJawBasis(Protocol):
    """What identity needs of an expression basis; coefficient 0 is the aperture (see ExpressionBasis)."""

    def project(self, offsets: F32) -> F32: ...

    def apply(self, expression: F32) -> F32: ...


CLOSED_QUANTILE = 0.12
"""The share of a person's frames, lips nearest together, that stands for the relaxed closed mouth."""

CLOSED_GAP = 0.002
"""Aperture in canonical units that the landmarker reports for shut lips (median over the training clips)."""


class IdentityEstimator:
    """A person's own neutral shape (lips closed, relaxed) from whatever the person does.

    What the basis cannot express is averaged over time, outliers held back. What it can express is
    kept as a short history of coefficients, and the neutral is the frames with the lips nearest together,
    then closed along the opening alone. Fast within the first second, slow afterwards. Not thread-safe.
    """

    def __init__(self, basis: LipJawBasis, memory: int = 500, history: int = 300) -> None:
        """memory: frames over which the settled mean forgets; history: coefficients kept."""
        self._basis = basis
        self._memory = memory
        self._history: deque[F32] = deque(maxlen=history)
        self._seen = 0
        self._residual = np.zeros((POINTS, 3), np.float32)
        self._spread = 0.0
        self._origin: F32 | None = None

    def reset(self) -> None:
        """Forget the person, as after a cut."""
        self._history.clear()
        self._seen = 0
        self._residual = np.zeros((POINTS, 3), np.float32)
        self._spread = 0.0
        self._origin = None

    @property
    def frames(self) -> int:
        """Frames seen since the last reset."""
        return self._seen

    @property
    def settled(self) -> bool:
        """Whether about a second of frames has been seen."""
        return self._seen >= 25

    def update(self, shape: F32) -> None:
        """Take in one frame's canonical shape (478, 3)."""
        coefficients = self._basis.project(shape - template())
        residual = shape - template() - self._basis.apply(coefficients)
        # A frame far from the mean (an occluding hand, a bad fit) may pull only as far as a usual one.
        distance = float(np.sqrt(((residual - self._residual) ** 2).mean()))
        self._seen += 1
        pull = 1.0 / min(self._seen, self._memory)
        if self._seen > 10 and distance > 2.5 * self._spread > 0:
            pull *= 2.5 * self._spread / distance
        self._residual += np.float32(pull) * (residual - self._residual)
        self._spread += (min(distance, 3 * self._spread) if self._seen > 10 else distance) * pull - (
            self._spread * pull
        )
        self._history.append(coefficients)
        if self._seen <= 50 or self._seen % 5 == 0:
            self._origin = self._closed_origin()

    def _closed_origin(self) -> F32:
        """Coefficients of this person's closed mouth, relative to the template."""
        kept = np.stack(self._history)
        opening = kept[:, 0]
        # The very lowest are often blinks of the tracker; the quantile's own neighbourhood is steady.
        limit = np.quantile(opening, CLOSED_QUANTILE)
        origin: F32 = np.asarray(np.median(kept[opening <= limit], axis=0), np.float32)
        neutral = template() + self._residual + self._basis.apply(origin)
        origin[0] -= max(0.0, aperture(neutral) - CLOSED_GAP)
        return origin

    @property
    def neutral(self) -> F32:
        """(478, 3) canonical neutral shape; the template before any frame."""
        if self._origin is None:
            return template().copy()
        return np.asarray(template() + self._residual + self._basis.apply(self._origin), np.float32)

    def expression(self, shape: F32) -> F32:
        """(K,) coefficients of a canonical shape relative to this person's neutral."""
        return self._basis.project(np.asarray(shape - self.neutral, np.float32))
