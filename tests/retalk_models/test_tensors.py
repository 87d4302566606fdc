from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retalk_models.tensors import (
    DifferentTensorsError,
    Manifest,
    TensorFileError,
    TensorSpec,
    check_tensors,
    expand,
    fill,
    read_manifest,
    read_tensors,
)

MANIFEST: Manifest = {
    "a.weight": TensorSpec((2, 3), True),
    "a.bias": TensorSpec((2,), True),
    "n.num_batches_tracked": TensorSpec((), False),
}


def good() -> dict[str, Tensor]:
    return {
        "a.weight": torch.ones(2, 3),
        "a.bias": torch.zeros(2),
        "n.num_batches_tracked": torch.tensor(5),
    }


def check(state: Mapping[str, Tensor]) -> None:
    check_tensors(state, MANIFEST, "X.pth", "the official X")


def test_patterns_expand_to_products_of_their_ranges() -> None:
    assert list(expand("a")) == ["a"]
    assert list(expand("r{0-2}.c{1,4}.w")) == [f"r{r}.c{c}.w" for r in (0, 1, 2) for c in (1, 4)]
    assert list(expand("{8-11}")) == ["8", "9", "10", "11"]


def test_a_manifest_is_read(tmp_path: Path) -> None:
    source = tmp_path / "x.json"
    source.write_text('{"a.{0-1}.w": "f32[2,3]", "n": "i64[]"}')
    assert read_manifest(source) == {
        "a.0.w": TensorSpec((2, 3), True),
        "a.1.w": TensorSpec((2, 3), True),
        "n": TensorSpec((), False),
    }


@pytest.mark.parametrize(
    "text", ['{"a": "f16[2]"}', '{"a": "f32[2,]"}', '{"a{0-1}": "i64[]", "a1": "i64[]"}']
)
def test_a_wrong_manifest_is_refused(text: str, tmp_path: Path) -> None:
    source = tmp_path / "x.json"
    source.write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: a"):
        read_manifest(source)


def test_what_equals_the_manifest_passes() -> None:
    check(good())
    check(good() | {"a.weight": torch.ones(2, 3, dtype=torch.float16)})
    without_counter = good()
    del without_counter["n.num_batches_tracked"]
    check(without_counter)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"a.bias": None}, r"a.bias is missing"),
        ({"b": torch.ones(1)}, "b is unknown"),
        ({"a.bias": torch.ones(3)}, r"a.bias is \[3\] and should be f32\[2\]"),
        ({"a.weight": torch.ones(3, 2)}, r"a.weight is \[3,2\] and should be f32\[2,3\]"),
        ({"a.bias": torch.ones(2, dtype=torch.int64)}, "a.bias is int64 and should be"),
        ({"a.bias": torch.ones(2, dtype=torch.complex64)}, "a.bias is complex64 and should be"),
        ({"n.num_batches_tracked": torch.tensor(1.0)}, "n.num_batches_tracked is float32 and should be"),
    ],
)
def test_a_difference_is_named(change: dict[str, Tensor | None], said: str) -> None:
    state = {key: tensor for key, tensor in (good() | change).items() if tensor is not None}
    with pytest.raises(DifferentTensorsError, match=rf"^X\.pth does not hold the official X: {said}"):
        check(state)


def test_many_differences_make_one_line_and_are_all_kept() -> None:
    with pytest.raises(DifferentTensorsError, match=r"and 18 more$") as caught:
        check({f"k{index}": torch.ones(1) for index in range(20)})
    assert len(caught.value.differences) == 22
    assert "\n" not in str(caught.value)


def test_a_state_dict_is_found_and_renamed(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"params": {"module.a": torch.ones(2), "module.junk": torch.ones(1)}, "epoch": 3}, path)

    def rename(key: str) -> str | None:
        return None if "junk" in key else key.removeprefix("module.")

    assert list(read_tensors(path, ("params_ema", "params"), rename)) == ["a"]
    with pytest.raises(TensorFileError, match=r"x\.pth holds no state dict under 'weights'"):
        read_tensors(path, ("weights",))


@pytest.mark.parametrize("version", ["2.4.0", "2.5.1+cu121", "1.13"])
def test_a_torch_in_which_files_can_run_code_was_trusted(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pth"
    torch.save(good(), path)
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(TensorFileError, match=r"x\.pth is not read with torch .*install torch 2\.6 or later"):
        read_tensors(path)
    monkeypatch.setattr(torch, "__version__", "2.6.0a0+git123")
    assert set(read_tensors(path)) == set(good())


def test_the_older_file_format_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": torch.arange(3.0)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(path)["a"], torch.arange(3.0))


class Bomb:
    """Runs a command when unpickled by anything careless."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["zip", "old", "bare pickle", "among tensors"])
def test_nothing_in_a_file_is_executed(form: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "x.pth", tmp_path / "executed"
    bomb: Any = Bomb(marker)
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"state_dict": bomb}))
    elif form == "among tensors":
        torch.save({"state_dict": {"a": torch.ones(2)}, "optimizer": bomb}, path)
    else:
        torch.save({"state_dict": bomb}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(TensorFileError, match=r"^x\.pth .*never loaded") as caught:
        read_tensors(path, ("state_dict",))
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def write_nothing(path: Path) -> None:
    path.write_bytes(b"")


def write_text(path: Path) -> None:
    path.write_text("<!doctype html><title>Not found</title>")


def write_truncated(path: Path) -> None:
    torch.save({"a": torch.randn(50_000)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def write_truncated_old(path: Path) -> None:
    torch.save({"a": torch.randn(50_000)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def write_other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")


def write_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    "write", [write_nothing, write_text, write_truncated, write_truncated_old, write_other_zip, write_folder]
)
def test_what_is_no_tensor_file_is_refused_in_one_line(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    write(path)
    with pytest.raises(TensorFileError, match=r"^x\.pth (is|holds) ") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TensorFileError, match=r"x\.pth is not in"):
        read_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ([torch.ones(1)], "holds a list where a state dict should be"),
        ({"a": 3}, "'a' is a int; only named tensors belong there"),
        ({1: torch.ones(1)}, "1 is a Tensor; only named tensors belong there"),
        ({"a": torch.ones(3).to_sparse()}, "'a' is not a plain dense tensor"),
    ],
)
def test_only_named_dense_tensors_are_taken(held: object, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(held, path)
    with pytest.raises(TensorFileError, match=said):
        read_tensors(path)


def test_two_keys_that_become_one_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(1), "module.a": torch.ones(1)}, path)
    with pytest.raises(TensorFileError, match="two tensors are both 'a'"):
        read_tensors(path, (), lambda key: key.removeprefix("module."))


def test_a_filled_net_is_frozen_and_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"weight": torch.full((2, 3), 2.0, dtype=torch.float64), "bias": torch.zeros(2)}, path)
    with torch.device("meta"):
        net = torch.nn.Linear(3, 2)
    fill(net, read_tensors(path), "x.pth")
    with path.open("r+b") as file:
        file.truncate(0)
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(net(torch.ones(1, 3)), torch.full((1, 2), 6.0))


def test_values_that_are_not_finite_are_refused() -> None:
    with torch.device("meta"):
        net = torch.nn.Linear(3, 2)
    with pytest.raises(TensorFileError, match=r"x\.pth: bias holds values that are not finite"):
        fill(net, {"weight": torch.ones(2, 3), "bias": torch.tensor([0.0, float("nan")])}, "x.pth")
