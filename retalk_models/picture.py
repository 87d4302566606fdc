"""One picture as planar 4:2:0, so that what no engine touches leaves exactly as it came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Flags = NDArray[np.bool_]


class Box(NamedTuple):
    """A pixel rectangle: left and top inclusive, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An 8-bit I420 picture (BT.601 limited range wherever it meets RGB).

    planes: (padded_height * 3 // 2, padded_width) uint8, C-contiguous: Y, then U, then V.
    width, height: the visible size in pixels; padding makes both even by repeating the edge.
    """

    planes: U8
    width: int
    height: int

    def __post_init__(self) -> None:
        expected = (self.padded_height * 3 // 2, self.padded_width)
        if self.planes.shape != expected or self.planes.dtype != np.uint8:
            raise ValueError(
                f"planes of a {self.width}x{self.height} picture must be uint8 {expected}, "
                f"not {self.planes.dtype} {self.planes.shape}"
            )

    @property
    def padded_width(self) -> int:
        return self.width + self.width % 2

    @property
    def padded_height(self) -> int:
        return self.height + self.height % 2

    @property
    def y(self) -> U8:
        """The luma plane, (padded_height, padded_width), a view."""
        return self.planes[: self.padded_height]

    @property
    def u(self) -> U8:
        """The blue-difference plane, (padded_height / 2, padded_width / 2), a view."""
        return self._chroma(0)

    @property
    def v(self) -> U8:
        """The red-difference plane, (padded_height / 2, padded_width / 2), a view."""
        return self._chroma(1)

    def _chroma(self, index: int) -> U8:
        half_height, half_width = self.padded_height // 2, self.padded_width // 2
        flat = self.planes[self.padded_height :].reshape(-1)
        size = half_height * half_width
        return flat[index * size : (index + 1) * size].reshape(half_height, half_width)

    def part(self, box: Box) -> tuple[U8, U8, U8]:
        """Y, U and V of an even-aligned rectangle, (h, w) and twice (h / 2, w / 2), views."""
        half = (slice(box.top // 2, box.bottom // 2), slice(box.left // 2, box.right // 2))
        return self.y[box.top : box.bottom, box.left : box.right], self.u[half], self.v[half]

    def copy(self) -> Picture:
        return Picture(self.planes.copy(), self.width, self.height)

    def rgb(self) -> U8:
        """(height, width, 3) uint8 RGB of the visible picture."""
        full = cv2.cvtColor(self.planes, cv2.COLOR_YUV2RGB_I420)
        return np.ascontiguousarray(full[: self.height, : self.width], dtype=np.uint8)

    @staticmethod
    def from_rgb(rgb: U8) -> Picture:
        """From (height, width, 3) uint8 RGB; odd sizes are padded by repeating the edge."""
        height, width = rgb.shape[:2]
        if height % 2 or width % 2:
            rgb = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        planes = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2YUV_I420)
        return Picture(np.asarray(planes, dtype=np.uint8), width, height)
