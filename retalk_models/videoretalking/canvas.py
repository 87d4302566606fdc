"""Face crops on the device: colour conversion, scaling and compositing there; only the crop travels.

Pictures are I420, BT.601 limited range; the nets' pictures are (B, 3, H, W) BGR in 0..1, float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from retalk_models.picture import F32, Box, Picture

SIDE = 384
"""Side of the nets' face picture."""
HALF = SIDE // 2
"""The row from which the masked face is black."""


def _packed(picture: Picture, box: Box) -> torch.Tensor:
    """The box's samples of all three planes in one flat uint8 tensor: Y, U, V."""
    half = (slice(box.top // 2, box.bottom // 2), slice(box.left // 2, box.right // 2))
    parts = (picture.y[box.top : box.bottom, box.left : box.right], picture.u[half], picture.v[half])
    return torch.from_numpy(np.concatenate([part.reshape(-1) for part in parts]))


@dataclass(frozen=True, slots=True, eq=False)
class Planes:
    """A crop on the device: y (1, 1, h, w), uv (1, 2, h / 2, w / 2), float32 sample values."""

    y: Tensor
    uv: Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor from the host to the device without waiting for what the device is at."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def upload(picture: Picture, box: Box, device: torch.device) -> Planes:
    """Bring an even-aligned box of a picture to the device."""
    flat = send(_packed(picture, box), device)
    area = box.width * box.height
    y = flat[:area].reshape(1, 1, box.height, box.width)
    uv = flat[area:].reshape(1, 2, box.height // 2, box.width // 2)
    return Planes(y.float(), uv.float())


def face_picture(planes: Planes, side: int = SIDE) -> Tensor:
    """(1, 3, side, side) BGR of a crop."""
    size = (side, side)
    y = (F.interpolate(planes.y, size=size, mode="bilinear", align_corners=False) - 16) / 219
    uv = (F.interpolate(planes.uv, size=size, mode="bilinear", align_corners=False) - 128) / 224
    u, v = uv[:, :1], uv[:, 1:]
    blue, red = y + 1.772 * u, y + 1.402 * v
    green = y - 0.344136 * u - 0.714136 * v
    return torch.cat([blue, green, red], dim=1).clamp_(0, 1)


def blacken(face: Tensor) -> Tensor:
    """A copy with its lower half black, as the nets were trained to fill it."""
    masked = face.clone()
    masked[:, :, face.shape[2] // 2 :] = 0
    return masked


def lay_in(planes: Planes, drawn: Tensor, mask: Tensor, strength: float) -> Tensor:
    """The crop with what was drawn laid over it: (h * w * 3 / 2,) uint8 on the device, Y, U, V.

    drawn: (1, 3, S, S) BGR, not clamped. mask: (1, 1, M, M), 0..1. Where it is 0 the samples stay exactly.
    """
    height, width = planes.y.shape[2:]
    colours = F.interpolate(
        drawn.float().clamp(0, 1), size=(height, width), mode="bilinear", align_corners=False
    )
    blue, green, red = colours[:, :1], colours[:, 1:2], colours[:, 2:]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = F.avg_pool2d(torch.cat([(blue - luma) / 1.772, (red - luma) / 1.402], dim=1), 2)
    parts = []
    for base, over in ((planes.y, 16 + 219 * luma), (planes.uv, 128 + 224 * chroma)):
        cover = strength * F.interpolate(mask, size=base.shape[2:], mode="bilinear", align_corners=False)
        parts.append((base + cover * (over - base)).round_().clamp_(0, 255).to(torch.uint8).flatten())
    return torch.cat(parts)


def put_back(picture: Picture, box: Box, flat: Tensor) -> Picture:
    """A copy of the picture with the box's samples replaced by what `lay_in` gave."""
    out = picture.copy()
    if flat.is_cuda:
        host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
        host.copy_(flat, non_blocking=True)
        torch.cuda.current_stream(flat.device).synchronize()
        flat = host
    samples = flat.numpy()
    area = box.width * box.height
    half = (slice(box.top // 2, box.bottom // 2), slice(box.left // 2, box.right // 2))
    out.y[box.top : box.bottom, box.left : box.right] = samples[:area].reshape(box.height, box.width)
    chroma = samples[area:].reshape(2, box.height // 2, box.width // 2)
    out.u[half], out.v[half] = chroma[0], chroma[1]
    return out


def as_mask(mask: F32, device: torch.device) -> Tensor:
    """(M, M) to (1, 1, M, M) on the device."""
    return send(torch.from_numpy(mask), device)[None, None]
