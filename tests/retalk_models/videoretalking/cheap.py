"""Stages that cost nothing, and say what was asked of them: for everything around the nets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from retalk_models.videoretalking.files import Expressions
from retalk_models.videoretalking.stages import FaceReference, FaceWork, Stages
from tests.retalk_models.videoretalking import synthetic


class CheapStages(Stages):
    """Fills the lower half with one colour: blue by loudness, green 0.5, red where enhanced.

    A reference's features are its face's mean colour. asked: names of the calls, in order.
    """

    def __init__(self) -> None:
        self.device, self.dtype = torch.device("cpu"), None
        self.expressions = Expressions(np.zeros(64, np.float32), np.ones(64, np.float32))
        self.standard_points = synthetic.standard_points()
        self.asked: list[str] = []
        self.semantics: list[Tensor] = []
        self.work: list[FaceWork] = []

    def coefficients(self, aligned: Tensor) -> Tensor:
        assert aligned.shape == (1, 3, 224, 224)
        self.asked.append("coefficients")
        return torch.full((257,), 0.25)

    def canonical(self, image: Tensor, semantics: Tensor) -> Tensor:
        assert image.shape == (1, 3, 256, 256)
        assert semantics.shape == (1, 73, 26)
        self.asked.append("canonical")
        self.semantics.append(semantics)
        return image * 0.5

    def reference(self, face: Tensor) -> FaceReference:
        assert face.shape == (1, 3, 384, 384)
        self.asked.append("reference")
        return FaceReference(face.mean(dim=(2, 3), keepdim=True), torch.zeros(1, 512))

    def speak(self, work: Sequence[FaceWork]) -> tuple[list[Tensor], dict[str, float]]:
        self.work += work
        faces = []
        for one in work:
            assert one.masked[:, :, 192:].abs().max() == 0
            face = one.masked.clone()
            loud = float((one.mel + 4).mean() / 8)
            enhanced = 0.0 if one.noise is None else 1.0
            face[:, :, 192:] = torch.tensor([loud, 0.5, enhanced])[None, :, None, None]
            faces.append(face)
        return faces, {"lip_sync": 1.0, "enhancement": 2.0}
