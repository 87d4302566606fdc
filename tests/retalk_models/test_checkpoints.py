from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from retalk_models.checkpoints import SUMS, WEIGHTS, bundled, find


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.safetensors").write_bytes(b"good")
    (tmp_path / "changed.safetensors").write_bytes(b"changed since")
    (tmp_path / "extra.safetensors").write_bytes(b"extra")
    lines = [
        f"{hashlib.sha256(content).hexdigest()}  {name}.safetensors\n"
        for name, content in (("good", b"good"), ("changed", b"changed"), ("gone", b"gone"))
    ]
    (tmp_path / SUMS).write_text("".join(lines))
    return tmp_path


def test_each_kind_of_fault_is_told_apart(folder: Path) -> None:
    faults = {weights.name: weights.fault for weights in bundled(folder)}
    assert list(faults) == ["changed", "extra", "gone", "good"]
    assert faults["good"] == ""
    assert faults["gone"] == "is missing"
    assert faults["extra"] == "is not listed in SHA256SUMS"
    assert faults["changed"].startswith("is not the file that was shipped")


def test_weights_are_found_by_name_with_the_suffix_or_without(folder: Path) -> None:
    for name in ("good", "good.safetensors"):
        weights = find(name, folder)
        assert weights is not None
        assert weights.path == folder / "good.safetensors"
    assert find("bad", folder) is None


def test_the_shipped_weights_are_those_listed() -> None:
    shipped = bundled()
    assert shipped
    assert [f"{weights.path.name} {weights.fault}" for weights in shipped if weights.fault] == []


def test_the_list_is_one_that_sha256sum_accepts() -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=WEIGHTS, check=True)
