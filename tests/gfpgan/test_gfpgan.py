"""The real gfpgan package, in an environment that has it, with synthetic weights."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from retalk_models.face.geometry import template
from retalk_models.picture import Box
from retalk_models.restore import MouthRestorer, Restores, available, gfpgan_net, load_gfpgan
from retalk_models.tensors import DifferentTensorsError
from tests.retalk_models.videoretalking import synthetic

REPOSITORY = Path(__file__).resolve().parents[2]
_BESIDE = REPOSITORY.parent / "shared" / "design" / "videoretalking"
FACTS = Path(os.environ.get("RETALK_VIDEORETALKING_FACTS", _BESIDE)) / "golden"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    held = gfpgan_net().state_dict()
    return {key: synthetic.tensor_of(key, tuple(tensor.shape)) for key, tensor in held.items()}


@pytest.fixture(scope="module")
def restore(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Restores:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("gfpgan") / "GFPGANv1.3.pth"
    torch.save({"params_ema": state}, path)
    net = load_gfpgan(path, torch.device("cpu"))
    path.unlink()
    return net


def test_the_real_package_is_here_and_the_bridge_is_gone_again(restore: Restores) -> None:
    assert available()
    assert version("gfpgan") == "1.3.8"
    assert sys.modules["gfpgan"].__file__
    assert "torchvision.transforms.functional_tensor" not in sys.modules


def test_it_restores_as_the_official_code_does(restore: Restores) -> None:
    if not FACTS.is_dir():
        pytest.skip(
            f"VIDEORETALKING GOLDENS ABSENT: no folder {FACTS}; "
            "set RETALK_VIDEORETALKING_FACTS to one with manifest/ and golden/"
        )
    with np.load(FACTS / "gfpgan.npz") as golden:
        rgb = golden["in_x_u8"][0].transpose(1, 2, 0)
        want = np.clip(golden["out_out_s8"][0], -1, 1)
    out = restore(np.ascontiguousarray(rgb[..., ::-1]))
    got = out[::8, ::8, ::-1].transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    assert float(np.abs(got - want).max()) <= 0.5 / 127.5 + 1e-4


def test_only_the_mouth_changes_and_by_half_at_most(restore: Restores) -> None:
    box = Box(0, 0, 384, 384)
    shape = template()
    low, high = shape[:, :2].min(axis=0), shape[:, :2].max(axis=0)
    points = shape.copy()
    points[:, :2] = (shape[:, :2] - low) / (high - low) * (300, 350) + (42, 10)
    drawn = torch.rand(1, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    out = MouthRestorer(restore, {}).open().restore(drawn, box, points, 0.04)
    changed = (out - drawn).abs().amax(dim=1)[0].numpy()
    rows, columns = np.nonzero(changed)
    mouth = points[[61, 291, 0, 17], :2]
    assert changed.max() > 0.02
    assert mouth[:, 0].min() - 40 < columns.min() < columns.max() < mouth[:, 0].max() + 40
    assert mouth[:, 1].min() - 40 < rows.min() < rows.max() < mouth[:, 1].max() + 40


def test_another_nets_file_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "GFPGANv1.3.pth"
    first = next(iter(state))
    torch.save({"params_ema": {key: value for key, value in state.items() if key != first}}, path)
    with pytest.raises(DifferentTensorsError, match=rf"does not hold GFPGAN v1\.3: {first} is missing"):
        load_gfpgan(path, torch.device("cpu"))
