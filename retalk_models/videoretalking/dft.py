"""Real Fourier transforms of small pictures as products with fixed matrices.

Their sizes (12, 24, 48) are no powers of two, which half-precision FFTs need, and one product is one kernel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

WHOLE = 12
"""Side up to which both directions are one product; above, one product for each direction is less work."""


def angles(rows: int, columns: int, period: int) -> Tensor:
    """2 pi r c / period, (rows, columns) float64."""
    product = torch.outer(torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64))
    return product.remainder(period) * (2 * math.pi / period)


def row_matrices(size: int) -> tuple[Tensor, Tensor]:
    """Ortho real transform along a row, K = size / 2 + 1 bins: (size, 2K) and back (2K, size).

    The spectrum's real parts come first, then the imaginary ones. Back, the imaginary parts of the first and
    the last bin count for nothing, and every other bin for two.
    """
    angle = angles(size, size // 2 + 1, size)
    scale = size**-0.5
    there = torch.cat([angle.cos(), -angle.sin()], dim=1) * scale
    weight = torch.full((size // 2 + 1,), 2.0, dtype=torch.float64)
    weight[0] = weight[-1] = 1.0
    back = torch.cat([weight[:, None] * angle.cos().T, -weight[:, None] * angle.sin().T]) * scale
    return there, back


def column_matrices(size: int) -> tuple[Tensor, Tensor]:
    """Ortho complex transform along a column, real rows above imaginary ones: (2 size, 2 size), and back."""
    angle = angles(size, size, size)
    cosine, sine = angle.cos() * size**-0.5, angle.sin() * size**-0.5
    there = torch.cat([torch.cat([cosine, sine], dim=1), torch.cat([-sine, cosine], dim=1)])
    return there, there.T.contiguous()


class SmallDFT(nn.Module):
    """`rfft2` and `irfft2` of squares of one even side, ortho norm, computed in the matrices' dtype.

    The spectrum of (B, C, S, S) is (B, 2C, S, S/2 + 1): real and imaginary parts are neighbouring channels.
    """

    there: Tensor
    back: Tensor
    column_there: Tensor
    column_back: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 2 or size % 2:
            raise ValueError(f"the side of a transform is {size} and must be even")
        self.size = size
        self.bins = size // 2 + 1
        self.whole = size <= WHOLE
        rows, columns = row_matrices(size), column_matrices(size)
        matrices = dict(zip(("there", "back", "column_there", "column_back"), (*rows, *columns), strict=True))
        if self.whole:
            eye = torch.eye(size * size, dtype=torch.float64).reshape(-1, 1, size, size)
            there = self._split_there(eye, *matrices.values()).reshape(size * size, -1)
            basis = torch.eye(2 * size * self.bins, dtype=torch.float64).reshape(-1, 2, size, self.bins)
            back = self._split_back(basis, *matrices.values()).reshape(2 * size * self.bins, -1)
            matrices = {"there": there, "back": back}
        for name, matrix in matrices.items():
            self.register_buffer(name, matrix.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        x = x.to(self.there.dtype)
        if not self.whole:
            return self._split_there(x, self.there, self.back, self.column_there, self.column_back)
        spectrum = x.reshape(batch, channels, -1) @ self.there
        return spectrum.reshape(batch, 2 * channels, self.size, self.bins)

    def inverse(self, spectrum: Tensor) -> Tensor:
        batch, channels = spectrum.shape[0], spectrum.shape[1] // 2
        spectrum = spectrum.to(self.back.dtype)
        if not self.whole:
            return self._split_back(spectrum, self.there, self.back, self.column_there, self.column_back)
        x = spectrum.reshape(batch, channels, -1) @ self.back
        return x.reshape(batch, channels, self.size, self.size)

    def _split_there(
        self, x: Tensor, there: Tensor, back: Tensor, column: Tensor, column_back: Tensor
    ) -> Tensor:
        batch, channels, size, bins = x.shape[0], x.shape[1], self.size, self.bins
        rows = (x @ there).reshape(batch, channels, size, 2, bins).transpose(2, 3)
        spectrum = column @ rows.reshape(batch, channels, 2 * size, bins)
        return spectrum.reshape(batch, 2 * channels, size, bins)

    def _split_back(
        self, spectrum: Tensor, there: Tensor, back: Tensor, column: Tensor, column_back: Tensor
    ) -> Tensor:
        batch, channels, size, bins = spectrum.shape[0], spectrum.shape[1] // 2, self.size, self.bins
        rows = column_back @ spectrum.reshape(batch, channels, 2 * size, bins)
        rows = rows.reshape(batch, channels, 2, size, bins).transpose(2, 3)
        return rows.reshape(batch, channels, size, 2 * bins) @ back
