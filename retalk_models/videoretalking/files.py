"""The official files of VideoReTalking: addresses, terms, and how each becomes a net or a table.

Documented exceptions to strict loading: spectral norms are folded (`SpectralConv2d`), D-Net's dead
convolutions are accepted and dropped (`EditResidual`), the copy of L-Net inside ENet.pth (`low_res`) is left
out, and batch counters may be absent (`check_tensors`).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import loadmat
from torch import nn

from retalk_models.picture import F32
from retalk_models.restore import GFPGAN_FILE
from retalk_models.store import CheckpointFile, CheckpointStore
from retalk_models.tensors import (
    Manifest,
    TensorFileError,
    check_tensors,
    fill,
    read_manifest,
    read_tensors,
)
from retalk_models.videoretalking.dnet import DNet
from retalk_models.videoretalking.enet import ENet
from retalk_models.videoretalking.lnet import LNet
from retalk_models.videoretalking.recon import CoefficientNet

RELEASE = "https://github.com/vinthony/video-retalking/releases/download/v0.0.1/"
PULL = "retalk models pull videoretalking"
STANDARD_POINTS = "similarity_Lm3D_all.mat"
MEMBER_LIMIT = 1 << 20
"""Bytes that the standard points' file may unpack to; it is a few kilobytes."""

Net = TypeVar("Net", bound=nn.Module)


@cache
def manifest(net: str) -> Manifest:
    """Keys and shapes of an official net: dnet, lnet, enet (its own part) or recon."""
    return read_manifest(resources.files(__package__) / "manifest" / f"{net}.json")


def _without_wrapper(key: str) -> str:
    return key.replace("module.", "")


def _own_part(key: str) -> str | None:
    return None if "low_res" in key else _without_wrapper(key)


@dataclass(frozen=True, slots=True)
class NetFile:
    """How one net lies in its file. at: where the state dict is; rename: stored key to manifest key."""

    manifest: str
    what: str
    at: str
    rename: Callable[[str], str | None] = lambda key: key

    def read(self, path: Path) -> dict[str, torch.Tensor]:
        """The file's tensors by manifest key. Raises TensorFileError unless they are exactly those."""
        state = read_tensors(path, (self.at,), self.rename)
        check_tensors(state, manifest(self.manifest), path.name, self.what)
        return state

    def load(self, kind: type[Net], path: Path) -> Net:
        with torch.device("meta"):
            net = kind()
        fill(net, self.read(path), path.name)
        return net


DNET = NetFile("dnet", "the official D-Net", "net_G_ema")
LNET = NetFile("lnet", "the official L-Net", "state_dict", _without_wrapper)
ENET = NetFile("enet", "the official E-Net", "state_dict", _own_part)
RECON = NetFile("recon", "the official coefficient net", "net_recon")


def load_dnet(path: Path) -> DNet:
    """D-Net from DNet.pt, in float32 on the CPU, ready for inference. Raises TensorFileError."""
    return DNET.load(DNet, path)


def load_lnet(path: Path) -> LNet:
    """L-Net from LNet.pth, as `load_dnet`."""
    return LNET.load(LNet, path)


def load_enet(path: Path) -> ENet:
    """E-Net from ENet.pth, as `load_dnet`; the copy of L-Net in that file is left out."""
    return ENET.load(ENet, path)


def load_coefficient_net(path: Path) -> CoefficientNet:
    """The regressor from face3d_pretrain_epoch_20.pth, as `load_dnet`."""
    return RECON.load(CoefficientNet, path)


def _matlab(source: Path | io.BytesIO, name: str, wanted: dict[str, str]) -> dict[str, NDArray[np.float64]]:
    """Numeric variables of a MATLAB file, by name; `wanted` says what each should be."""
    try:
        held = loadmat(source, variable_names=list(wanted))
    except Exception as error:  # scipy raises almost anything on a damaged file
        raise TensorFileError(
            f"{name} is not a readable MATLAB file: {str(error)[:120] or type(error).__name__}"
        ) from None
    out: dict[str, NDArray[np.float64]] = {}
    for variable, what in wanted.items():
        value = held.get(variable)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or not np.isfinite(value).all():
            raise TensorFileError(f"{name} holds no {variable!r}, which should be {what}")
        out[variable] = value.astype(np.float64)
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Expressions:
    """Expression coefficients that D-Net can put on a face, (64,) float32 each."""

    neutral: F32
    smile: F32


