"""The official VideoReTalking's nets in its order of operations per frame, from a checkout outside this repo.

Each net is made by the checkout's own classes, untrained (speed does not depend on the values), in float32,
eagerly, one frame at a time, as often a frame and at the sizes that its inference script calls it. What
cannot be made here, for want of a package, is named and left out, so the figure is a lower bound of the
official time. Decoding of detections, resizing, blending and files are not in it either.
"""

from __future__ import annotations

import importlib
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[], object]


@contextmanager
def _checkout(folder: Path) -> Iterator[None]:
    """Its packages importable; where basicsr is not, the initialiser that its nets ask of it does nothing."""
    paths = [folder, *(folder / "third_part" / name for name in ("", "GPEN", "GFPGAN"))]
    before, known = list(sys.path), set(sys.modules)
    sys.path[:0] = [str(path) for path in paths]
    try:
        importlib.import_module("basicsr.archs.arch_util")
    except ImportError:
        for name in ("basicsr", "basicsr.archs", "basicsr.archs.arch_util"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["basicsr.archs.arch_util"].default_init_weights = lambda *_, **__: None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        sys.path[:] = before
        for name in set(sys.modules) - known:
            if name.partition(".")[0] in (
                "models",
                "utils",
                "face_parse",
                "face_model",
                "face_detection",
                "basicsr",
            ):
                del sys.modules[name]


def _ready(net: nn.Module, device: torch.device) -> nn.Module:
    return net.eval().requires_grad_(False).to(device)


def _parts(
    device: torch.device, size: tuple[int, int]
) -> dict[str, tuple[Callable[[], Any], int, Callable[[Any], Call]]]:
    """Name of a call: what makes its net, how often a frame, and the call on the net."""

    def picture(width: int, height: int, channels: int = 3) -> Tensor:
        return torch.rand(1, channels, height, width, device=device)

    mel, semantics = torch.randn(1, 1, 80, 16, device=device), torch.randn(1, 73, 26, device=device)
    small, large, faces = picture(256, 256), picture(512, 512), picture(384, 384, 6)
    whole = picture(*size)

    def module(name: str) -> Any:
        return importlib.import_module(name)

    def enet() -> Any:
        return module("models.ENet").ENet(lnet=module("models.LNet").LNet())

    def parser() -> Any:
        return module("face_parse.parse_model").ParseNet(
            512, 512, 32, 64, 19, norm_type="bn", relu_type="LeakyReLU", ch_range=[32, 256]
        )

    def gfpgan() -> Any:
        return module("gfpgan.archs.gfpganv1_clean_arch").GFPGANv1Clean(
            512,
            channel_multiplier=2,
            fix_decoder=False,
            input_is_latent=True,
            different_w=True,
            sft_half=True,
        )

    def detector() -> Any:
        return module("face_detection.detection.sfd.net_s3fd").s3fd()

    def generator() -> Any:
        return module("face_model.gpen_model").FullGenerator(512, 512, 8, 2, device=str(device))

    return {
        "D-Net": (lambda: module("models.DNet").DNet(), 1, lambda net: lambda: net(small, semantics)),
        "L-Net and E-Net": (enet, 1, lambda net: lambda: net(mel, faces, faces[:, 3:])),
        "S3FD at 256": (detector, 2, lambda net: lambda: net(small)),
        "S3FD at the frame's size": (detector, 1, lambda net: lambda: net(whole)),
        "ParseNet": (parser, 3, lambda net: lambda: net(large)),
        "GPEN": (generator, 1, lambda net: lambda: net(large)),
        "GFPGAN": (gfpgan, 1, lambda net: lambda: net(large, return_rgb=False)),
    }


NOT_RUN = ("FAN-4 twice", "RetinaFace thrice", "the coefficient net")
"""Calls that the official chain makes too: their code needs packages that this project has no use for."""


def measure(
    folder: Path, device: torch.device, size: tuple[int, int], count: int, figures: dict[str, Any]
) -> float:
    """Milliseconds a frame of the official chain, as far as it can be made. Prints each part."""
    if not (folder / "models" / "DNet.py").is_file():
        raise SystemExit(f"{folder} is no checkout of OpenTalker/video-retalking: it has no models/DNet.py")
    calls: list[tuple[str, Call]] = []
    left_out = list(NOT_RUN)
    with _checkout(folder):
        for name, (make, times, call) in _parts(device, size).items():
            try:
                run = call(_ready(make(), device))
                run()
            except Exception as error:
                left_out.append(f"{name} ({type(error).__name__}: {str(error)[:80]})")
                continue
            calls += [(name, run)] * times
    print(f"\nofficial chain, float32, eager, frame of {size[0]}x{size[1]}          ms a call  calls")
    spent = dict.fromkeys((name for name, _ in calls), 0.0)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(count):
        for name, run in calls:
            began = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            spent[name] += 1000 * (clock() - began) / count
    for name, taken in spent.items():
        times = sum(name == one for one, _ in calls)
        print(f"{name:52}{taken / times:13.2f} {times:6}")
    total = sum(spent.values())
    print(f"{'a frame':52}{total:13.2f}")
    print(f"not run here: {'; '.join(left_out)}")
    figures["official ms by part"], figures["official ms a frame"] = spent, total
    figures["official parts left out"] = left_out
    return total
