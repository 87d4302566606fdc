"""The official files' layouts, on files a few kilobytes small: their tensors are views of single numbers."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torch import Tensor, nn

from retalk_models.store import CheckpointError, CheckpointStore, MissingCheckpointsError
from retalk_models.tensors import DifferentTensorsError, TensorFileError
from retalk_models.videoretalking.files import (
    FILES,
    OPTIONAL_FILES,
    STANDARD_POINTS,
    load_coefficient_net,
    load_dnet,
    load_enet,
    load_expressions,
    load_lnet,
    load_nets,
    load_standard_points,
    manifest,
)
from tests.retalk_models.videoretalking import synthetic

Loader = Callable[[Path], nn.Module]
NETS: list[tuple[str, str, str, str, Loader]] = [
    ("dnet", "net_G_ema", "", "editing_net.decoder.res1.res0.conv1.weight", load_dnet),
    ("lnet", "state_dict", "module.", "decoder.res0.res8.conv2.ffc.convg2g.fu.conv_layer.weight", load_lnet),
    ("enet", "state_dict", "module.", "style_convs.2.modulated_conv.weight", load_enet),
    ("recon", "net_recon", "", "backbone.layer3.5.bn2.running_var", load_coefficient_net),
]
nets = pytest.mark.parametrize(("name", "at", "wrap", "key", "load"), NETS, ids=[net[0] for net in NETS])


def flat(name: str) -> dict[str, Tensor]:
    """A net's state dict with every tensor one number, stretched: full shapes, hardly any bytes."""
    return {
        key: (torch.ones(()) if spec.floating else torch.zeros((), dtype=torch.int64)).expand(spec.shape)
        for key, spec in manifest(name).items()
    }


@nets
def test_a_file_whose_keys_and_shapes_are_the_manifests_loads(
    name: str, at: str, wrap: str, key: str, load: Loader, tmp_path: Path
) -> None:
    others = {"low_res.decoder.final.model.0.bias": torch.ones(3)} if name == "enet" else {}
    path = synthetic.save(flat(name) | others, tmp_path / "net.pth", at, wrap, epoch=1)
    assert path.stat().st_size < 2_000_000
    net = load(path)
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in net.parameters())
    assert not any(buffer.is_meta for buffer in net.buffers())


@nets
def test_a_missing_unknown_or_other_tensor_is_refused_by_name(
    name: str, at: str, wrap: str, key: str, load: Loader, tmp_path: Path
) -> None:
    state = flat(name)
    path = tmp_path / "net.pth"
    synthetic.save({k: v for k, v in state.items() if k != key}, path, at, wrap)
    with pytest.raises(
        DifferentTensorsError, match=rf"^net\.pth does not hold the official .*: {key} is missing$"
    ):
        load(path)
    synthetic.save(state | {key + "s": torch.ones(1)}, path, at, wrap)
    with pytest.raises(DifferentTensorsError, match=rf": {key}s is unknown$"):
        load(path)
    synthetic.save(state | {key: torch.ones(1, 7)}, path, at, wrap)
    with pytest.raises(DifferentTensorsError, match=rf": {key} is \[1,7\] and should be f32\["):
        load(path)
    synthetic.save(state, path, "weights", wrap)
    with pytest.raises(TensorFileError, match=rf"holds no state dict under '{at}'"):
        load(path)


def test_another_nets_file_is_refused(tmp_path: Path) -> None:
    path = synthetic.save(flat("enet"), tmp_path / "LNet.pth", "state_dict")
    with pytest.raises(DifferentTensorsError, match=r"^LNet\.pth does not hold the official L-Net: .* more$"):
        load_lnet(path)


def test_a_spectral_norm_of_zero_is_refused(tmp_path: Path) -> None:
    state = flat("lnet") | {"decoder.final.model.0.weight_u": torch.zeros(3)}
    path = synthetic.save(state, tmp_path / "LNet.pth", "state_dict")
    with pytest.raises(TensorFileError, match=r"LNet\.pth: decoder\.final\.model\.0: its spectral norm is 0"):
        load_lnet(path)


def test_expressions_are_the_first_64_values_of_row_0(tmp_path: Path) -> None:
    path = tmp_path / "expression.mat"
    centre, mouth = np.arange(200.0).reshape(2, 100), -np.arange(64.0).reshape(1, 64)
    savemat(path, {"expression_center": centre, "expression_mouth": mouth})
    found = load_expressions(path)
    assert found.neutral.dtype == np.float32
    assert np.array_equal(found.neutral, np.arange(64))
    assert np.array_equal(found.smile, -np.arange(64))


