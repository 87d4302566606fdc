"""The rendering net: what its outputs mean, what it costs, and the file it is kept in."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from retalk_models.talkin.basis import WEIGHTS_FILE as BASIS_FILE
from retalk_models.talkin.enhance import RENDERER_FILE
from retalk_models.talkin.mouth_crop import CHANNELS, SIDE
from retalk_models.talkin.rendernet import RenderNet, compose, fused, load_net, multiply_adds, save_net

SMALL = (4, 6, 8, 8)


def unlike_the_first(seed: int = 0) -> RenderNet:
    """A net that has left its start: its gates and synthesis depend on what it sees."""
    torch.manual_seed(seed)
    net = RenderNet(SMALL)
    torch.nn.init.normal_(net.head.weight, std=0.3)
    return net.eval()


def crops(count: int = 2) -> torch.Tensor:
    return torch.rand(count, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_the_gates_are_shares_of_one() -> None:
    gates, synthesis = unlike_the_first()(crops())
    assert gates.shape == synthesis.shape == (2, 3, SIDE, SIDE)
    assert gates.min() >= 0
    assert gates.std() > 0.05
    assert torch.allclose(gates.sum(1), torch.ones(2, SIDE, SIDE), atol=1e-5)


@torch.no_grad()
def test_untrained_the_net_shows_the_first_warp() -> None:
    value = crops()
    gates, synthesis = RenderNet(SMALL)(value)
    assert torch.equal(synthesis, value[:, 3:6])
    assert gates[:, 0].min() > 0.7
    value[:, 6:9] = value[:, 3:6]
    assert torch.allclose(compose(value, gates, synthesis), value[:, 3:6], atol=1e-6)


@torch.no_grad()
def test_each_gate_picks_its_own_picture() -> None:
    value, synthesis = crops(1), torch.full((1, 3, SIDE, SIDE), 0.25)
    pictures = (value[:, 3:6], value[:, 6:9], synthesis)
    for place, picture in enumerate(pictures):
        gates = torch.zeros(1, 3, SIDE, SIDE)
        gates[:, place] = 1
        assert torch.equal(compose(value, gates, synthesis), picture)


@torch.no_grad()
def test_a_crop_is_drawn_alike_alone_and_in_a_batch() -> None:
    net, value = unlike_the_first(), crops(3)
    together = compose(value, *net(value))
    for index in range(3):
        one = value[index : index + 1]
        assert torch.allclose(compose(one, *net(one)), together[index : index + 1], atol=1e-5)


def test_a_crop_costs_at_most_a_tenth_of_a_billion_multiply_adds() -> None:
    assert 0.05e9 < multiply_adds() <= 0.1e9


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 3])
def test_joined_for_showing_the_net_says_what_its_gates_and_synthesis_make(count: int) -> None:
    net, value = unlike_the_first(), crops(count)
    out = compose(value, *net(value))
    said = fused(net, "cpu")(value.permute(0, 2, 3, 1).contiguous())
    assert said.shape == (count, 4, SIDE, SIDE)
    share, change = said[:, :1], said[:, 1:] / 127.5
    assert share.min() >= 0
    assert share.max() <= 1
    first, second = value[:, 3:6], value[:, 6:9]
    # What the two warps lack to a whole, the change makes up for, but for what keeps the share finite.
    assert torch.allclose(first + share * (second - first) + change, out, atol=0.01)


def test_the_former_nets_weights_are_refused_and_not_misread(tmp_path: Path) -> None:
    kept = tmp_path / "net.safetensors"
    former = {f"down.{level}.first.bias": torch.zeros(8) for level in range(4)}
    kept.write_bytes(save(former))
    with pytest.raises(ValueError, match="no weights of the rendering net"):
        load_net(kept)


@torch.no_grad()
def test_a_kept_net_says_the_same_but_for_half_precision(tmp_path: Path) -> None:
    net, value = unlike_the_first(), crops()
    save_net(net, tmp_path / "net.safetensors")
    again = load_net(tmp_path / "net.safetensors")
    assert again.widths == SMALL
    assert not again.training
    for one, other in zip(net(value), again(value), strict=True):
        assert float((one - other).abs().max()) < 0.02
    assert [one.name for one in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_kept_net_can_be_read_by_whoever_may_read_new_files(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_net(RenderNet(SMALL), tmp_path / "net.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "net.safetensors").stat().st_mode & 0o777 == 0o644


def test_another_nets_file_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    basis = files("retalk_models").joinpath("weights", BASIS_FILE).read_bytes()
    kept = tmp_path / "net.safetensors"
    save_net(RenderNet(SMALL), kept)
    for content in (basis, b"", b"no weights at all", kept.read_bytes()[:-100]):
        kept.write_bytes(content)
        with pytest.raises(ValueError, match=r"net\.safetensors: these are no weights of the rendering net"):
            load_net(kept)


def test_the_shipped_net_is_small_and_has_learnt_something() -> None:
    shipped = files("retalk_models").joinpath("weights", RENDERER_FILE)
    assert len(shipped.read_bytes()) < 10_000_000
    net = load_net()
    assert net.widths == RenderNet().widths
    assert bool(net.head.weight.detach().any())
