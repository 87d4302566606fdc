"""E-Net: the 96x96 lips of L-Net redrawn at 384x384 in the style of a reference face.

Facts checked against the official commit d32e8e5. Colours are BGR in 0..1 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STYLE = 512
SLOPE = 0.2
PAD = 2
CROP = 8
NOISE_SIZES = (200, 200, 400, 400)
"""Side of each style convolution's noise map."""


def activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def resize(x: Tensor, size: int) -> Tensor:
    """Bilinear without antialiasing, as every resize here must be."""
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


def double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def halve(x: Tensor) -> Tensor:
    # Bilinear sampling at exactly half the size is the mean of 2x2 pixels.
    return F.avg_pool2d(x, 2)


def shrink(faces: Tensor) -> Tensor:
    """(B, C, 384, 384) -> (B, C, 96, 96), what L-Net takes; a mask from row 192 on is one from row 48 on."""
    return resize(faces, 96)


class DownBlock(nn.Module):
    """Halves the size: two convolutions and a plain shortcut, summed unscaled."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = self.skip(halve(x))
        return activate(self.conv2(halve(activate(self.conv1(x))))) + shortcut


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by the style and whose outputs are normed for it.

    Scaling input and output channels around one shared convolution equals one with per-sample weights.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, demodulate: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, outputs, inputs, kernel, kernel))
        self.modulation = nn.Linear(STYLE, inputs)
        self.demodulate = demodulate
        self.padding = kernel // 2

    def scales(self, style: Tensor, gain: float) -> tuple[Tensor, Tensor]:
        """Factors for input and output channels, (B, C, 1, 1) float32; those for the input are -1..1.

        What they are divided by comes back after the convolution, so that half precision cannot overflow in
        it, however strong a style is.
        """
        into: Tensor = self.modulation(style)
        peak = into.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
        if self.demodulate:
            energy = self.weight[0].float().square().sum(dim=(2, 3))
            out = gain * peak * torch.rsqrt(into.square() @ energy.T + 1e-8)
        else:
            out = peak
        return (into / peak)[:, :, None, None], out[:, :, None, None]

    def forward(self, x: Tensor, style: Tensor, *, gain: float = 1.0, up: bool = False) -> Tensor:
        into, out = self.scales(style, gain)
        x = x * into.to(x.dtype)
        x = F.conv2d(double(x) if up else x, self.weight[0], padding=self.padding)
        return x * out.to(x.dtype)


class StyleConv(nn.Module):
    """A modulated 3x3 convolution, noise, bias and leaky ReLU; doubles its input first where `up`."""

    def __init__(self, inputs: int, outputs: int, *, up: bool) -> None:
        super().__init__()
        self.modulated_conv = ModulatedConv(inputs, outputs, 3, demodulate=True)
        self.weight = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(1, outputs, 1, 1))
        self.up = up

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
        x = self.modulated_conv(x, style, gain=math.sqrt(2.0), up=self.up)
        if noise is not None:
            x = x + self.weight * noise.to(x.dtype)
        return activate(x + self.bias)


class ToRGB(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.modulated_conv = ModulatedConv(inputs, 3, 1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, style: Tensor, image: Tensor) -> Tensor:
        # Sums of small corrections to the picture: they stay in float32.
        correction: Tensor = self.modulated_conv(x, style)
        return correction.float() + self.bias.float() + double(image)


class ENet(nn.Module):
    """Enhancement. The style depends on the reference only, so it can be cached per reference."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_body_first = nn.Conv2d(3, 256, 1)
        widths = (256, 256, 512, 512, 512, 512, 512)
        self.conv_body_down = nn.ModuleList(DownBlock(*pair) for pair in pairwise(widths))
        self.final_linear = nn.Linear(512 * 4 * 4, STYLE)
        self.final_conv = nn.Conv2d(512, 512, 3, padding=1)
        self.style_convs = nn.ModuleList(
            StyleConv(inputs, outputs, up=up)
            for inputs, outputs, up in (
                (3, 256, True),
                (256, 256, False),
                (256, 128, True),
                (128, 128, False),
            )
        )
        self.to_rgbs = nn.ModuleList([ToRGB(256), ToRGB(128)])
        self.compute_dtype = torch.float32

    def style(self, reference: Tensor) -> Tensor:
        """(B, 3, H, W) BGR reference face, 0..1, any size (384 officially) -> (B, 512) float32 style."""
        x = activate(self.conv_body_first(resize(reference.float(), 256).to(self.compute_dtype)))
        for block in self.conv_body_down:
            x = block(x)
        x = activate(self.final_conv(x)).flatten(1)
        out: Tensor = self.final_linear(x.float())
        return out

    def draw(self, low: Tensor, style: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """L-Net's picture in a style, enlarged.

        low: (B, 3, 96, 96) float32 BGR, 0..1. style: (B, 512). noise: four maps (B or 1, 1, S, S) with S of
        NOISE_SIZES, or None for none at all. Result: (B, 3, 384, 384) float32 BGR, not clamped.
        """
        image = F.pad(low.float(), (PAD, PAD, PAD, PAD), mode="reflect")
        x = image.to(self.compute_dtype)
        maps: Sequence[Tensor | None] = (None, None, None, None) if noise is None else noise
        for index, to_rgb in enumerate(self.to_rgbs):
            for conv in (2 * index, 2 * index + 1):
                x = self.style_convs[conv](x, style, maps[conv])
            image = to_rgb(x, style, image)
        return image[:, :, CROP:-CROP, CROP:-CROP]

    def forward(self, low: Tensor, reference: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        return self.draw(low, self.style(reference), noise)


def draw_noise(seed: int, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """Noise maps for `ENet.draw`, fixed for a session so that the picture does not shimmer.

    Returns four float32 tensors (1, 1, S, S), standard normal, the same for the same seed on any device.
    """
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(1, 1, size, size, generator=generator).to(device) for size in NOISE_SIZES)
