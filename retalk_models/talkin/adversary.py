"""An adversary for the rendering net: late in training it says where a wide mouth looks drawn."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_WIDTHS = (24, 48, 64)

_SLOPE = 0.2


class Adversary(nn.Module):
    """(n, 3, SIDE, SIDE) pictures and their outlines, both -1..1, to (n, 1, SIDE / 8, SIDE / 8).

    What it gives is how real each patch looks.
    """

    def __init__(self) -> None:
        super().__init__()
        normed = nn.utils.parametrizations.spectral_norm
        taken = 6
        layers: list[nn.Module] = []
        for given in _WIDTHS:
            layers += [normed(nn.Conv2d(taken, given, 4, 2, 1)), nn.LeakyReLU(_SLOPE)]
            taken = given
        layers.append(normed(nn.Conv2d(taken, 1, 3, 1, 1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, picture: Tensor, drawn: Tensor) -> Tensor:
        return self.layers(torch.cat([picture, drawn], 1))  # type: ignore[no-any-return]


def seeded(seed: int, device: str) -> Adversary:
    """An adversary that takes no random number from the net's own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Adversary().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def patches(mask: Tensor) -> Tensor:
    """(n, 1, SIDE / 8, SIDE / 8) how much of each patch lies in a mask (n, 1, SIDE, SIDE)."""
    return functional.avg_pool2d(mask, 8)


def _mean(value: Tensor, weight: Tensor) -> Tensor:
    return (value * weight).sum() / weight.sum().clamp_min(1e-3)


def judged(adversary: Adversary, real: Tensor, made: Tensor, drawn: Tensor, weight: Tensor) -> Tensor:
    """The adversary's own loss (hinge). weight: as patches gives it."""
    said = adversary(torch.cat([real, made.detach()]), torch.cat([drawn, drawn]))
    true, false = said.chunk(2)
    return _mean(functional.relu(1 - true), weight) + _mean(functional.relu(1 + false), weight)


def deceived(adversary: Adversary, made: Tensor, drawn: Tensor, weight: Tensor) -> Tensor:
    """What the net is to make less: how drawn its picture looks."""
    return -_mean(adversary(made, drawn), weight)
