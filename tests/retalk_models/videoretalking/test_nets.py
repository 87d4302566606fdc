"""Every net against the official code's outputs for the same synthetic weights and inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from retalk_models.videoretalking.dnet import DNet
from retalk_models.videoretalking.enet import NOISE_SIZES, ENet, draw_noise, shrink
from retalk_models.videoretalking.files import manifest
from retalk_models.videoretalking.lnet import LNet
from retalk_models.videoretalking.recon import ANGLE, EXPRESSION, TRANSLATION, WIDTHS, CoefficientNet

Golden = dict[str, NDArray[np.generic]]
Load = Callable[[str], Golden]


def tensor(array: NDArray[np.generic]) -> Tensor:
    """uint8 pictures become 0..1."""
    made = torch.from_numpy(array)
    return made.float() / 255 if made.dtype == torch.uint8 else made


def hold(name: str, got: Tensor, want: NDArray[np.generic]) -> None:
    """The largest error is within 1e-4 of the larger of one and the output's own spread."""
    wanted = torch.from_numpy(want)
    assert got.shape == wanted.shape, name
    error = float((got - wanted).abs().max())
    limit = 1e-4 * max(1.0, float(wanted.std()))
    print(f"golden {name}: largest error {error:.1e}, limit {limit:.1e}")
    assert error <= limit, f"{name}: {error:.2e} > {limit:.2e}"


@pytest.mark.parametrize(
    ("ours", "theirs"), [("dnet", "dnet"), ("lnet", "lnet"), ("enet", "enet_own"), ("recon", "recon")]
)
def test_compact_manifests_say_what_the_facts_say(ours: str, theirs: str, videoretalking_facts: Path) -> None:
    facts = json.loads((videoretalking_facts / "manifest" / f"{theirs}.json").read_text())
    assert {key: list(spec.shape) for key, spec in manifest(ours).items()} == facts
    integers = {key for key, spec in manifest(ours).items() if not spec.floating}
    assert integers == {key for key in facts if key.endswith("num_batches_tracked")}


def test_dnet(dnet: DNet, golden: Load) -> None:
    facts = golden("dnet")
    image, semantics = tensor(facts["in_image_u8"]) * 2 - 1, tensor(facts["in_coeff"])
    hold("dnet descriptor", dnet.describe(semantics), facts["out_descriptor"])
    got = dnet(image, semantics)
    hold("dnet flow", got.flow, facts["out_flow"])
    hold("dnet warp_image", got.warp_image, facts["out_warp_image"])
    hold("dnet fake_image", got.fake_image, facts["out_fake_image"])


def test_dnet_does_not_hold_its_dead_convolutions(dnet: DNet) -> None:
    kept = set(dnet.state_dict())
    dropped = {key for key in manifest("dnet") if key not in kept}
    assert kept < set(manifest("dnet"))
    assert len(dropped) == 6 * 8
    assert all(".res" in key and (".conv1." in key or ".norm1." in key) for key in dropped)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_lnet(lnet: LNet, golden: Load) -> None:
    facts = golden("lnet")
    mel, faces = tensor(facts["in_mel"]), tensor(facts["in_faces_u8"])
    voice = lnet.hear(mel)
    hold("lnet audio_feat", voice[:, :, None, None], facts["out_audio_feat"])
    levels = lnet.encoder(faces[:, :3], lnet.look(faces[:, 3:]))
    hold("lnet enc0", levels[0][:, ::8, ::4, ::4], facts["out_enc0_s4"])
    hold("lnet enc1", levels[1][:, ::16, ::4, ::4], facts["out_enc1_s"])
    hold("lnet enc2", levels[2][:, ::16, ::2, ::2], facts["out_enc2_s"])
    hold("lnet bottleneck", levels[3][:, ::32], facts["out_bottleneck_s"])
    # Nine blocks of sums over 6912 products amplify the order in which a machine adds. With oneDNN's kernels
    # for AVX2 that alone costs more than the limit, so this one intermediate result is held with plain ones.
    with torch.backends.mkldnn.flags(enabled=False):
        hold("lnet res2", lnet.decoder.speak(levels[3][:1], voice[:1], 2)[:, ::32], facts["out_res2_s"][:1])
    hold("lnet out", lnet(mel, faces), facts["out_out"])


