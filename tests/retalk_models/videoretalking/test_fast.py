"""The rebuilt nets against the nets as loaded: the same function in float32, close in half precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from retalk_models.videoretalking.dft import SmallDFT
from retalk_models.videoretalking.dnet import DNet
from retalk_models.videoretalking.enet import ENet, ModulatedConv
from retalk_models.videoretalking.fast import (
    accelerate_coefficient_net,
    accelerate_dnet,
    accelerate_enet,
    accelerate_lnet,
)
from retalk_models.videoretalking.lnet import LNet
from retalk_models.videoretalking.recon import CoefficientNet

Load = Callable[[str], dict[str, NDArray[np.generic]]]
HALVES = [(torch.bfloat16, 40.0), (torch.float16, 50.0)]
halves = pytest.mark.parametrize(("dtype", "least_db"), HALVES, ids=["bfloat16", "float16"])


@pytest.fixture(autouse=True)
def _half_products_as_devices_make_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-precision convolutions as float32 ones of the same rounded numbers, the results rounded again.

    That is what a device with half-precision units computes. A CPU without them computes it too, but up to a
    hundred times as slowly.
    """

    def rounded(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
            if x.dtype is torch.float32:
                return real(x, weight, bias, *rest, **named)
            assert weight.dtype is x.dtype
            exact = None if bias is None else bias.float()
            return real(x.float(), weight.float(), exact, *rest, **named).to(x.dtype)

        return call

    for name in ("conv2d", "conv_transpose2d", "linear"):
        monkeypatch.setattr(F, name, rounded(getattr(F, name)))


def picture(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(array).float() / 255


def psnr(got: Tensor, want: Tensor, peak: float) -> float:
    return float(10 * torch.log10(peak**2 / (got - want).square().mean()))


def half_bytes(net: torch.nn.Module, dtype: torch.dtype) -> float:
    """The share of a net's numbers that are of `dtype`."""
    parameters = list(net.parameters())
    return sum(p.numel() for p in parameters if p.dtype is dtype) / sum(p.numel() for p in parameters)


@pytest.mark.parametrize("size", [2, 6, 12, 24, 48])
def test_matrix_transforms_equal_fourier_transforms(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    dft = SmallDFT(size)
    x = torch.randn(2, 3, size, size, generator=generator)
    spectrum = dft(x)
    want = torch.fft.rfft2(x, norm="ortho")
    assert torch.allclose(spectrum[:, 0::2], want.real, atol=1e-5)
    assert torch.allclose(spectrum[:, 1::2], want.imag, atol=1e-5)
    assert torch.allclose(dft.inverse(spectrum), x, atol=1e-5)
    # What a net does to a spectrum leaves no real picture's spectrum; the inverse must treat it the same way.
    touched = torch.randn(2, 6, size, size // 2 + 1, generator=generator)
    back = torch.fft.irfft2(torch.complex(touched[:, 0::2], touched[:, 1::2]), s=(size, size), norm="ortho")
    assert torch.allclose(dft.inverse(touched), back, atol=1e-5)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_odd_transforms_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"is {size} and must be even"):
        SmallDFT(size)


@pytest.fixture(scope="session")
def lnet_case(lnet: LNet, golden: Load) -> tuple[Tensor, Tensor, Tensor]:
    """Mel, faces, and what the net as loaded makes of them."""
    facts = golden("lnet")
    mel, faces = torch.from_numpy(facts["in_mel"])[:1], picture(facts["in_faces_u8"])[:1]
    with torch.inference_mode():
        return mel, faces, lnet(mel, faces)


def test_lnet_rebuilt_is_the_same_function(lnet: LNet, lnet_case: tuple[Tensor, Tensor, Tensor]) -> None:
    mel, faces, want = lnet_case
    fast = accelerate_lnet(copy.deepcopy(lnet), torch.float32)
    assert float((fast(mel, faces) - want).abs().max()) < 1e-4
    assert sum(1 for _ in fast.modules()) < sum(1 for _ in lnet.modules()) / 2


@halves
def test_lnet_in_half_precision(
    dtype: torch.dtype, least_db: float, lnet: LNet, lnet_case: tuple[Tensor, Tensor, Tensor]
) -> None:
    mel, faces, want = lnet_case
    fast = accelerate_lnet(copy.deepcopy(lnet), dtype)
    # In bfloat16 the encoder and the widest level are left alone: most of the weights, half of the work.
    assert half_bytes(fast, dtype) > (0.9 if dtype is torch.float16 else 0.09)
    quality = psnr(fast(mel, faces), want, 1.0)
    print(f"lnet {dtype}: {quality:.1f} dB")
    assert quality >= least_db


@pytest.fixture(scope="session")
def dnet_case(dnet: DNet, golden: Load) -> tuple[Tensor, Tensor, Tensor]:
    """Image, semantics, and what the net as loaded makes of them."""
    facts = golden("dnet")
    image, semantics = picture(facts["in_image_u8"]) * 2 - 1, torch.from_numpy(facts["in_coeff"])
    with torch.inference_mode():
        return image, semantics, dnet(image, semantics).fake_image


def test_dnet_rebuilt_is_the_same_function(dnet: DNet, dnet_case: tuple[Tensor, Tensor, Tensor]) -> None:
    image, semantics, want = dnet_case
    fast = accelerate_dnet(copy.deepcopy(dnet), torch.float32)
    assert float((fast(image, semantics).fake_image - want).abs().max()) < 1e-4


@halves
def test_dnet_in_half_precision(
    dtype: torch.dtype, least_db: float, dnet: DNet, dnet_case: tuple[Tensor, Tensor, Tensor]
) -> None:
    image, semantics, want = dnet_case
    fast = accelerate_dnet(copy.deepcopy(dnet), dtype)
    assert half_bytes(fast, dtype) > 0.9
    quality = psnr(fast(image, semantics).fake_image, want, 2.0)
    print(f"dnet {dtype}: {quality:.1f} dB")
    assert quality >= least_db


@halves
def test_enet_in_half_precision(
    dtype: torch.dtype, least_db: float, enhancer: tuple[LNet, ENet], golden: Load
) -> None:
    enet, facts = enhancer[1], golden("enet")
    # A part of the picture will do: the decoder works the same at any size.
    low, style = (
        torch.from_numpy(facts["out_low_res"])[..., :24, :24],
        torch.from_numpy(facts["out_style_code"]),
    )
    fast = accelerate_enet(copy.deepcopy(enet), dtype)
    assert half_bytes(fast, dtype) > 0.8
    quality = psnr(fast.draw(low, style), enet.draw(low, style), 1.0)
    print(f"enet {dtype}: {quality:.1f} dB")
    assert quality >= least_db


def test_enets_style_in_half_precision(enhancer: tuple[LNet, ENet], golden: Load) -> None:
    facts = golden("enet")
    want = torch.from_numpy(facts["out_style_code"])
    fast = accelerate_enet(copy.deepcopy(enhancer[1]), torch.float16)
    got = fast.style(picture(facts["in_faces_u8"])[:, 3:])
    assert float((got - want).norm() / want.norm()) < 0.003


def test_a_strong_style_overflowed_float16() -> None:
    torch.manual_seed(0)
    conv = ModulatedConv(64, 32, 3, demodulate=True)
    torch.nn.init.normal_(conv.weight, std=0.04)
    conv.modulation.bias.fill_(20_000.0)
    x, style = torch.randn(2, 64, 8, 8), torch.randn(2, 512)
    want = conv(x, style)
    half = copy.deepcopy(conv)
    half.weight.data = half.weight.data.half()
    got = half(x.half(), style).float()
    assert psnr(got, want, float(want.abs().max())) > 50


@halves
def test_coefficient_net_in_half_precision(
    dtype: torch.dtype, least_db: float, coefficient_net: CoefficientNet, golden: Load
) -> None:
    face = picture(golden("recon")["in_x_u8"])
    want = coefficient_net(face)
    exact = accelerate_coefficient_net(copy.deepcopy(coefficient_net), torch.float32)
    assert float((exact(face) - want).abs().max()) < 1e-5
    fast = accelerate_coefficient_net(copy.deepcopy(coefficient_net), dtype)
    drift = float((fast(face) - want).norm() / want.norm())
    print(f"coefficients {dtype}: off by {drift:.4f}")
    assert drift < 10 ** (-least_db / 20)
