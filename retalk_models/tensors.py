"""Tensor files from elsewhere: read without running anything in them, refused unless they are as expected."""

from __future__ import annotations

import itertools
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

import torch
from torch import Tensor

SAFE_TORCH = (2, 6)
"""The first torch whose `weights_only` keeps its word: before it a file could run code (CVE-2025-32434)."""

SHOWN = 4
"""Differences named in a message; the exception carries them all."""

_SPEC = re.compile(r"(f32|i64)\[((?:\d+(?:,\d+)*)?)\]")
_RANGE = re.compile(r"\{([\d,-]+)\}")


class TensorFileError(ValueError):
    """A tensor file is not what it should be. The message is one line and names the file."""


class DifferentTensorsError(TensorFileError):
    """A file's keys or shapes are not those of its manifest; `differences` names every one."""

    def __init__(self, name: str, what: str, differences: tuple[str, ...]) -> None:
        self.differences = differences
        rest = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        super().__init__(f"{name} does not hold {what}: {'; '.join(differences[:SHOWN])}{rest}")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a manifest says of one tensor."""

    shape: tuple[int, ...]
    floating: bool

    def __str__(self) -> str:
        return f"{'f32' if self.floating else 'i64'}[{','.join(map(str, self.shape))}]"


Manifest = Mapping[str, TensorSpec]


def expand(pattern: str) -> Iterator[str]:
    """Every key that a pattern stands for: `a{0-2}.b{1,4}` gives six."""

    def numbers(text: str) -> list[str]:
        out: list[str] = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            out.extend(str(number) for number in range(int(first), int(last or first) + 1))
        return out

    pieces = _RANGE.split(pattern)
    choices = [numbers(piece) if index % 2 else [piece] for index, piece in enumerate(pieces)]
    return ("".join(chosen) for chosen in itertools.product(*choices))


def read_manifest(source: Traversable) -> Manifest:
    """A manifest from its compact JSON form: key patterns (see `expand`) to `f32[shape]` or `i64[shape]`."""
    manifest: dict[str, TensorSpec] = {}
    for pattern, text in json.loads(source.read_text(encoding="utf-8")).items():
        match = _SPEC.fullmatch(text)
        if match is None:
            raise ValueError(f"{source.name}: {pattern}: {text!r} is not like 'f32[64,3,7,7]' or 'i64[]'")
        spec = TensorSpec(tuple(int(size) for size in match[2].split(",") if size), match[1] == "f32")
        for key in expand(pattern):
            if key in manifest:
                raise ValueError(f"{source.name}: {key} is there twice")
            manifest[key] = spec
    return manifest


def read_tensors(
    path: Path, at: tuple[str, ...] = (), rename: Callable[[str], str | None] = lambda key: key
) -> dict[str, Tensor]:
    """The state dict in a PyTorch file, its tensors mapped from the file where the format allows.

    at: names under which the state dict may lie, tried in order; empty where it is the whole file.
    rename: gives a stored key's name here, or None to leave the tensor out.
    Raises TensorFileError for a file that is missing or damaged, holds anything but plain data, or no such
    state dict, and for any file where torch is older than SAFE_TORCH.
    """
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < SAFE_TORCH:
        raise TensorFileError(
            f"{path.name} is not read with torch {torch.__version__}, in which a file can run code "
            "(CVE-2025-32434); install torch 2.6 or later"
        )
    try:
        # Only the zip format can be mapped; the older one is read whole. What torch has to warn of in a file
        # that it refuses is no user's concern.
        with warnings.catch_warnings(action="ignore"):
            held: object = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except FileNotFoundError:
        raise TensorFileError(f"{path.name} is not in {path.parent}") from None
    except pickle.UnpicklingError as error:
        raise TensorFileError(
            f"{path.name} is damaged, or holds objects other than plain tensors, which are never loaded: "
            f"{_reason(error)}"
        ) from None
    except Exception as error:  # torch raises almost anything on a damaged file
        raise TensorFileError(f"{path.name} is not a readable PyTorch file: {_reason(error)}") from None
    if at:
        found = [name for name in at if isinstance(held, Mapping) and name in held]
        if not found or not isinstance(held, Mapping):
            raise TensorFileError(f"{path.name} holds no state dict under {' or '.join(map(repr, at))}")
        held = held[found[0]]
    if not isinstance(held, Mapping):
        raise TensorFileError(f"{path.name} holds a {type(held).__name__} where a state dict should be")
    state: dict[str, Tensor] = {}
    for key, value in held.items():
        name = rename(key) if isinstance(key, str) else None
        if name is None and isinstance(key, str):
            continue
        if name is None or not isinstance(value, Tensor):
            raise TensorFileError(
                f"{path.name}: {key!r} is a {type(value).__name__}; only named tensors belong there"
            )
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise TensorFileError(f"{path.name}: {key!r} is not a plain dense tensor")
        if name in state:
            raise TensorFileError(f"{path.name}: two tensors are both {name!r}")
        state[name] = value.detach()
    return state


def _reason(error: BaseException) -> str:
    """What torch says without its pages of advice, which do not apply here."""
    text = " ".join(str(error).split()) or type(error).__name__
    for advice in ("Please file", "Check the documentation", "Re-running", "(1)"):
        text = text.split(advice)[0]
    return text.replace("Weights only load failed. ", "").strip()[:200].rstrip(". ")


def check_tensors(state: Mapping[str, Tensor], manifest: Manifest, name: str, what: str) -> None:
    """Raise DifferentTensorsError unless `state` has exactly the manifest's keys, shapes and kinds of number.

    Any floating type is taken for float32 and any integer for int64. The batch counters that batch norms keep
    while training (`num_batches_tracked`) may be absent: old files have none, and nothing here reads them.
    """
    differences: list[str] = []
    for key, spec in manifest.items():
        tensor = state.get(key)
        if tensor is None:
            if not key.endswith(".num_batches_tracked"):
                differences.append(f"{key} is missing")
        elif tuple(tensor.shape) != spec.shape:
            shape = ",".join(map(str, tensor.shape))
            differences.append(f"{key} is [{shape}] and should be {spec}")
        elif tensor.is_floating_point() != spec.floating or tensor.is_complex() or tensor.dtype is torch.bool:
            differences.append(f"{key} is {str(tensor.dtype).removeprefix('torch.')} and should be {spec}")
    differences.extend(f"{key} is unknown" for key in state if key not in manifest)
    if differences:
        raise DifferentTensorsError(name, what, tuple(differences))


def fill(net: torch.nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Give a net made on the meta device its tensors, as float32 copies, strictly, and freeze it.

    Copies, because a net whose weights are mapped from a file dies with that file. Raises TensorFileError
    for a tensor that holds infinities or NaNs.
    """
    copies: dict[str, Tensor] = {}
    for key, tensor in state.items():
        kind = torch.float32 if tensor.is_floating_point() else torch.int64
        copies[key] = tensor.to(kind, copy=True, memory_format=torch.contiguous_format)
        if not bool(torch.isfinite(copies[key]).all()):
            raise TensorFileError(f"{name}: {key} holds values that are not finite")
    try:
        net.load_state_dict(copies, strict=True, assign=True)
    except ValueError as error:
        raise TensorFileError(f"{name}: {error}") from None
    net.eval().requires_grad_(False)
