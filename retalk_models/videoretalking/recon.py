"""The 3DMM coefficient regressor (Deep3DFaceRecon): an aligned face in, 257 coefficients out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPRESSION = slice(80, 144)
ANGLE = slice(224, 227)
TRANSLATION = slice(254, 257)
WIDTHS = (80, 64, 80, 3, 27, 2, 1)
"""Outputs of the regressor's seven heads, in order."""


class Bottleneck(nn.Module):
    """ResNet-50's block in its version 1.5: the stride sits on the 3x3 convolution."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.bn3(self.conv3(x))
        return F.relu(out + shortcut)


def stage(inputs: int, width: int, count: int, stride: int) -> nn.Sequential:
    first = Bottleneck(inputs, width, stride)
    return nn.Sequential(first, *(Bottleneck(4 * width, width, 1) for _ in range(count - 1)))


class Backbone(nn.Module):
    """ResNet-50 without its classifier: (B, 3, H, W) -> (B, 2048, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(64, 64, 3, 1)
        self.layer2 = stage(256, 128, 4, 2)
        self.layer3 = stage(512, 256, 6, 2)
        self.layer4 = stage(1024, 512, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3), keepdim=True)


class CoefficientNet(nn.Module):
    """(B, 3, 224, 224) aligned RGB face, 0..1 -> (B, 257) float32 coefficients.

    This module's constants slice them. ANGLE is in radians. No mean or deviation is taken off the picture.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.final_layers = nn.ModuleList(nn.Conv2d(2048, width, 1) for width in WIDTHS)
        self.compute_dtype = torch.float32

    def forward(self, face: Tensor) -> Tensor:
        pooled = self.backbone(face.to(self.compute_dtype)).float()
        return torch.cat([layer(pooled) for layer in self.final_layers], dim=1).flatten(1)
