"""Optional face restoration by GFPGAN (`retalk[gfpgan]`): of the mouth alone, gently, steadied over time.

Each frame's restoration is made anew and jitters; so only its difference to the drawn mouth is taken,
averaged over time in the landmarks' space, where the mouth stands still, and at most half of it is shown.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from retalk_models.download import Digest
from retalk_models.easing import settled
from retalk_models.face.geometry import OUTER_LIPS
from retalk_models.picture import F32, U8, Box
from retalk_models.store import CheckpointFile, CheckpointStore
from retalk_models.tensors import TensorSpec, check_tensors, fill, read_tensors

STRENGTH = 0.5
"""The most of a restoration that is ever shown."""

SIDE = 512
"""Side of GFPGAN's pictures."""

TEMPLATE = np.array(
    [
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ],
    np.float32,
)
"""Where GFPGAN wants eye, eye, nose tip and mouth corners, in pixels."""

_ROOM = 25
"""Width in pixels of the soft border round the lips, and how far it reaches out."""

_BORDER = (135 / 255, 133 / 255, 132 / 255)
"""What GFPGAN saw outside pictures when it was trained, BGR."""

_STEADY_S = 0.16
"""Time constant of the average."""


GFPGAN_FILE = CheckpointFile(
    "GFPGANv1.3.pth",
    "https://github.com/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.3.pth",
    "face restoration (optional)",
    "published with GFPGAN under Apache-2.0, with parts under other terms that its LICENSE names",
    published=Digest(348_632_874, "c953a88f2727c85c3d9ae72e2bd4846bbaf59fe6972ad94130e23e7017524a70"),
)


class RestorationError(ValueError):
    """The restoration package is there and cannot be used; one line that says why."""


class Restores(Protocol):
    """(512, 512, 3) BGR uint8 of an aligned face -> the same, restored."""

    def __call__(self, face: U8) -> U8: ...


class MouthRestorer:
    """A loaded restoration net, shared by all sessions. hashes: SHA-256 of its file, by name."""

    def __init__(self, net: Restores, hashes: dict[str, str]) -> None:
        self._net, self.hashes = net, dict(hashes)

    def open(self) -> MouthRestoring:
        """One session's state."""
        return MouthRestoring(self._net)


class MouthRestoring:
    """One session's restored mouth, steadied over time. Not thread-safe."""

    def __init__(self, net: Restores) -> None:
        self._net = net
        self._gain: F32 | None = None

    def reset(self) -> None:
        """Forget the person."""
        self._gain = None

    def restore(self, drawn: Tensor, box: Box, points: F32, elapsed_s: float) -> Tensor:
        """A drawn face with its mouth restored; exactly as it was elsewhere.

        drawn: (1, 3, S, S) BGR, 0..1, what is shown in `box` of the frame. points: (478, 3) of the face,
        frame pixels. elapsed_s: since the frame before.
        """
        side = drawn.shape[2]
        face = drawn[0].clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
        scale = np.array([side / box.width, side / box.height], np.float32)
        marks = (points[:, :2] - (box.left - 0.5, box.top - 0.5)) * scale - 0.5
        there = _alignment(np.asarray(marks, np.float32))
        if there is None:
            return drawn
        aligned = cv2.warpAffine(face, there, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderValue=_BORDER)
        restored = self._net(np.asarray(np.rint(255 * aligned), np.uint8))
        gain = np.asarray(restored, np.float32) / 255 - aligned
        if self._gain is None:
            self._gain = gain
        else:
            self._gain += np.float32(settled(elapsed_s, _STEADY_S)) * (gain - self._gain)
        cover = STRENGTH * _mouth_cover(marks, there)[..., None]
        change = cv2.warpAffine(
            np.asarray(cover * self._gain, np.float32), cv2.invertAffineTransform(there), (side, side)
        )
        back = torch.from_numpy(change).permute(2, 0, 1)[None].to(drawn.device)
        return drawn + back


def _alignment(marks: F32) -> F32 | None:
    """(2, 3) from a face's pixels to the aligned picture; None where the points fit no face."""
    eyes = [marks[[33, 133]].mean(axis=0), marks[[362, 263]].mean(axis=0)]
    five = np.stack([*eyes, marks[4], marks[61], marks[291]]).astype(np.float32)
    found, _ = cv2.estimateAffinePartial2D(five, TEMPLATE, method=cv2.LMEDS)
    return None if found is None else np.asarray(found, np.float32)


