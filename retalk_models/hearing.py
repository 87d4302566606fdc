"""What is said in a voice, whoever says it: the first layers of a speech recogniser's encoder, streaming.

The weights are those that the package `moonshine-voice` carries (Moonshine Tiny, English, MIT licence, by
Useful Sensors; Jeffries et al., arXiv 2410.15608), learnt from some 200 000 hours of speech. A net that hears
through them need not learn from five minutes of lips what one sound has in common in all mouths.
Only the convolutions and the first LAYERS layers are used: beyond them features turn to words, and tell lips
less (retalk_models/weights/README.md has the comparison).

The encoder attends to a whole recording. Here each run of 40 ms computes its last frames anew, which
see one another, and keeps what the layers made of the frames before.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from math import sqrt
from pathlib import Path
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from retalk_models.ort_file import OrtFile, OrtFileError
from retalk_models.picture import F32

RUN = 640
"""Samples between answers: 40 ms at 16 kHz."""

FRAMES = 6
"""Frames of 24 ms in an answer, the newest last; with more, nets fit the clips that they learnt from
and not their like."""

LAYERS = 3
_WIDTH = 288

WIDTH = LAYERS * _WIDTH
"""Values that a frame has: what each layer gives, in turn. Lower ones know less of words, but more of
when they are said."""

_AGAIN = 8
"""Newest frames that are computed anew for an answer, because they now see later ones."""

_KEPT = 60
"""Frames that a frame attends to at most, itself and later ones included: 1.44 s."""

_HEADS, _SIZE, _TURNED = 8, 36, 32
_KERNELS, _STRIDES = (127, 7, 3), (64, 3, 2)
_NEED = _STRIDES[1] * _STRIDES[2]
_FIRST_NEED = _KERNELS[1] + (_KERNELS[2] - 1) * _STRIDES[1]
"""Answers of the first convolution between frames, and under one."""

_MEMORY = 50.0
"""Runs that the voice's running power goes back: 2 s."""

_SPEECH_RANGE = 10**-2.5
_PEAK_FALL, _PEAK_FALL_IN_PAUSES = 10 ** (-0.2 * 0.04), 10 ** (-0.01 * 0.04)
_SUSTAINED = 4
"""Runs that something must be as loud for to be a voice: a knock at the microphone is shorter."""

_LEAST_POWER = 1e-8
_POWER = 1e-2
"""What the first convolution gives on average for speech as loud as usual: a voice before it is heard."""

FORM = (
    f"each of {LAYERS} layers, {FRAMES} of {_AGAIN} frames anew, {_KEPT} kept, loudness of {_MEMORY} runs, 4"
)
"""What else than the encoder decides what is heard; the last number changes with the code."""

REMEDY = "pip install --force-reinstall --no-deps moonshine-voice==0.1.0"

_KNOWN = "94e90a4654fc45cdfedb77c4c08e1739f48862998e58fada384b25118134f221"
"""SHA-256 of the file that the nets learnt with."""


class SpeechEncoderError(RuntimeError):
    """The encoder is missing or of another kind; the message says what would help."""


def _file() -> Path:
    # Found, not imported: importing would load a recogniser that nobody uses.
    package = find_spec("moonshine_voice")
    for place in (package.submodule_search_locations or ()) if package is not None else ():
        path = Path(place) / "assets" / "tiny-en" / "encoder_model.ort"
        if path.is_file():
            return path
    raise SpeechEncoderError(
        f"the package moonshine-voice, with whose encoder talkin hears, is not installed whole; {REMEDY}"
    )


