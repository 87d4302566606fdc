"""Fast Fourier convolution blocks as L-Net uses them: a quarter of the channels local, the rest global."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retalk_models.videoretalking.layers import AdaIN

FOURIER_SLOPE = 0.01
"""Negative slope after these blocks. L-Net's other blocks use 0.1; the weights were trained with this mix."""


class FourierUnit(nn.Module):
    """A 1x1 convolution on the spectrum, real and imaginary parts as neighbouring channels; in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_layer = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        spectrum = torch.view_as_real(torch.fft.rfft2(x.float(), norm="ortho"))
        planes = spectrum.permute(0, 1, 4, 2, 3).reshape(batch, 2 * channels, height, -1)
        planes = F.relu(self.bn(self.conv_layer(planes)))
        planes = planes.reshape(batch, channels, 2, height, -1).permute(0, 1, 3, 4, 2).contiguous()
        back: Tensor = torch.fft.irfft2(torch.view_as_complex(planes), s=(height, width), norm="ortho")
        return back.to(x.dtype)


class SpectralTransform(nn.Module):
    """The global path: narrow to half, add the Fourier unit's view of it, widen again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Sequential(nn.Conv2d(channels, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU())
        self.fu = FourierUnit(half)
        self.conv2 = nn.Conv2d(half, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        out: Tensor = self.conv2(x + self.fu(x))
        return out


def reflecting(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect", bias=False)


class FFC(nn.Module):
    """Fast Fourier convolution: (local, global) -> (local, global)."""

    def __init__(self, local: int, glob: int) -> None:
        super().__init__()
        self.convl2l = reflecting(local, local)
        self.convl2g = reflecting(local, glob)
        self.convg2l = reflecting(glob, local)
        self.convg2g = SpectralTransform(glob)

    def forward(self, local: Tensor, glob: Tensor) -> tuple[Tensor, Tensor]:
        return self.convl2l(local) + self.convg2l(glob), self.convl2g(local) + self.convg2g(glob)


class FFCUnit(nn.Module):
    """FFC, then AdaIN on each part and a leaky ReLU. (B, C, H, W) -> the same, local channels first."""

    def __init__(self, channels: int, z_channels: int) -> None:
        super().__init__()
        self.local = channels // 4
        glob = channels - self.local
        self.ffc = FFC(self.local, glob)
        self.bn_l = AdaIN(self.local, z_channels)
        self.bn_g = AdaIN(glob, z_channels)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        local, glob = self.ffc(x[:, : self.local], x[:, self.local :])
        return F.leaky_relu(torch.cat([self.bn_l(local, z), self.bn_g(glob, z)], dim=1), FOURIER_SLOPE)


class FFCResidual(nn.Module):
    """x + unit(unit(x))."""

    def __init__(self, channels: int, z_channels: int) -> None:
        super().__init__()
        self.conv1 = FFCUnit(channels, z_channels)
        self.conv2 = FFCUnit(channels, z_channels)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x, z), z)
        return x + out
