"""The synthetic weights that the goldens were made with: every tensor follows from its key and shape."""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import savemat
from torch import Tensor

from retalk_models.face.geometry import template
from retalk_models.tensors import Manifest
from retalk_models.videoretalking.files import STANDARD_POINTS, manifest
from retalk_models.videoretalking.landmarks import FACE_MESH

GAIN = 1.3
DAMPING = (
    (r"mapping_net\.first\.0\.weight$", 0.02),
    (r"mlp_(gamma|beta)\.weight$", 0.15),
    (r"modulation\.weight$", 0.08),
    (r"final_linear\.weight$", 0.5),
    (r"to_rgbs\.\d+\.modulated_conv\.weight$", 0.05),
    (r"bn3\.weight$", 0.3),
    (r"final_layers\.\d\.weight$", 0.2),
    (r"condition_scale\.\d+\.2\.weight$", 0.03),
    (r"condition_shift\.\d+\.2\.weight$", 0.05),
    (r"conv_body_up\.\d+\.(conv2|skip)\.weight$", 0.5),
    (r"stylegan_decoder\.to_rgb1\.modulated_conv\.weight$", 0.05),
)
POWER_ITERATIONS = 12


def normal(key: str, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    count = math.prod(shape)
    return torch.randn(max(count, 32), generator=generator)[:count].reshape(shape)


def tensor_of(key: str, shape: tuple[int, ...]) -> Tensor:
    leaf = key.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64)
    z = normal(key, shape)
    if leaf == "running_mean":
        return 0.05 * z
    if leaf == "running_var":
        return 1 + 0.1 * z.abs()
    if leaf == "bias":
        near_one = key.endswith("modulation.bias") or re.search(r"condition_scale\.\d+\.2\.bias$", key)
        return 1 + 0.1 * z if near_one else 0.05 * z
    if shape == (1,):
        return torch.zeros(1)
    damping = next((factor for pattern, factor in DAMPING if re.search(pattern, key)), 1.0)
    if len(shape) == 1 or (len(shape) == 3 and shape[1:] == (1, 1)):
        return damping * (1 + 0.1 * z)
    fan_in = math.prod(shape[2:] if len(shape) == 5 else shape[1:])
    return z * (damping * GAIN / math.sqrt(fan_in))


def singular_vectors(key: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What training would have stored beside a spectrally normalised weight, by power iteration."""
    matrix = weight.double().flatten(1)
    u = normal(key, (matrix.shape[0],)).double()
    u, v = u / u.norm(), matrix.new_zeros(matrix.shape[1])
    for _ in range(POWER_ITERATIONS):
        v = matrix.T @ u
        v = v / v.norm()
        u = matrix @ v
        u = u / u.norm()
    return u.float(), v.float()


def weights(of: Manifest, prefix: str = "") -> dict[str, Tensor]:
    """A state dict for a manifest; `prefix` comes before each key, and so changes every value."""
    state: dict[str, Tensor] = {}
    for key, spec in of.items():
        full = prefix + key
        if not full.endswith(("weight_u", "weight_v")):
            state[full] = tensor_of(full, spec.shape)
    for full in [key for key in state if key.endswith("weight_orig")]:
        stem = full.removesuffix("orig")
        state[stem + "u"], state[stem + "v"] = singular_vectors(stem + "u", state[full])
    return state


def fingerprint(states: Iterable[Mapping[str, Tensor]]) -> tuple[int, int, float, float]:
    """Tensors, elements, sum and sum of squares."""
    tensors, elements, total, squares = 0, 0, 0.0, 0.0
    for state in states:
        for tensor in state.values():
            exact = tensor.double()
            tensors, elements = tensors + 1, elements + tensor.numel()
            total, squares = total + float(exact.sum()), squares + float(exact.square().sum())
    return tensors, elements, total, squares


def save(state: Mapping[str, Tensor], path: Path, at: str, wrap: str = "", **others: object) -> Path:
    """Write a file as the official ones are: the state dict under `at`, keys behind `wrap`."""
    torch.save({at: {wrap + key: tensor for key, tensor in state.items()}, **others}, path)
    return path


LAYOUT = (
    ("dnet", "net_G_ema", "", "DNet.pt"),
    ("lnet", "state_dict", "module.", "LNet.pth"),
    ("enet", "state_dict", "module.", "ENet.pth"),
    ("recon", "net_recon", "", "face3d_pretrain_epoch_20.pth"),
)
"""Manifest, place of the state dict, wrapper of the keys, and name of each net's official file."""


def standard_points() -> NDArray[np.float64]:
    """(68, 3) like the official ones: y up, z towards the camera; from the bundled mean face."""
    face = template()[list(FACE_MESH)].astype(np.float64)
    return np.asarray(0.9 * (face - face.mean(axis=0)) * (1, -1, -1))


def write_models(folder: Path, state: Callable[[str], Mapping[str, Tensor]] | None = None) -> Path:
    """Every file that the engine needs, in its official layout and full size.

    state: a net's state dict by manifest name; the synthetic weights where None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, at, wrap, file in LAYOUT:
        save(weights(manifest(name)) if state is None else state(name), folder / file, at, wrap)
    row = 0.1 * np.random.default_rng(0).normal(size=(1, 64))
    savemat(folder / "expression.mat", {"expression_center": row, "expression_mouth": row + 0.5})
    points = io.BytesIO()
    savemat(points, {"lm": standard_points()})
    with zipfile.ZipFile(folder / "BFM.zip", "w") as archive:
        archive.writestr(f"BFM/{STANDARD_POINTS}", points.getvalue())
    return folder
