"""D-Net: the same face and pose with another expression (image and 3DMM coefficient window in, image out).

PIRenderer's family as VideoReTalking uses it; facts checked against the official commit d32e8e5.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retalk_models.videoretalking.layers import (
    SLOPE,
    AdaIN,
    ConvBlock,
    FinalConv,
    LayerNorm2d,
    attach,
    pop_prefixed,
)

SEMANTICS = 73
"""Rows of a semantic window: 64 expression, 3 angle, 3 translation, 3 crop (scale, x, y)."""
DESCRIPTOR = 256


class DNetOutput(NamedTuple):
    """flow: (B, 2, 64, 64) float32, pixels of the 64x64 grid, x then y.

    warp_image: (B, 3, 256, 256) float32, the input moved by the flow.
    fake_image: same shape, the result, -1..1.
    """

    flow: Tensor
    warp_image: Tensor
    fake_image: Tensor


def activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


class MappingNet(nn.Module):
    """(B, 73, T) semantic window, T >= 25 -> (B, 256, 1) descriptor: what to show and in which pose."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(SEMANTICS, DESCRIPTOR, 7))
        for index in range(3):
            conv = nn.Conv1d(DESCRIPTOR, DESCRIPTOR, 3, dilation=3)
            self.add_module(f"encoder{index}", nn.Sequential(nn.LeakyReLU(SLOPE), conv))

    def forward(self, semantics: Tensor) -> Tensor:
        out: Tensor = self.first(semantics)
        for index in range(3):
            out = self.get_submodule(f"encoder{index}")(out) + out[:, :, 3:-3]
        return out.mean(dim=2, keepdim=True)


class AdaINDown(nn.Module):
    """Halves the size: two convolutions, each after AdaIN and leaky ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_0 = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
        self.conv_1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm_0 = AdaIN(inputs, DESCRIPTOR)
        self.norm_1 = AdaIN(outputs, DESCRIPTOR)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x = self.conv_0(activate(self.norm_0(x, z)))
        out: Tensor = self.conv_1(activate(self.norm_1(x, z)))
        return out


class AdaINUp(nn.Module):
    """Doubles the size by transposed convolutions, with a learned shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv_1 = nn.ConvTranspose2d(outputs, outputs, 3, stride=2, padding=1, output_padding=1)
        self.conv_s = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
        self.norm_0 = AdaIN(inputs, DESCRIPTOR)
        self.norm_1 = AdaIN(outputs, DESCRIPTOR)
        self.norm_s = AdaIN(inputs, DESCRIPTOR)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        shortcut: Tensor = self.conv_s(activate(self.norm_s(x, z)))
        x = self.conv_0(activate(self.norm_0(x, z)))
        out: Tensor = self.conv_1(activate(self.norm_1(x, z)))
        return out + shortcut


class WarpEncoder(nn.Module):
    CHANNELS = (32, 64, 128, 256, 256, 256)

    def __init__(self) -> None:
        super().__init__()
        self.input_layer = nn.Conv2d(3, self.CHANNELS[0], 7, padding=3)
        pairs = enumerate(pairwise(self.CHANNELS))
        attach(self, {f"encoder{index}": AdaINDown(*pair) for index, pair in pairs})

    def forward(self, x: Tensor, z: Tensor) -> list[Tensor]:
        levels = [self.input_layer(x)]
        for index in range(5):
            levels.append(self.get_submodule(f"encoder{index}")(levels[-1], z))
        return levels


class WarpDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        attach(
            self,
            {"decoder4": AdaINUp(256, 256), "decoder3": AdaINUp(512, 256), "decoder2": AdaINUp(512, 128)},
        )

    def forward(self, levels: list[Tensor], z: Tensor) -> Tensor:
        x = levels[5]
        for index in (4, 3, 2):
            x = torch.cat([self.get_submodule(f"decoder{index}")(x, z), levels[index]], dim=1)
        return x


