"""The linear lip-and-jaw basis that expression is measured and drawn in."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from safetensors.numpy import load

from retalk_models.face.geometry import POINTS, aperture
from retalk_models.picture import F32

WEIGHTS_FILE = "talkin_basis.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class ExpressionBasis:
    """K directions of lower-face offsets in canonical units.

    vectors: (K, 478, 3) float32. Coefficient 0 is the opening: its unit is the aperture of
    `geometry.aperture`, and the other vectors leave the aperture as it is. Coefficients 1.. have about
    unit standard deviation over the training clips. All zero is the neutral: lips closed, relaxed.
    projector: (K, 478 * 3) float32, weighted least squares onto the vectors.
    """

    vectors: F32
    projector: F32

    def __post_init__(self) -> None:
        count = len(self.vectors)
        if self.vectors.shape != (count, POINTS, 3) or self.projector.shape != (count, POINTS * 3):
            raise ValueError(
                f"a basis needs vectors (K, {POINTS}, 3) and projector (K, {POINTS * 3}), "
                f"not {self.vectors.shape} and {self.projector.shape}"
            )

    @property
    def size(self) -> int:
        """K."""
        return len(self.vectors)

    @classmethod
    def load(cls, path: Path | None = None) -> ExpressionBasis:
        """From a safetensors file; the bundled one where path is None."""
        if path is None:
            data = files("retalk_models").joinpath("weights", WEIGHTS_FILE).read_bytes()
        else:
            data = path.read_bytes()
        tensors = load(data)
        return cls(tensors["vectors"], tensors["projector"])

    def project(self, offsets: F32) -> F32:
        """(478, 3) offsets from a neutral shape, or (n, 478, 3), to (K,) or (n, K) coefficients."""
        flat = offsets.reshape(*offsets.shape[:-2], POINTS * 3)
        out: F32 = np.asarray(flat @ self.projector.T, np.float32)
        # The aperture itself is read from the lips, not left to the fit over all vertices.
        if offsets.ndim == 2:
            out[0] = aperture(offsets)
        else:
            out[:, 0] = [aperture(one) for one in offsets]
        return out

    def apply(self, expression: F32) -> F32:
        """(K,) coefficients, or (n, K), to (478, 3) or (n, 478, 3) offsets to add to a neutral shape."""
        flat = expression @ self.vectors.reshape(self.size, -1)
        return np.asarray(flat.reshape(*expression.shape[:-1], POINTS, 3), np.float32)
