"""L-Net: the lower half of a face redrawn to speak a mel window, at 96x96.

Facts checked against the official commit d32e8e5. Colours are BGR in 0..1 throughout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retalk_models.videoretalking.fourier import FFCResidual
from retalk_models.videoretalking.layers import ConvBlock, FinalConv, attach

VOICE = 512
"""Length of the voice descriptor that conditions the decoder."""


class CrossAttention(nn.Module):
    """Queries and keys come from the masked branch; only the values come from the reference branch."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(width, inner, bias=False)
        self.to_v = nn.Linear(width, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        query, key, value = (
            projected.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projected in (self.to_q(x), self.to_k(x), self.to_v(y))
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return out


class NormedAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.normx = nn.LayerNorm(width)
        self.normy = nn.LayerNorm(width)
        self.fn = CrossAttention(width, heads=4, head_width=64)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.fn(self.normx(x), self.normy(y))
        return x + out


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        # The dropout holds place 2, which the official keys count; in evaluation it does nothing.
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Dropout(0.0), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class NormedFeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = FeedForward(width, hidden=256)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fn(self.norm(x))
        return x + out


class CrossTransformer(nn.Module):
    """(B, C, H, W) masked and reference features -> the masked ones, informed by the reference."""

    def __init__(self, width: int = 512, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([NormedAttention(width), NormedFeedForward(width)]) for _ in range(depth)
        )

    def forward(self, masked: Tensor, reference: Tensor) -> Tensor:

        x, y = masked.flatten(2).transpose(1, 2), reference.flatten(2).transpose(1, 2)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            attention, feed_forward = layer
            x = feed_forward(attention(x, y))
        return x.transpose(1, 2).reshape(masked.shape)


class VisualEncoder(nn.Module):
    """Two stems, one for the masked face and one for the reference; they meet only at 12x12."""

    def __init__(self) -> None:
        super().__init__()
        self.first_inp = ConvBlock(3, 64, 7, spectral=True)
        self.first_ref = ConvBlock(3, 64, 7, spectral=True)
        for index, (inputs, outputs) in enumerate(((64, 128), (128, 256), (256, 512))):
            attach(
                self,
                {
                    f"ref_down{index}": ConvBlock(inputs, outputs, spectral=True, down=True),
                    f"inp_down{index}": ConvBlock(inputs, outputs, spectral=True, down=True),
                },
            )
        self.ca2 = CrossTransformer()

    def reference(self, image: Tensor) -> Tensor:
        x: Tensor = self.first_ref(image)
        for index in range(3):
            x = self.get_submodule(f"ref_down{index}")(x)
        return x

    def forward(self, masked: Tensor, reference: Tensor) -> list[Tensor]:
        levels = [self.first_inp(masked)]
        for index in range(3):
            levels.append(self.get_submodule(f"inp_down{index}")(levels[-1]))
        levels[3] = torch.cat([self.ca2(levels[3], reference), reference], dim=1)
        return levels


class AudioConv(nn.Module):
    """Convolution, batch norm, the input added where `residual`, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int | tuple[int, int] = 1,
        padding: int = 1,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.BatchNorm2d(outputs)
        )
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_block(x)
        return F.relu(out + x if self.residual else out)


def audio_encoder() -> nn.Sequential:
    """(B, 1, 80, 16) mel window, low frequencies first -> (B, 512, 1, 1). Wav2Lip's layout."""

    def same(channels: int, count: int) -> list[nn.Module]:
        return [AudioConv(channels, channels, residual=True) for _ in range(count)]

    return nn.Sequential(
        AudioConv(1, 32),
        *same(32, 2),
        AudioConv(32, 64, stride=(3, 1)),
        *same(64, 2),
        AudioConv(64, 128, stride=3),
        *same(128, 2),
        AudioConv(128, 256, stride=(3, 2)),
        *same(256, 1),
        AudioConv(256, VOICE, padding=0),
        AudioConv(VOICE, VOICE, kernel=1, padding=0),
    )


class Decoder(nn.Module):
    LEVELS = ((2, 1024, 256), (1, 256, 128), (0, 128, 64))
    BLOCKS = 9

    def __init__(self) -> None:
        super().__init__()
        for index, inputs, outputs in self.LEVELS:
            residuals = nn.Module()
            attach(residuals, {f"res{block}": FFCResidual(inputs, VOICE) for block in range(self.BLOCKS)})
            self.add_module(f"up{index}", ConvBlock(inputs, outputs, spectral=True, up=True))
            self.add_module(f"res{index}", residuals)
            self.add_module(f"jump{index}", ConvBlock(outputs, outputs, spectral=True))
        self.final = FinalConv(64, spectral=True)

    def speak(self, x: Tensor, z: Tensor, level: int) -> Tensor:
        """The nine Fourier blocks of one level."""
        for block in range(self.BLOCKS):
            x = self.get_submodule(f"res{level}.res{block}")(x, z)
        return x

    def forward(self, levels: list[Tensor], z: Tensor) -> Tensor:
        x = levels[3]
        for index, _, _ in self.LEVELS:
            # A level may be more exact than what follows it.
            x = self.speak(x, z, index).to(levels[index].dtype)
            x = self.get_submodule(f"up{index}")(x)
            x = x + self.get_submodule(f"jump{index}")(levels[index])
        return torch.sigmoid(self.final(x))


class LNet(nn.Module):
    """Lip-sync at 96x96. The steps are apart so that what depends on the reference only can be cached."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = VisualEncoder()
        self.decoder = Decoder()
        self.audio_encoder = audio_encoder()
        self.bank: nn.Module | None = None
        self.compute_dtype = torch.float32
        self.encoder_dtype = torch.float32
        self.deep_dtype = torch.float32

    def hear(self, mel: Tensor) -> Tensor:
        """(B, 1, 80, 16) float32 mel, -4..4 -> (B, 512) float32 voice descriptor."""
        out: Tensor = self.audio_encoder(mel.float())
        return out.flatten(1)

    def look(self, reference: Tensor) -> Tensor:
        """(B, 3, 96, 96) BGR reference face, 0..1 -> (B, 512, 12, 12) features, in encoder_dtype."""
        return self.encoder.reference(reference.to(self.encoder_dtype))

    def draw(self, voice: Tensor, masked: Tensor, features: Tensor) -> Tensor:
        """A face that speaks: (B, 3, 96, 96) float32 BGR, 0..1.

        voice: from `hear`. masked: (B, 3, 96, 96) BGR, 0..1, its lower half black. features: from `look`.
        """
        levels: list[Tensor] = self.encoder(masked.to(self.encoder_dtype), features)
        if self.bank is not None:
            voice = self.bank(voice)
        shallow = [level.to(self.compute_dtype) for level in levels[:3]]
        out: Tensor = self.decoder([*shallow, levels[3].to(self.deep_dtype)], voice)
        return out.float()

    def forward(self, mel: Tensor, faces: Tensor) -> Tensor:
        """mel: (B, 1, 80, 16). faces: (B, 6, 96, 96), masked face then reference. -> (B, 3, 96, 96)."""
        return self.draw(self.hear(mel), faces[:, :3], self.look(faces[:, 3:]))