def load_expressions(path: Path) -> Expressions:
    """From expression.mat: the first 64 values of row 0 of both templates. Raises TensorFileError."""
    names = ("expression_center", "expression_mouth")
    held = _matlab(path, path.name, dict.fromkeys(names, "a row of at least 64 numbers"))
    rows = []
    for variable in names:
        value = held[variable]
        if value.ndim != 2 or value.shape[0] < 1 or value.shape[1] < 64:
            raise TensorFileError(
                f"{path.name}: {variable!r} is {value.shape} and should have 64 columns or more"
            )
        rows.append(value[0, :64].astype(np.float32))
    return Expressions(*rows)


def load_standard_points(path: Path) -> NDArray[np.float64]:
    """The 68 standard 3-D landmarks, (68, 3), out of BFM.zip or from the bare MATLAB file.

    Nothing of the archive is unpacked to disk. Raises TensorFileError.
    """
    source: Path | io.BytesIO = path
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                found = [item for item in archive.infolist() if Path(item.filename).name == STANDARD_POINTS]
                if len(found) != 1 or found[0].file_size > MEMBER_LIMIT:
                    raise TensorFileError(f"{path.name} holds no {STANDARD_POINTS} of a plausible size")
                source = io.BytesIO(archive.read(found[0]))
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
            raise TensorFileError(f"{path.name} is a damaged archive: {error}") from None
    points = _matlab(source, path.name, {"lm": "68 points of 3 coordinates"})["lm"]
    if points.shape != (68, 3):
        raise TensorFileError(f"{path.name}: 'lm' is {points.shape} and should be (68, 3)")
    return points


_REPOSITORY_TERMS = (
    "published with the Apache-2.0 repository OpenTalker/video-retalking, whose README forbids the use of "
    "Tencent's name and leaves compliance when serving end users to you"
)
_FACE_MODEL_TERMS = "derived from the Basel Face Model, whose licence allows non-commercial research only"


def _file(name: str, purpose: str, terms: str, inspect: Callable[[Path], object]) -> CheckpointFile:
    return CheckpointFile(name, RELEASE + name, purpose, terms, inspect)


D_FILE = _file("DNet.pt", "canonical expression", _REPOSITORY_TERMS, DNET.read)
L_FILE = _file("LNet.pth", "lip-sync", _REPOSITORY_TERMS, LNET.read)
E_FILE = _file("ENet.pth", "enhancement", _REPOSITORY_TERMS, ENET.read)
RECON_FILE = _file(
    "face3d_pretrain_epoch_20.pth", "face coefficients (Deep3DFaceRecon)", _FACE_MODEL_TERMS, RECON.read
)
EXPRESSION_FILE = _file(
    "expression.mat", "neutral and smiling expression", _FACE_MODEL_TERMS, load_expressions
)
POINTS_FILE = _file(
    "BFM.zip", f"standard landmarks ({STANDARD_POINTS})", _FACE_MODEL_TERMS, load_standard_points
)
FILES = (D_FILE, L_FILE, E_FILE, RECON_FILE, EXPRESSION_FILE, POINTS_FILE)
"""What the engine cannot do without."""
OPTIONAL_FILES = (GFPGAN_FILE,)


@dataclass(frozen=True, slots=True, eq=False)
class Nets:
    """Everything the engine loads. hashes: SHA-256 by file name. standard_points: (68, 3)."""

    dnet: DNet
    lnet: LNet
    enet: ENet
    coefficients: CoefficientNet
    expressions: Expressions
    standard_points: NDArray[np.float64]
    hashes: dict[str, str]


def load_nets(store: CheckpointStore) -> Nets:
    """Load all FILES. Raises MissingCheckpointsError for all at once, CheckpointError or TensorFileError."""
    paths = store.require(FILES, PULL)
    known = {file.name: store.known(file) for file in FILES}
    return Nets(
        load_dnet(paths[D_FILE.name]),
        load_lnet(paths[L_FILE.name]),
        load_enet(paths[E_FILE.name]),
        load_coefficient_net(paths[RECON_FILE.name]),
        load_expressions(paths[EXPRESSION_FILE.name]),
        load_standard_points(paths[POINTS_FILE.name]),
        {name: found.sha256 for name, found in known.items() if found is not None},
    )