def test_lnet_folds_its_spectral_norms(lnet: LNet) -> None:
    plain = {
        key.replace("weight_orig", "weight")
        for key in manifest("lnet")
        if not key.endswith(("weight_u", "weight_v"))
    }
    assert set(lnet.state_dict()) == plain


def test_enet(enhancer: tuple[LNet, ENet], golden: Load) -> None:
    lnet, enet = enhancer
    facts = golden("enet")
    mel, faces = tensor(facts["in_mel"]), tensor(facts["in_faces_u8"])
    style = enet.style(faces[:, 3:])
    hold("enet style_code", style, facts["out_style_code"])
    low = lnet(mel, shrink(faces))
    hold("enet low_res", low, facts["out_low_res"])
    out = enet.draw(low, style)
    assert list(out.shape) == facts["out_out_full_shape"].tolist()
    hold("enet out", out[..., ::2, ::2], facts["out_out_s2"])
    hold("enet out crop", out[..., 160:224, 160:224], facts["out_out_crop"])
    hold("enet out mean", out.mean(dim=(2, 3)), facts["out_out_mean"])
    hold("enet out std", out.flatten(2).std(dim=2), facts["out_out_std"])


def test_enet_noise_is_fixed_by_its_seed_and_scaled_by_learned_strengths(enhancer: tuple[LNet, ENet]) -> None:
    enet = enhancer[1]
    noise = draw_noise(7)
    assert [tuple(part.shape) for part in noise] == [(1, 1, size, size) for size in NOISE_SIZES]
    assert all(torch.equal(a, b) for a, b in zip(noise, draw_noise(7), strict=True))
    assert not torch.equal(noise[0], draw_noise(8)[0])
    conv = enet.style_convs[0]
    generator = torch.Generator().manual_seed(4)
    x, style = torch.rand(2, 3, 100, 100, generator=generator), torch.randn(2, 512, generator=generator)
    plain = conv(x, style, None)
    strength = conv.get_parameter("weight")
    strength.fill_(0.25)
    try:
        noisy = conv(x, style, noise[0])
    finally:
        strength.zero_()
    both_positive = (plain > 0) & (noisy > 0)
    assert torch.allclose(
        (noisy - plain)[both_positive], (0.25 * noise[0]).expand_as(plain)[both_positive], atol=1e-5
    )


def test_coefficient_net(coefficient_net: CoefficientNet, golden: Load) -> None:
    facts = golden("recon")
    coefficients = coefficient_net(tensor(facts["in_x_u8"]))
    hold("recon coeff", coefficients, facts["out_coeff"])
    ends = np.cumsum(WIDTHS).tolist()
    assert (EXPRESSION.start, EXPRESSION.stop) == (ends[0], ends[1])
    assert (ANGLE.start, ANGLE.stop) == (ends[2], ends[3])
    assert (TRANSLATION.start, TRANSLATION.stop) == (ends[4], 257)


def test_a_batch_equals_its_members(lnet: LNet, enhancer: tuple[LNet, ENet]) -> None:
    generator = torch.Generator().manual_seed(3)
    mel = torch.randn(2, 1, 80, 16, generator=generator)
    faces = torch.rand(2, 6, 32, 32, generator=generator)
    low = lnet(mel, faces)
    assert torch.allclose(low[1:], lnet(mel[1:], faces[1:]), atol=1e-4)
    style = torch.randn(2, 512, generator=generator)
    both = enhancer[1].draw(low, style)
    assert torch.allclose(both[1:], enhancer[1].draw(low[1:], style[1:]), atol=1e-4)