class _Product:
    """(n, in) values by (out, in) weights, plus (out,) bias, with eight bits for each factor.

    It takes less than half the time of single precision, and the weights have no more in the file. Values
    keep all eight although sums of two products may then overflow on processors without VNNI: what is heard
    correlates to .996 with single precision, with seven bits to .990 (AMD EPYC, AVX2).
    """

    def __init__(self, weights: F32, bias: Tensor | None = None) -> None:
        self.weights, self.bias = torch.from_numpy(np.ascontiguousarray(weights)), bias
        scales = self.weights.abs().amax(1).double() / 127
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        with catch_warnings():
            # It warns that a later torch will have these elsewhere; constraints.txt pins one that has them.
            simplefilter("ignore", UserWarning)
            rounded = torch.quantize_per_channel(self.weights, scales, zeros, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(rounded, bias)

    def __call__(self, values: Tensor) -> Tensor:
        out: Tensor = torch.ops.quantized.linear_dynamic(values.contiguous(), self._packed, False)
        return out


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One layer; the queries' scale is in the weights of attention, which gives queries, keys and values."""

    before: Tensor
    attention: _Product
    joined: _Product
    between: Tensor
    wide: _Product
    narrow: _Product


@dataclass(frozen=True, slots=True, eq=False)
class SpeechEncoder:
    """The loaded weights, shared by all streams.

    waves: (127, 288) kernel of the first convolution; gain, bias: (288,) of the norm after it. middle,
    frames: the other two, over (kernel * in). turns: (16,) radians a frame. digest: SHA-256 of the file.
    """

    waves: Tensor
    gain: Tensor
    bias: Tensor
    middle: _Product
    frames: _Product
    turns: Tensor
    layers: tuple[_Layer, ...]
    digest: str


def _unpack(file: OrtFile, digest: str) -> SpeechEncoder:
    def tensor(name: str) -> F32:
        return np.asarray(file.tensors[name], np.float32)

    def constant(node: str) -> F32:
        """The constant that a node reads, flat."""
        return tensor(next(one for one in file.inputs[node] if one in file.tensors)).reshape(-1)

    def matrix(node: str) -> F32:
        """(in, out), from 8 bits a weight."""
        stem = next(
            one.removesuffix("_quantized")
            for name, inputs in file.inputs.items()
            if name.startswith(node)
            for one in inputs
            if one.endswith("_quantized") and one in file.tensors
        )
        weights, zero, scale = (tensor(f"{stem}_{part}") for part in ("quantized", "zero_point", "scale"))
        return (weights - zero) * scale

    def kernel(index: int) -> F32:
        """(out, kernel * in)."""
        weights = tensor(f"conv{index}.weight_add_tensor")
        return weights.transpose(0, 2, 1).reshape(len(weights), -1)

    def vector(name: str) -> Tensor:
        return torch.from_numpy(tensor(name).reshape(-1).copy())

    def layer(index: int) -> _Layer:
        place, name = f"/layers.{index}", f"layers.{index}"
        query, key, value, joined = (
            matrix(f"{place}/self_attn/{one}_proj/MatMul") for one in ("q", "k", "v", "o")
        )
        attention = np.concatenate([query / np.float32(sqrt(_SIZE)), key, value], 1)
        return _Layer(
            vector(f"{name}.input_layernorm.weight"),
            _Product(attention.T),
            _Product(joined.T),
            vector(f"{name}.post_attention_layernorm.weight"),
            _Product(matrix(f"{place}/mlp/fc1/MatMul").T, vector(f"{name}.mlp.fc1.bias")),
            _Product(matrix(f"{place}/mlp/fc2/MatMul").T, vector(f"{name}.mlp.fc2.bias")),
        )

    return SpeechEncoder(
        torch.from_numpy(kernel(1).T.copy()),
        torch.from_numpy(constant("/groupnorm/Mul").copy()),
        torch.from_numpy(constant("/groupnorm/Add").copy()),
        _Product(kernel(2), vector("conv2.bias")),
        _Product(kernel(3), vector("conv3.bias")),
        torch.from_numpy(constant("/rotary_emb/Expand").copy()),
        tuple(layer(index) for index in range(LAYERS)),
        digest,
    )


@cache
def speech_encoder() -> SpeechEncoder:
    """The installed encoder. Raises SpeechEncoderError where there is none that can be read."""
    path = _file()
    try:
        digest = sha256(path.read_bytes()).hexdigest()
        if digest != _KNOWN:
            raise SpeechEncoderError(
                f"the speech encoder of moonshine-voice is not the one that the nets learnt with; {REMEDY}"
            )
        return _unpack(OrtFile.read(path), digest)
    except (OSError, OrtFileError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SpeechEncoderError(f"moonshine-voice's encoder cannot be read ({reason}); {REMEDY}") from None


class _Loudness:
    """The running power of a voice's louder runs: loudness drops out, and silence is no voice."""

    def __init__(self) -> None:
        self.power, self._runs, self._peak = _POWER, 0.0, 0.0
        self._recent = deque([0.0] * _SUSTAINED, _SUSTAINED)

    def push(self, power: float) -> None:
        self._recent.append(power)
        sustained = min(self._recent)
        # A voice that begins after silence or noise is a new one: what they left is not its power.
        if self._peak < sustained * _SPEECH_RANGE:
            self._runs = 0.0
        loud = power > self._peak * _SPEECH_RANGE
        self._peak = max(self._peak * (_PEAK_FALL if loud else _PEAK_FALL_IN_PAUSES), sustained)
        knock = power * _SPEECH_RANGE > self._peak
        if loud and not knock and power > _LEAST_POWER:
            self._runs = min(self._runs + 1, _MEMORY)
            self.power += (power - self.power) / self._runs


class HearingStream:
    """One voice being heard. Bounded; used by one thread at a time. The same in any chunks."""

    def __init__(self) -> None:
        self._encoder = speech_encoder()
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next sample is sample 0."""
        self._loudness = _Loudness()
        self._waiting = np.zeros(0, np.float32)
        self._sound, self._waves = torch.zeros(0), torch.zeros(0, _WIDTH)
        self._recent = torch.zeros(0, _WIDTH)
        self._first = 0
        self._known = [torch.zeros(0, 3, _HEADS, _SIZE)] * LAYERS
        self._answer = np.zeros((FRAMES, WIDTH), np.float32)

    def push(self, pcm: F32) -> F32:
        """(n,) finite samples in -1..1 at 16 kHz, following the last, to (runs, FRAMES, WIDTH).

        One row for every RUN samples since the beginning. Frames before the first are zero.
        """
        self._waiting = np.concatenate([self._waiting, np.asarray(pcm, np.float32)])
        answers = []
        while len(self._waiting) >= RUN:
            run, self._waiting = self._waiting[:RUN], self._waiting[RUN:]
            with torch.inference_mode():
                answers.append(self._run(torch.tensor(run)))
        self._waiting = self._waiting.copy()
        return np.stack(answers) if answers else np.zeros((0, FRAMES, WIDTH), np.float32)

    def _run(self, sound: Tensor) -> F32:
        fresh = self._frames(sound)
        if not len(fresh):
            return self._answer
        gone = max(0, len(self._recent) + len(fresh) - _AGAIN)
        self._recent = torch.cat([self._recent, fresh])[gone:]
        self._first += gone
        heard = self._attend(self._recent, len(self._recent) - len(fresh))
        self._answer = self._answer.copy()
        self._answer[-len(heard) :] = heard[-FRAMES:].numpy()
        return self._answer

    def _frames(self, sound: Tensor) -> Tensor:
        """(n, _WIDTH) what the convolutions make of the next samples."""
        ear = self._encoder
        self._sound = torch.cat([self._sound, sound])
        waves = torch.tanh(self._sound.unfold(0, _KERNELS[0], _STRIDES[0]) @ ear.waves)
        self._sound = self._sound[len(waves) * _STRIDES[0] :].clone()
        self._loudness.push(float((waves * waves).mean()))
        waves = waves * (self._loudness.power + 1e-5) ** -0.5 * ear.gain + ear.bias
        self._waves = torch.cat([self._waves, waves])
        count = (len(self._waves) - _FIRST_NEED) // _NEED + 1
        if count <= 0:
            return torch.zeros(0, _WIDTH)
        used = self._waves[: _FIRST_NEED + (count - 1) * _NEED].reshape(-1)
        middle = used.unfold(0, _KERNELS[1] * _WIDTH, _STRIDES[1] * _WIDTH)
        middle = functional.gelu(ear.middle(middle))
        wide = middle.shape[1]
        self._waves = self._waves[count * _NEED :].clone()
        frames = middle.reshape(-1).unfold(0, _KERNELS[2] * wide, _STRIDES[2] * wide)
        return functional.gelu(ear.frames(frames))

    def _attend(self, flow: Tensor, again: int) -> Tensor:
        """(n, WIDTH) what each layer makes of the newest frames; the first `again` of them for another time.

        flow: (n, _WIDTH).
        """
        # In single precision a voice of some days would turn by anything.
        places = torch.arange(self._first, self._first + len(flow), dtype=torch.float64)
        angles = (places[:, None] * self._encoder.turns.double()).repeat_interleave(2, 1)[:, None]
        turn = (torch.cos(angles).float(), torch.sin(angles).float())
        made = []
        for index, layer in enumerate(self._encoder.layers):
            heads = layer.attention(functional.layer_norm(flow, (_WIDTH,), layer.before))
            heads = heads.view(-1, 3, _HEADS, _SIZE)
            heads[:, :2, :, :_TURNED] = _turned(heads[:, :2, :, :_TURNED], turn)
            # What earlier runs made of the frames that are computed anew is dropped.
            known = self._known[index][: len(self._known[index]) - again]
            known = self._known[index] = torch.cat([known, heads])[-_KEPT:]
            shares = torch.softmax(heads[:, 0].transpose(0, 1) @ known[:, 1].permute(1, 2, 0), -1)
            mixed = (shares @ known[:, 2].transpose(0, 1)).transpose(0, 1).reshape(-1, _WIDTH)
            flow = flow + layer.joined(mixed)
            inner = functional.layer_norm(flow, (_WIDTH,), layer.between)
            inner = functional.gelu(layer.wide(inner))
            flow = flow + layer.narrow(inner)
            made.append(flow)
        return torch.cat(made, 1)


def _turned(heads: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Pairs of values turned by angles that grow with the frame's place (rotary position embedding)."""
    cosine, sine = (one[:, None] for one in turn)
    other = torch.stack([-heads[..., 1::2], heads[..., ::2]], -1).flatten(-2)
    return heads * cosine + other * sine