class Hourglass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = WarpEncoder()
        self.decoder = WarpDecoder()

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.encoder(x, z), z)
        return out


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Move `image` (B, 3, H, W) by `flow` (B, 2, h, w), in pixels of the flow's own grid; both float32.

    The base grid puts -1 and 1 on pixel centres while the sampler puts them on pixel edges; the weights
    were trained with that mixture, so it stays.
    """
    height, width = flow.shape[2:]
    columns = torch.linspace(-1.0, 1.0, width, device=flow.device)
    rows = torch.linspace(-1.0, 1.0, height, device=flow.device)[:, None]
    x = columns + flow[:, 0] * (2.0 / (width - 1))
    y = rows + flow[:, 1] * (2.0 / (height - 1))
    size = (image.shape[2], image.shape[3])
    grid = F.interpolate(torch.stack([x, y], dim=1), size=size, mode="bilinear", align_corners=False)
    return F.grid_sample(image, grid.permute(0, 2, 3, 1), padding_mode="zeros", align_corners=False)


class WarpingNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hourglass = Hourglass()
        self.flow_out = nn.Sequential(LayerNorm2d(256), nn.LeakyReLU(SLOPE), nn.Conv2d(256, 2, 7, padding=3))

    def forward(self, image: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        flow: Tensor = self.flow_out(self.hourglass(image, z).float())
        return flow, warp(image.float(), flow)


class EditEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = ConvBlock(6, 64, 7, spectral=False)
        sizes = ((64, 128), (128, 256), (256, 256))
        for index, pair in enumerate(sizes):
            self.add_module(f"down{index}", ConvBlock(*pair, spectral=False, down=True))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [self.first(x)]
        for index in range(3):
            levels.append(self.get_submodule(f"down{index}")(levels[-1]))
        return levels


class EditResidual(nn.Module):
    """x + AdaIN(conv(x)).

    The official block also evaluates `conv1` and `norm1`, and throws the result away. Their weights are
    accepted from a file and dropped: chaining the two convolutions would ruin the picture.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = AdaIN(channels, DESCRIPTOR)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for dead in ("conv1.", "norm1."):
            pop_prefixed(state_dict, prefix + dead)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.norm2(self.conv2(x), z)
        return x + out


class EditDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for index, inputs, outputs in ((2, 256, 256), (1, 256, 128), (0, 128, 64)):
            residuals = nn.Module()
            attach(residuals, {"res0": EditResidual(inputs), "res1": EditResidual(inputs)})
            self.add_module(f"res{index}", residuals)
            self.add_module(f"up{index}", ConvBlock(inputs, outputs, spectral=False, up=True))
            self.add_module(f"jump{index}", ConvBlock(outputs, outputs, spectral=False))
        self.final = FinalConv(64, spectral=False)

    def forward(self, levels: list[Tensor], z: Tensor) -> Tensor:
        x = levels[3]
        for index in (2, 1, 0):
            for block in ("res0", "res1"):
                x = self.get_submodule(f"res{index}.{block}")(x, z)
            jump = self.get_submodule(f"jump{index}")(levels[index])
            x = self.get_submodule(f"up{index}")(x) + jump
        return torch.tanh(self.final(x))


class EditingNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = EditEncoder()
        self.decoder = EditDecoder()

    def forward(self, image: Tensor, warped: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.encoder(torch.cat([image, warped], dim=1)), z)
        return out


class DNet(nn.Module):
    """Canonical expression: a face crop redrawn with another expression, its pose kept.

    image: (B, 3, 256, 256) RGB, -1..1. semantics: (B, 73, T) float32, T >= 25 (26 officially), one column
    per frame of the window, rows as in SEMANTICS, crop rows in raw pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mapping_net = MappingNet()
        self.warpping_net = WarpingNet()
        self.editing_net = EditingNet()
        self.bank: nn.Module | None = None
        self.compute_dtype = torch.float32

    def describe(self, semantics: Tensor) -> Tensor:
        """(B, 73, T) -> (B, 256, 1). Always float32: the crop rows are of the order of a hundred pixels."""
        out: Tensor = self.mapping_net(semantics.float())
        return out

    def forward(self, image: Tensor, semantics: Tensor) -> DNetOutput:
        z = self.describe(semantics)
        if self.bank is not None:
            z = self.bank(z.flatten(1))
        image = image.to(self.compute_dtype)
        flow, warped = self.warpping_net(image, z)
        fake = self.editing_net(image, warped.to(self.compute_dtype), z)
        return DNetOutput(flow, warped, fake.float())