def _mouth_cover(marks: F32, there: F32) -> F32:
    """(SIDE, SIDE) of the aligned picture: 1 on the lips and the mouth, softly 0 round them."""
    lips = marks[list(OUTER_LIPS)] @ there[:, :2].T + there[:, 2]
    inside = np.zeros((SIDE, SIDE), np.float32)
    cv2.fillPoly(inside, [np.round(lips * 16).astype(np.int32)], 1.0, cv2.LINE_8, 4)
    wider = cv2.dilate(inside, np.ones((_ROOM, _ROOM), np.uint8))
    return np.asarray(cv2.blur(wider, (_ROOM, _ROOM)), np.float32)


class _GFPGAN:
    """The real package's net, with its stored noise, so that a still face stays still."""

    def __init__(self, net: torch.nn.Module, device: torch.device) -> None:
        self._net, self._device = net, device

    def __call__(self, face: U8) -> U8:
        rgb = torch.from_numpy(np.ascontiguousarray(face[..., ::-1])).to(self._device)
        with torch.inference_mode():
            image = rgb.permute(2, 0, 1)[None].float() / 127.5 - 1
            out = self._net(image, return_rgb=False, randomize_noise=False)[0]
            levels = ((out[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy()[..., ::-1])


def available() -> bool:
    """Whether the extra is installed; found out without importing it."""
    needed = ("gfpgan", "basicsr", "facexlib", "torchvision")
    return all(importlib.util.find_spec(name) is not None for name in needed)


def gfpgan_net() -> torch.nn.Module:
    """GFPGAN v1.3's net from the package, untrained. Raises RestorationError where that does not import."""
    try:
        # The bridge looks into torchvision, which may be as broken as the rest.
        with _bridged():
            from gfpgan.archs.gfpganv1_clean_arch import GFPGANv1Clean
    except Exception as error:  # its imports reach far, and fail in many ways
        raise RestorationError(
            f"the package gfpgan does not import ({type(error).__name__}: {error}); "
            "reinstall it with: pip install 'retalk[gfpgan]'"
        ) from error
    net: torch.nn.Module = GFPGANv1Clean(
        out_size=SIDE,
        num_style_feat=512,
        channel_multiplier=2,
        decoder_load_path=None,
        fix_decoder=False,
        num_mlp=8,
        input_is_latent=True,
        different_w=True,
        narrow=1,
        sft_half=True,
    )
    return net


def load_gfpgan(path: Path, device: torch.device) -> Restores:
    """GFPGAN v1.3 from its official file through the `gfpgan` package.

    Raises TensorFileError for a file that is not what it should be, and RestorationError where the package
    does not import.
    """
    net = gfpgan_net()
    state = read_tensors(path, ("params_ema", "params"))
    wanted = {
        key: TensorSpec(tuple(tensor.shape), tensor.is_floating_point())
        for key, tensor in net.state_dict().items()
    }
    check_tensors(state, wanted, path.name, "GFPGAN v1.3")
    fill(net, state, path.name)
    return _GFPGAN(net.to(device), device)


def load_restorer(store: CheckpointStore, device: torch.device) -> MouthRestorer | None:
    """The restorer, where both the extra and GFPGAN's file are there; None where either is not.

    Raises as `load_gfpgan`, and CheckpointError for a file that is not the published one.
    """
    if not available() or store.missing([GFPGAN_FILE]):
        return None
    path = store.use(GFPGAN_FILE)
    known = store.known(GFPGAN_FILE)
    return MouthRestorer(load_gfpgan(path, device), {path.name: known.sha256} if known is not None else {})


@contextmanager
def _bridged() -> Iterator[None]:
    """While it lasts, basicsr 1.4.2 finds a module that torchvision dropped in 0.17; it needs one function.

    Where torchvision still has it nothing is done. Raises whatever importing torchvision raises.
    """
    name = "torchvision.transforms.functional_tensor"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        yield
        return
    from torchvision.transforms.functional import rgb_to_grayscale

    module = types.ModuleType(name)
    module.rgb_to_grayscale = rgb_to_grayscale  # type: ignore[attr-defined]
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]
