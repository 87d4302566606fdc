"""Where the nets want a face: crops and alignments from 68 landmarks (iBUG 300-W), in pixels, y down."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from retalk_models.picture import F32, U8, Box
from retalk_models.videoretalking.dnet import SEMANTICS
from retalk_models.videoretalking.recon import ANGLE, EXPRESSION, TRANSLATION

F64 = NDArray[np.float64]

ALIGNED = 224
"""Side of the coefficient net's picture."""
FACE_SPAN = 102.0
"""Scale of the standard points in that picture."""
BEFORE, AFTER = 13, 12
"""Frames of a semantic window before and after its own."""
WINDOW = BEFORE + 1 + AFTER


def five_points(landmarks: F64) -> F64:
    """(68, 2 or 3) -> (5, 2 or 3): eye, eye, nose tip, mouth corner, mouth corner.

    The eyes are the middles of their corners.
    """
    left, right = landmarks[[36, 39]].mean(axis=0), landmarks[[42, 45]].mean(axis=0)
    return np.stack([left, right, landmarks[30], landmarks[48], landmarks[54]])


@dataclass(frozen=True, slots=True)
class Alignment:
    """How a picture was brought before the coefficient net, and what D-Net hears of it.

    width, height: the picture. scale: its enlargement. x, y: the face's middle in the picture, y upwards.
    """

    width: int
    height: int
    scale: float
    x: float
    y: float

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height after enlargement."""
        return int(self.width * self.scale), int(self.height * self.scale)

    @property
    def corner(self) -> tuple[int, int]:
        """Left and top of the ALIGNED x ALIGNED cut in the enlarged picture; may lie outside it."""
        wide, high = self.resized
        left = int(wide / 2 - ALIGNED / 2 + (self.x - self.width / 2) * self.scale)
        top = int(high / 2 - ALIGNED / 2 + (self.height / 2 - self.y) * self.scale)
        return left, top


def align(landmarks: F64, standard: F64, width: int, height: int) -> Alignment:
    """Fit the standard face to the landmarks of a width x height picture by weak perspective.

    landmarks: (68, 2), y down. standard: (68, 3) or its (5, 3) points.
    """
    points = five_points(landmarks)
    points[:, 1] = height - 1 - points[:, 1]
    model = standard if len(standard) == 5 else five_points(standard)
    rows, *_ = np.linalg.lstsq(np.column_stack([model, np.ones(5)]), points, rcond=None)
    size = float(np.linalg.norm(rows[:3], axis=0).mean())
    return Alignment(width, height, FACE_SPAN / size, float(rows[3, 0]), float(rows[3, 1]))


def cut_aligned(rgb: U8, alignment: Alignment) -> U8:
    """(H, W, 3) -> (224, 224, 3) RGB for the coefficient net; what lies outside the picture is black."""
    wide, high = alignment.resized
    larger = cv2.resize(rgb, (wide, high), interpolation=cv2.INTER_CUBIC)
    left, top = alignment.corner
    out = np.zeros((ALIGNED, ALIGNED, 3), np.uint8)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + ALIGNED, wide), min(top + ALIGNED, high)
    if x0 < x1 and y0 < y1:
        out[y0 - top : y1 - top, x0 - left : x1 - left] = larger[y0:y1, x0:x1]
    return out


def semantic_row(coefficients: F32, alignment: Alignment) -> F32:
    """(257,) coefficients and how the face was aligned -> (73,) one column of a semantic window."""
    crop = np.array([alignment.scale, alignment.x, alignment.y], np.float32)
    parts = [coefficients[EXPRESSION], coefficients[ANGLE], coefficients[TRANSLATION], crop]
    return np.asarray(np.concatenate(parts), np.float32)


def window_indices(frame: int, count: int) -> NDArray[np.intp]:
    """(26,) frames of the window around `frame` of `count`; the ends are held."""
    return np.clip(np.arange(frame - BEFORE, frame + AFTER + 1), 0, count - 1)


def semantic_window(rows: F32, expression: F32 | None = None) -> F32:
    """(n, 73) rows, oldest first, the last one held where fewer than 26 -> (73, 26) for D-Net.

    expression: (64,) put in place of the rows' own, as D-Net is used.
    """
    if rows.ndim != 2 or rows.shape[1] != SEMANTICS or not 1 <= len(rows) <= WINDOW:
        raise ValueError(f"semantic rows are {rows.shape} and should be (1 to {WINDOW}, {SEMANTICS})")
    out = rows[np.minimum(np.arange(WINDOW), len(rows) - 1)].T.astype(np.float32)
    if expression is not None:
        out[:64] = expression[:, None]
    return np.ascontiguousarray(out)


@dataclass(frozen=True, slots=True)
class FaceFrame:
    """A rotated square around a face, as FFHQ cuts one: centre and half axes, each (2,), in pixels."""

    centre: F64
    x: F64
    y: F64

    @property
    def quad(self) -> F64:
        """(4, 2) corners: top left, bottom left, bottom right, top right, as the face sees them."""
        c, x, y = self.centre, self.x, self.y
        return np.stack([c - x - y, c - x + y, c + x + y, c + x - y])


def face_frame(landmarks: F64) -> FaceFrame:
    """The square of a face from its eyes and mouth; landmarks (68, 2)."""
    left, right = landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0)
    eyes = (left + right) / 2
    down = (landmarks[48] + landmarks[54]) / 2 - eyes
    across = right - left
    direction = across + np.array([down[1], -down[0]])
    reach = max(2.0 * float(np.linalg.norm(across)), 1.8 * float(np.linalg.norm(down)))
    x = direction / np.linalg.norm(direction) * reach
    return FaceFrame(eyes + 0.1 * down, x, np.array([-x[1], x[0]]))


def first_crop(frame: FaceFrame, width: int, height: int) -> Box:
    """The upright rectangle around a face's square, within a width x height picture."""
    # Pixel corners, not centres; the official code truncates.
    (left, top), (right, bottom) = frame.quad.min(axis=0) + 0.5, frame.quad.max(axis=0) + 0.5
    return Box(max(int(left), 0), max(int(top), 0), min(int(right), width), min(int(bottom), height))


def square_from_quad(quad: F64, side: int) -> F64:
    """(3, 3) transform from picture pixels to a side x side square whose corners are the quad's."""
    ends = np.array([[0, 0], [0, side], [side, side], [side, 0]], np.float32)
    return np.asarray(cv2.getPerspectiveTransform(quad.astype(np.float32), ends), np.float64)
