"""Goldens of VideoReTalking's nets, and the nets with synthetic weights, loaded as the official files are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from retalk_models.videoretalking.dnet import DNet
from retalk_models.videoretalking.enet import ENet
from retalk_models.videoretalking.files import load_coefficient_net, load_dnet, load_enet, load_lnet, manifest
from retalk_models.videoretalking.lnet import LNet
from retalk_models.videoretalking.recon import CoefficientNet
from tests.retalk_models.videoretalking import synthetic

Golden = dict[str, NDArray[np.generic]]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def videoretalking_facts() -> Path:
    """The folder with manifest/ and golden/: design/videoretalking beside the repository.

    RETALK_VIDEORETALKING_FACTS names another place.
    """
    beside = Path(__file__).resolve().parents[4] / "shared" / "design" / "videoretalking"
    folder = Path(os.environ.get("RETALK_VIDEORETALKING_FACTS", beside))
    if not folder.is_dir():
        pytest.skip(
            f"VIDEORETALKING GOLDENS ABSENT: no folder {folder}; "
            "set RETALK_VIDEORETALKING_FACTS to one with manifest/ and golden/"
        )
    return folder


@pytest.fixture(scope="session")
def golden(videoretalking_facts: Path) -> Callable[[str], Golden]:
    """Inputs and outputs of one net by name."""

    def load(name: str) -> Golden:
        with np.load(videoretalking_facts / "golden" / f"{name}.npz") as held:
            return {key: held[key] for key in held.files}

    return load


@pytest.fixture(scope="session")
def check_fingerprint(videoretalking_facts: Path) -> Callable[[str, Iterable[Mapping[str, Tensor]]], None]:
    """Fails unless the weights drawn here are those that the goldens were made with."""
    known = json.loads((videoretalking_facts / "golden" / "fingerprints.json").read_text())

    def check(name: str, states: Iterable[Mapping[str, Tensor]]) -> None:
        want = known[name]
        tensors, elements, total, squares = synthetic.fingerprint(states)
        assert (tensors, elements) == (want["tensors"], want["elements"])
        assert total == pytest.approx(want["sum"], rel=1e-6, abs=0.05), (
            "torch draws other normal numbers here"
        )
        assert squares == pytest.approx(want["sumsq"], rel=1e-7)

    return check


Check = Callable[[str, Iterable[Mapping[str, Tensor]]], None]


@pytest.fixture(scope="session")
def dnet(tmp_path_factory: pytest.TempPathFactory, check_fingerprint: Check) -> DNet:
    state = synthetic.weights(manifest("dnet"))
    check_fingerprint("dnet", [state])
    path = synthetic.save(state, tmp_path_factory.mktemp("dnet") / "DNet.pt", "net_G_ema", epoch=3)
    net = load_dnet(path)
    path.unlink()
    return net


@pytest.fixture(scope="session")
def coefficient_net(tmp_path_factory: pytest.TempPathFactory, check_fingerprint: Check) -> CoefficientNet:
    state = synthetic.weights(manifest("recon"))
    check_fingerprint("recon", [state])
    path = synthetic.save(state, tmp_path_factory.mktemp("recon") / "epoch_20.pth", "net_recon")
    net = load_coefficient_net(path)
    path.unlink()
    return net


@pytest.fixture(scope="session")
def lnet(tmp_path_factory: pytest.TempPathFactory, check_fingerprint: Check) -> LNet:
    state = synthetic.weights(manifest("lnet"))
    check_fingerprint("lnet", [state])
    path = tmp_path_factory.mktemp("lnet") / "LNet.pth"
    synthetic.save(
        state, path, "state_dict", "module.", optimizer={"state": {}, "param_groups": [{"lr": 1e-4}]}
    )
    net = load_lnet(path)
    path.unlink()
    return net


@pytest.fixture(scope="session")
def enhancer(tmp_path_factory: pytest.TempPathFactory, check_fingerprint: Check) -> tuple[LNet, ENet]:
    """E-Net and the L-Net that its goldens were made with, whose weights differ from `lnet`'s own."""
    own = synthetic.weights(manifest("enet"))
    low = synthetic.weights(manifest("lnet"), "low_res.")
    check_fingerprint("enet", [own, low])
    folder = tmp_path_factory.mktemp("enet")
    inner = "low_res.decoder.final.model.0.bias"
    path = synthetic.save(own | {inner: low[inner]}, folder / "ENet.pth", "state_dict", "module.")
    enet = load_enet(path)
    bare = {key.removeprefix("low_res."): tensor for key, tensor in low.items()}
    lnet = load_lnet(synthetic.save(bare, folder / "LNet.pth", "state_dict"))
    (folder / "LNet.pth").unlink()
    return lnet, enet
