"""The rendering net: chooses, sample by sample, between two warps of the person and a synthesis."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from retalk_models.talkin.enhance import RENDERER_FILE
from retalk_models.talkin.mouth_crop import CHANNELS, SIDE

WIDTHS = (12, 24, 64, 96)
"""Channels at a half, a quarter, an eighth and a sixteenth of the crop's side."""

_FIRST_GATE = 2.0
"""Untrained, the net shows the first warp: its gate starts so far above the others."""


class _Block(nn.Module):
    """Two convolutions with a way past the second."""

    def __init__(self, taken: int, given: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(taken, given, 3, stride, 1)
        self.second = nn.Conv2d(given, given, 3, 1, 1)
        # Ways past that start as nothing: levels that add up would else grow until no gate can learn.
        nn.init.zeros_(self.second.weight)

    def forward(self, value: Tensor) -> Tensor:
        value = functional.relu(self.first(value), inplace=True)
        return functional.relu(value + self.second(value), inplace=True)


class RenderNet(nn.Module):
    """(n, CHANNELS, SIDE, SIDE) to gates (n, 3, ...), which sum to 1, and a synthesis (n, 3, ...), -1..1.

    Gates: first warp, second warp, synthesis. The synthesis is Y, U, V, as a difference to the first warp.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.widths = widths
        self.stem = nn.Conv2d(CHANNELS, widths[0], 4, 2, 1)
        self.fine = nn.Conv2d(widths[0], widths[0], 3, 1, 1)
        self.down = nn.ModuleList(_Block(taken, given, 2) for taken, given in pairwise(widths))
        levels = list(range(len(widths) - 1, 0, -1))
        self.narrow = nn.ModuleList(nn.Conv2d(widths[level], widths[level - 1], 1) for level in levels)
        self.up = nn.ModuleList(_Block(widths[level - 1], widths[level - 1]) for level in levels)
        self.head = nn.Conv2d(widths[0], 24, 3, 1, 1)
        nn.init.zeros_(self.head.weight)
        bias = torch.zeros(24)
        bias[:4] = _FIRST_GATE
        self.head.bias = nn.Parameter(bias)

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        out = functional.pixel_shuffle(self.quarters(value), 2)
        return torch.softmax(out[:, :3], 1), value[:, 3:6] + out[:, 3:]

    def quarters(self, value: Tensor) -> Tensor:
        """(n, 24, SIDE / 2, SIDE / 2): of each sample's three gates, before they are weighed, and three
        differences to the first warp, the four quarters after one another."""
        level = functional.relu(self.stem(value), inplace=True)
        level = functional.relu(level + self.fine(level), inplace=True)
        kept = []
        for block in self.down:
            kept.append(level)
            level = block(level)
        for narrow, up in zip(self.narrow, self.up, strict=True):
            # Added, not joined: half the work of the block that follows.
            level = up(functional.interpolate(narrow(level), scale_factor=2.0, mode="nearest") + kept.pop())
        return self.head(level)  # type: ignore[no-any-return]


def placed(net: RenderNet, device: str) -> RenderNet:
    """The net on a device, laid out as convolutions are fastest."""
    return net.to(torch.device(device)).to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


class _Shown(nn.Module):
    """A net as the engine asks it: (n, SIDE, SIDE, CHANNELS) to (n, 4, SIDE, SIDE).

    It gives the second warp's share of the two warps, and what to add to their mix, levels of Y, U, V.
    """

    def __init__(self, net: RenderNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, value: Tensor) -> Tensor:
        # Samples side by side in memory: the layout that convolutions like, for nothing.
        quarters = self.net.quarters(value.permute(0, 3, 1, 2))
        # Channel by channel from here on, which is three times as fast as torch's own shuffle.
        count, _, height, width = quarters.shape
        apart = quarters.contiguous(memory_format=torch.contiguous_format).view(-1, 6, 2, 2, height, width)
        out = apart.permute(0, 1, 4, 2, 5, 3).reshape(count, 6, 2 * height, 2 * width)
        gates = torch.softmax(out[:, :3], 1)
        share = gates[:, 1:2] / (gates[:, :1] + gates[:, 1:2] + 1e-3)
        between = (value[..., 6:9] - value[..., 3:6]).permute(0, 3, 1, 2)
        change = 127.5 * gates[:, 2:] * (out[:, 3:] - share * between.contiguous())
        return torch.cat([share, change], 1)


def fused(net: RenderNet, device: str) -> Callable[[Tensor], Tensor]:
    """The net for showing, its layers joined where the device can: a quarter faster than layer by layer.

    Takes and gives what _Shown does.
    """
    shown = _Shown(placed(net, device)).eval()
    value = torch.zeros(1, SIDE, SIDE, CHANNELS, device=device)
    with torch.no_grad(), warnings.catch_warnings():
        # torch.compile, which is to take its place, needs a C++ compiler where it runs.
        warnings.simplefilter("ignore", DeprecationWarning)
        joined = torch.jit.freeze(torch.jit.trace(shown, value))  # type: ignore[no-untyped-call]
        # What is left to be made ready is made ready at the first calls.
        for _ in range(3):
            joined(value)
    return joined  # type: ignore[no-any-return]


def compose(value: Tensor, gates: Tensor, synthesis: Tensor) -> Tensor:
    """(n, 3, SIDE, SIDE) the picture that the gates make of a net's input and its synthesis."""
    return gates[:, :1] * value[:, 3:6] + gates[:, 1:2] * value[:, 6:9] + gates[:, 2:] * synthesis


def multiply_adds(widths: tuple[int, ...] = WIDTHS) -> int:
    """Multiply-adds of one crop, counted layer by layer."""
    total = 0

    def count(layer: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += layer.weight.numel() * out.shape[-1] * out.shape[-2]

    net = RenderNet(widths)
    hooks = [one.register_forward_hook(count) for one in net.modules() if isinstance(one, nn.Conv2d)]
    with torch.no_grad():
        net(torch.zeros(1, CHANNELS, SIDE, SIDE))
    for hook in hooks:
        hook.remove()
    return total


def save_net(net: RenderNet, path: Path) -> None:
    """As safetensors, half precision: more buys no visible difference. The file appears complete."""
    tensors = {name: value.detach().half().contiguous() for name, value in net.state_dict().items()}
    part = path.with_name(path.name + ".part")
    part.write_bytes(save(tensors))
    part.replace(path)


def load_net(path: Path | None = None) -> RenderNet:
    """From a safetensors file; the bundled one where path is None.

    Raises ValueError for another net's file or a damaged one.
    """
    if path is None:
        data = files("retalk_models").joinpath("weights", RENDERER_FILE).read_bytes()
    else:
        data = path.read_bytes()
    try:
        tensors = {name: value.float() for name, value in load(data).items()}
        deeper = (len(tensors[f"down.{level}.first.bias"]) for level in range(len(WIDTHS) - 1))
        net = RenderNet((len(tensors["stem.bias"]), *deeper))
        net.load_state_dict(tensors)
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path or RENDERER_FILE}: these are no weights of the rendering net") from error
    return net.eval()
