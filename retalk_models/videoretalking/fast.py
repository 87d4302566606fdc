"""The nets rebuilt for speed: the same functions, fewer and larger operations, half precision where safe.

What needs float32 keeps it: the semantics' mapping, flow and warp, the voice encoder, the Fourier transforms,
modulation, and sums of pictures. The nets as loaded are the reference that this is held to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from retalk_models.videoretalking.dft import SmallDFT
from retalk_models.videoretalking.dnet import DNet
from retalk_models.videoretalking.enet import ENet, ModulatedConv
from retalk_models.videoretalking.fourier import FOURIER_SLOPE, FFCUnit, SpectralTransform
from retalk_models.videoretalking.layers import EPS, AdaIN
from retalk_models.videoretalking.lnet import AudioConv, Decoder, LNet
from retalk_models.videoretalking.recon import Bottleneck, CoefficientNet

FACE = 96
"""Side of L-Net's pictures."""


def fuse(conv: nn.Module, norm: nn.Module) -> nn.Conv2d:
    """A convolution that does what `conv` and then `norm` do in evaluation."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    fused = fuse_conv_bn_eval(conv, norm)
    return fused.requires_grad_(False)


class Site:
    """A place where AdaIN happens: one norm, or several side by side over neighbouring channels."""

    def __init__(self, norms: Sequence[AdaIN]) -> None:
        self.norms = tuple(norms)
        self.channels = sum(norm.channels for norm in norms)

    @property
    def kind(self) -> tuple[int, int]:
        return len(self.norms), self.channels

    def shared(self) -> tuple[Tensor, Tensor]:
        """First layers on top of each other: (H, z), (H,)."""
        layers = [norm.mlp_shared[0] for norm in self.norms]
        weights: list[Tensor] = [layer.get_parameter("weight") for layer in layers]
        return torch.cat(weights), torch.cat([layer.get_parameter("bias") for layer in layers])

    def second(self) -> tuple[Tensor, Tensor]:
        """Second layers as one: (H, 2C), (2C,), giving 1 + gamma of every channel and then beta."""
        hidden = sum(norm.mlp_gamma.in_features for norm in self.norms)
        weight = self.norms[0].mlp_gamma.weight.new_zeros(hidden, 2 * self.channels)
        bias = weight.new_zeros(2 * self.channels)
        row = column = 0
        for norm in self.norms:
            for layer, first in ((norm.mlp_gamma, column), (norm.mlp_beta, self.channels + column)):
                rows, columns = slice(row, row + layer.in_features), slice(first, first + norm.channels)
                weight[rows, columns] = layer.weight.T
                bias[columns] = layer.bias
            row += norm.mlp_gamma.in_features
            column += norm.channels
        bias[: self.channels] += 1
        return weight, bias


class StyleBank(nn.Module):
    """Every AdaIN's scale and shift from one condition vector, in a few products instead of three per norm.

    (B, z) float32 -> (B, total) in `dtype`: for each site, at its offset, C scales and then C shifts.
    """

    shared: Tensor
    shared_bias: Tensor

    def __init__(self, sites: Sequence[Site], dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        kinds = dict.fromkeys(site.kind for site in sites)
        groups = [[site for site in sites if site.kind == kind] for kind in kinds]
        self.offsets: dict[Site, int] = {}
        offset = 0
        for site in (site for group in groups for site in group):
            self.offsets[site] = offset
            offset += 2 * site.channels
        firsts = [site.shared() for group in groups for site in group]
        self.register_buffer("shared", torch.cat([weight for weight, _ in firsts]), persistent=False)
        self.register_buffer("shared_bias", torch.cat([bias for _, bias in firsts]), persistent=False)
        self.hidden: list[tuple[int, int]] = []
        for index, group in enumerate(groups):
            seconds = [site.second() for site in group]
            self.register_buffer(f"weight{index}", torch.stack([w for w, _ in seconds]), persistent=False)
            self.register_buffer(
                f"bias{index}", torch.stack([b for _, b in seconds])[:, None], persistent=False
            )
            self.hidden.append((len(group), seconds[0][0].shape[0]))

    def forward(self, z: Tensor) -> Tensor:
        hidden = F.relu(F.linear(z, self.shared, self.shared_bias))
        out: list[Tensor] = []
        start = 0
        for index, (count, width) in enumerate(self.hidden):
            part = hidden[:, start : start + count * width].reshape(-1, count, width).transpose(0, 1)
            start += count * width
            styles = torch.baddbmm(self.get_buffer(f"bias{index}"), part, self.get_buffer(f"weight{index}"))
            out.append(styles.transpose(0, 1).flatten(1))
        return torch.cat(out, dim=1).to(self.dtype)


class SlicedNorm(nn.Module):
    """Instance norm whose scale and shift are a slice of what a StyleBank gave."""

    def __init__(self, channels: int, offset: int) -> None:
        super().__init__()
        self.channels = channels
        self.offset = offset

    def forward(self, x: Tensor, styles: Tensor) -> Tensor:
        middle, end = self.offset + self.channels, self.offset + 2 * self.channels
        styles = styles.to(x.dtype)
        scale, shift = styles[:, self.offset : middle, None, None], styles[:, middle:end, None, None]
        return torch.addcmul(shift, F.instance_norm(x, eps=EPS), scale)


class FastSpectralTransform(nn.Module):
    """The global path with batch norms folded and its transform as matrix products."""

    def __init__(self, source: SpectralTransform, dft: SmallDFT) -> None:
        super().__init__()
        self.narrow = fuse(source.conv1[0], source.conv1[1])
        self.spectral = fuse(source.fu.conv_layer, source.fu.bn)
        self.widen = source.conv2
        self.dft = dft

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.narrow(x))
        spectrum = F.relu(self.spectral(self.dft(x).to(x.dtype)))
        out: Tensor = self.widen(x + self.dft.inverse(spectrum).to(x.dtype))
        return out


class FastFFCUnit(nn.Module):
    """FFCUnit with one reflection, two convolutions instead of three, and one norm over both parts."""

    def __init__(self, source: FFCUnit, norm: SlicedNorm, dft: SmallDFT) -> None:
        super().__init__()
        ffc = source.ffc
        self.local = source.local
        to_local = torch.cat([ffc.convl2l.weight, ffc.convg2l.weight], dim=1)
        self.to_local = nn.Parameter(to_local, requires_grad=False)
        self.to_global = nn.Parameter(ffc.convl2g.weight.detach(), requires_grad=False)
        self.spectral = FastSpectralTransform(ffc.convg2g, dft)
        self.norm = norm

    def forward(self, x: Tensor, styles: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        local = F.conv2d(padded, self.to_local)
        glob = F.conv2d(padded[:, : self.local], self.to_global) + self.spectral(x[:, self.local :])
        return F.leaky_relu(self.norm(torch.cat([local, glob], dim=1), styles), FOURIER_SLOPE)


def _fold_batch_norms(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, AudioConv):
            block = module.conv_block
            module.conv_block = nn.Sequential(fuse(block[0], block[1]))
        elif isinstance(module, Bottleneck):
            for index in (1, 2, 3):
                conv, norm = module.get_submodule(f"conv{index}"), module.get_submodule(f"bn{index}")
                setattr(module, f"conv{index}", fuse(conv, norm))
                setattr(module, f"bn{index}", nn.Identity())
            if isinstance(module.downsample, nn.Sequential):
                module.downsample = fuse(module.downsample[0], module.downsample[1])


def _lay_out(net: nn.Module, dtype: torch.dtype, exact: Sequence[nn.Module] = ()) -> None:
    """Cast to `dtype` all but the modules in `exact`, and lay weights out for channels-last convolutions."""
    kept = {id(part) for module in exact for part in module.modules()}
    for module in net.modules():
        if id(module) in kept:
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
    for parameter in net.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)


def accelerate_dnet(net: DNet, dtype: torch.dtype) -> DNet:
    """Rebuild a loaded D-Net in place. dtype: float32, bfloat16 or float16."""
    sites: dict[str, Site] = {}
    for name, module in net.named_modules():
        if isinstance(module, AdaIN):
            sites[name] = Site([module])
    bank = StyleBank(list(sites.values()), dtype)
    for name, site in sites.items():
        _replace(net, name, SlicedNorm(site.channels, bank.offsets[site]))
    _lay_out(net, dtype, [net.mapping_net, net.warpping_net.flow_out])
    net.bank = bank
    net.compute_dtype = dtype
    return net


def accelerate_lnet(net: LNet, dtype: torch.dtype) -> LNet:
    """Rebuild a loaded L-Net in place, for faces of 96x96 only. dtype: float32, bfloat16 or float16."""
    _fold_batch_norms(net)
    units: dict[str, tuple[FFCUnit, Site, SmallDFT]] = {}
    for level, _, _ in Decoder.LEVELS:
        dft = SmallDFT(FACE >> (level + 1))
        for name, module in net.named_modules():
            if isinstance(module, FFCUnit) and name.startswith(f"decoder.res{level}."):
                units[name] = (module, Site([module.bn_l, module.bn_g]), dft)
    # bfloat16 has three bits fewer than float16. On a real face the encoder (a sixth of the work) would cost
    # it 2.5 dB and the blocks at 12x12 (half of it) 10 dB, so both are left alone.
    coarse = dtype is torch.bfloat16
    bank = StyleBank([site for _, site, _ in units.values()], torch.float32 if coarse else dtype)
    for name, (unit, site, dft) in units.items():
        _replace(net, name, FastFFCUnit(unit, SlicedNorm(site.channels, bank.offsets[site]), dft))
    exact: list[nn.Module] = [net.audio_encoder, *(dft for _, _, dft in units.values())]
    if coarse:
        exact += [net.encoder, net.decoder.get_submodule("res2")]
    _lay_out(net, dtype, exact)
    net.encoder_dtype = net.deep_dtype = torch.float32 if coarse else dtype
    net.bank = bank
    net.compute_dtype = dtype
    return net


def accelerate_enet(net: ENet, dtype: torch.dtype) -> ENet:
    """Cast a loaded E-Net in place. dtype: float32, bfloat16 or float16."""
    modulations = [module.modulation for module in net.modules() if isinstance(module, ModulatedConv)]
    _lay_out(net, dtype, [net.final_linear, *modulations])
    net.compute_dtype = dtype
    return net


def accelerate_coefficient_net(net: CoefficientNet, dtype: torch.dtype) -> CoefficientNet:
    """Fold a loaded regressor's batch norms and cast it, in place. dtype: float32, bfloat16 or float16."""
    _fold_batch_norms(net)
    net.backbone.conv1 = fuse(net.backbone.conv1, net.backbone.bn1)
    _replace(net, "backbone.bn1", nn.Identity())
    _lay_out(net, dtype, [net.final_layers])
    net.compute_dtype = dtype
    return net


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, module)
