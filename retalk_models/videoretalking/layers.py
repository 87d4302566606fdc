"""What D-Net and L-Net are built of.

Attribute names repeat the official state dicts' keys, odd spellings included, so that files load strictly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5
SLOPE = 0.1
"""Negative slope of every leaky ReLU here but the Fourier blocks' own."""


def pop_prefixed(state: dict[str, Any], prefix: str) -> None:
    """Take every key that starts with `prefix` out of a state dict."""
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]


def fold_spectral_norm(weight_orig: Tensor, u: Tensor, v: Tensor, name: str) -> Tensor:
    """What a spectrally normalised layer applies in evaluation: `weight_orig` over its stored sigma.

    weight_orig: (out, ...); u: (out,); v: (product of the other dimensions,). Raises ValueError, naming
    the layer, where sigma is zero or not finite.
    """
    sigma = torch.dot(u.double(), weight_orig.double().flatten(1) @ v.double())
    if not torch.isfinite(sigma) or float(sigma) == 0.0:
        raise ValueError(f"{name}: its spectral norm is {float(sigma)}, and must be finite and not zero")
    return (weight_orig.double() / sigma).to(weight_orig.dtype)


class SpectralConv2d(nn.Conv2d):
    """A plain convolution that loads the three stored tensors of a spectrally normalised one, folded."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        stored = [prefix + name for name in ("weight_orig", "weight_u", "weight_v")]
        if all(name in state_dict for name in stored):
            weight, u, v = (state_dict.pop(name) for name in stored)
            state_dict[prefix + "weight"] = fold_spectral_norm(weight, u, v, prefix.rstrip("."))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class LayerNorm2d(nn.Module):
    """Normalises each sample over channels and space jointly, then scales and shifts by channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # One group over all channels is this very norm, in one kernel that keeps channels_last.
        return F.group_norm(x, 1, self.weight.flatten(), self.bias.flatten(), EPS)


class AdaIN(nn.Module):
    """Instance norm whose scale and shift come from a condition vector (B, z): y * (1 + gamma) + beta."""

    def __init__(self, channels: int, z_channels: int, hidden: int = 128) -> None:
        super().__init__()
        self.mlp_shared = nn.Sequential(nn.Linear(z_channels, hidden), nn.ReLU())
        self.mlp_gamma = nn.Linear(hidden, channels)
        self.mlp_beta = nn.Linear(hidden, channels)

    @property
    def channels(self) -> int:
        return self.mlp_gamma.out_features

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        hidden = self.mlp_shared(z.flatten(1))
        gamma, beta = self.mlp_gamma(hidden), self.mlp_beta(hidden)
        out: Tensor = F.instance_norm(x, eps=EPS) * (1 + gamma[:, :, None, None]) + beta[:, :, None, None]
        return out


def convolution(
    inputs: int, outputs: int, kernel: int, *, spectral: bool = False, padding: int | None = None
) -> nn.Conv2d:
    """A stride-1 convolution that keeps the size, of the plain or the spectrally normalised kind."""
    kind = SpectralConv2d if spectral else nn.Conv2d
    return kind(inputs, outputs, kernel, padding=kernel // 2 if padding is None else padding)


class ConvBlock(nn.Module):
    """Convolution, LayerNorm2d, leaky ReLU; on request a nearest doubling before or a halving after."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        spectral: bool,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.model = nn.Sequential(
            convolution(inputs, outputs, kernel, spectral=spectral), LayerNorm2d(outputs), nn.LeakyReLU(SLOPE)
        )
        self.down = down
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = self.model(x)
        return F.avg_pool2d(x, 2) if self.down else x


class FinalConv(nn.Module):
    """The 7x7 convolution to three channels at a net's end, without its squashing function."""

    def __init__(self, inputs: int, *, spectral: bool) -> None:
        super().__init__()
        self.model = nn.Sequential(convolution(inputs, 3, 7, spectral=spectral))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


def attach(module: nn.Module, children: Mapping[str, nn.Module]) -> None:
    """Register numbered children such as `down0`, in the order given."""
    for name, child in children.items():
        module.add_module(name, child)
