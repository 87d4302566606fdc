"""How near the rendering net's pictures come to the truth, on people or frames it has not learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from retalk_models.picture import F32
from retalk_models.talkin.render_samples import Sample, inputs, stacked
from retalk_models.talkin.rendernet import RenderNet, compose


def tensors(batch: dict[str, F32], device: str) -> dict[str, Tensor]:
    """The same arrays on a device."""
    return {name: torch.from_numpy(np.ascontiguousarray(one)).to(device) for name, one in batch.items()}


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over samples, of what the net draws and of the first warp alone.

    PSNR in dB, on luma, on the lips and on all that is drawn; SSIM on luma; sharpness and flicker over
    the truth's. inside: sharpness and PSNR between lips that are wide apart; 0 where none are.
    """

    lips_psnr: float
    lips_psnr_warp: float
    reach_psnr: float
    reach_psnr_warp: float
    ssim: float
    ssim_warp: float
    sharpness: float
    sharpness_warp: float
    flicker: float
    flicker_warp: float
    inside_sharpness: float
    inside_sharpness_warp: float
    inside_psnr: float
    inside_psnr_warp: float


_MEASURES = 7
"""How many of them there are, of which the last two are of wide mouths only."""

_WIDE = 150
"""Crop samples between the lips from which a mouth counts as wide."""


def _psnr(fault: Tensor, mask: Tensor) -> Tensor:
    luma = fault[:, :1] * 127.5
    error = (luma**2 * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(1)
    return 10 * torch.log10(255**2 / error.clamp_min(0.1))


def _ssim(left: Tensor, right: Tensor, mask: Tensor) -> Tensor:
    def soft(value: Tensor) -> Tensor:
        return functional.avg_pool2d(value, 7, 1, 3)

    a, b = left[:, :1] * 127.5, right[:, :1] * 127.5
    mean_a, mean_b = soft(a), soft(b)
    var_a, var_b = soft(a * a) - mean_a**2, soft(b * b) - mean_b**2
    cov = soft(a * b) - mean_a * mean_b
    mean_a, mean_b = mean_a + 127.5, mean_b + 127.5
    like = ((2 * mean_a * mean_b + 6.5) * (2 * cov + 58.5)) / (
        (mean_a**2 + mean_b**2 + 6.5) * (var_a + var_b + 58.5)
    )
    return (like * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(1)


def _detail(value: Tensor, mask: Tensor) -> Tensor:
    luma = value[:, :1]
    fine = luma - functional.avg_pool2d(luma, 3, 1, 1)
    return (fine.abs() * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(1)


@torch.no_grad()
def evaluate(net: RenderNet, pairs: Sequence[tuple[Sample, Sample]], device: str = "cpu") -> Scores:
    """Score a net on pairs it has not learnt from; leaves it in training mode. Raises ValueError for none."""
    if not pairs:
        raise ValueError("there are no pairs of frames to score by")
    net.eval()
    rows: list[list[Tensor]] = []
    wide: list[Tensor] = []
    for start in range(0, len(pairs), 8):
        some = [one for pair in pairs[start : start + 8] for one in pair]
        raw = stacked(some)
        batch = tensors(raw, device)
        value = torch.from_numpy(inputs(raw)).to(device)
        gates, synthesis = net(value)
        out = compose(value, gates, synthesis)
        truth, reach = batch["context"], batch["reach"]
        lips = batch["lips"] * (reach > 0.5)
        row = []
        inside = (batch["drawn"][:, 1:2] > 0.9).float()
        wide.append(inside.sum((1, 2, 3)) >= _WIDE)
        for measured in (out, batch["first"]):
            shown = truth + reach * (measured - truth)
            fault = shown - truth
            row += [_psnr(fault, lips), _psnr(fault, (reach > 0.5).float()), _ssim(shown, truth, lips)]
            row.append(_detail(shown, lips) / _detail(truth, lips).clamp_min(1e-4))
            true_motion = ((truth[1::2] - truth[::2])[:, :1].abs() * lips[::2]).sum((1, 2, 3)) + 1e-3
            motion = ((shown[1::2] - shown[::2])[:, :1].abs() * lips[::2]).sum((1, 2, 3))
            row.append((motion / true_motion).repeat_interleave(2))
            row.append(_detail(shown, inside) / _detail(truth, inside).clamp_min(1e-3))
            row.append(_psnr(fault, inside))
        rows.append(row)
    net.train()
    chosen = torch.cat(wide)
    columns = []
    for place, column in enumerate(zip(*rows, strict=True)):
        values = torch.cat(column)
        if place % _MEASURES >= _MEASURES - 2:
            values = values[chosen] if chosen.any() else torch.zeros(1)
        columns.append(float(values.mean()))
    own, warp = columns[:_MEASURES], columns[_MEASURES:]
    return Scores(*(value for both in zip(own, warp, strict=True) for value in both))