def test_a_wrong_expression_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "expression.mat"
    path.write_text("not MATLAB")
    with pytest.raises(TensorFileError, match=r"expression\.mat is not a readable MATLAB file"):
        load_expressions(path)
    savemat(path, {"expression_center": np.zeros((1, 64))})
    with pytest.raises(TensorFileError, match="holds no 'expression_mouth'"):
        load_expressions(path)
    savemat(path, {"expression_center": np.zeros((1, 64)), "expression_mouth": np.zeros((1, 63))})
    with pytest.raises(
        TensorFileError, match=r"'expression_mouth' is \(1, 63\), and needs 64 columns|64 columns"
    ):
        load_expressions(path)


def test_standard_points_come_out_of_the_archive(tmp_path: Path) -> None:
    points = np.random.default_rng(1).normal(size=(68, 3))
    bare, archive = tmp_path / STANDARD_POINTS, tmp_path / "BFM.zip"
    savemat(bare, {"lm": points})
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("BFM/other.bin", b"x" * 1000)
        writer.write(bare, f"BFM/{STANDARD_POINTS}")
    assert np.array_equal(load_standard_points(bare), points)
    assert np.array_equal(load_standard_points(archive), points)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["BFM.zip", STANDARD_POINTS]


def test_a_wrong_archive_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "BFM.zip"
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("BFM/other.bin", b"x")
    with pytest.raises(TensorFileError, match=rf"BFM\.zip holds no {STANDARD_POINTS}"):
        load_standard_points(archive)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writer:
        writer.writestr(f"BFM/{STANDARD_POINTS}", bytes(50_000_000))
    assert archive.stat().st_size < 100_000
    with pytest.raises(TensorFileError, match="of a plausible size"):
        load_standard_points(archive)
    savemat(tmp_path / STANDARD_POINTS, {"lm": np.zeros((5, 3))})
    with zipfile.ZipFile(archive, "w") as writer:
        writer.write(tmp_path / STANDARD_POINTS)
    with pytest.raises(TensorFileError, match=r"'lm' is \(5, 3\) and should be \(68, 3\)"):
        load_standard_points(archive)


def test_without_files_all_are_named_with_terms_and_command(tmp_path: Path) -> None:
    with pytest.raises(MissingCheckpointsError) as caught:
        load_nets(CheckpointStore(tmp_path))
    message = str(caught.value)
    for file in FILES:
        assert file.name in message
        assert file.terms in message
    assert message.endswith("get them with: retalk models pull videoretalking")


def test_every_file_has_an_address_and_terms() -> None:
    for file in (*FILES, *OPTIONAL_FILES):
        assert file.address.startswith("https://github.com/")
        assert file.address.endswith("/" + file.name)
        assert file.terms
        assert file.inspect is not None or file.published is not None


def put_all(folder: Path) -> CheckpointStore:
    """Every official file, small, in its official layout."""
    for name, at, wrap, file in (
        ("dnet", "net_G_ema", "", "DNet.pt"),
        ("lnet", "state_dict", "module.", "LNet.pth"),
        ("enet", "state_dict", "module.", "ENet.pth"),
        ("recon", "net_recon", "", "face3d_pretrain_epoch_20.pth"),
    ):
        synthetic.save(flat(name), folder / file, at, wrap)
    row = np.ones((1, 64))
    savemat(folder / "expression.mat", {"expression_center": row, "expression_mouth": 2 * row})
    savemat(folder / STANDARD_POINTS, {"lm": np.ones((68, 3))})
    with zipfile.ZipFile(folder / "BFM.zip", "w") as archive:
        archive.write(folder / STANDARD_POINTS, STANDARD_POINTS)
    return CheckpointStore(folder)


def test_all_files_load_together_and_their_hashes_are_kept(tmp_path: Path) -> None:
    store = put_all(tmp_path)
    nets = load_nets(store)
    assert set(nets.hashes) == {file.name for file in FILES}
    assert nets.standard_points.shape == (68, 3)
    assert float(nets.expressions.smile[0]) == 2.0
    with (tmp_path / "DNet.pt").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError, match=r"DNet\.pt .* and should have .*; delete it and get it again"):
        load_nets(store)


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_malicious_checkpoint_stops_the_load_and_runs_nothing(tmp_path: Path) -> None:
    store, marker = put_all(tmp_path), tmp_path / "executed"
    torch.save({"state_dict": flat("lnet"), "scheduler": Bomb(marker)}, tmp_path / "LNet.pth")
    with pytest.raises(CheckpointError, match=r"^LNet\.pth .*never loaded.*; delete it and get it again"):
        load_nets(store)
    assert not marker.exists()
