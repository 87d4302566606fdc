"""Speech to expression, streaming: log-mel and what is said through a small recurrent net, in numpy.

Output step j of a stream that starts at sample s is the expression at `step_position(s, j)`; it needs
the sound up to the net's delay beyond that. Steps are computed one by one in the same order whatever the
chunking, so any split of the same sound gives the same bits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import numpy as np
from safetensors.numpy import load

from retalk_models.easing import ease_between
from retalk_models.engine import VOICE_RATE
from retalk_models.hearing import FRAMES, RUN, WIDTH, HearingStream, speech_encoder
from retalk_models.picture import F32
from retalk_models.speech import HOP, LevelTracker, MelSettings, MelStream, features

WEIGHTS_FILE = "talkin_expression.safetensors"

STEP = 2 * HOP
"""Samples between output steps: 20 ms."""

LOOK_AHEADS_MS = (120, 80)
"""Sound beyond a position that nets were trained to hear before `at` can answer for it; the first is the
usual one."""

_FIRST_NEED = HOP + MelSettings().fft
"""Samples that the first step needs: two feature frames."""

_HEARD_FRAMES = 5
"""Feature frames that the nets see at once."""

STEPS_PER_RUN = RUN // STEP
"""Steps that take what is said from one run of the hearing."""

HISTORY_STEPS = 250
"""Steps kept for `at`: 5 s."""


def weights_file(look_ahead_ms: int) -> str:
    """The bundled weights of a look-ahead. Raises ValueError for one that there is none for."""
    if look_ahead_ms not in LOOK_AHEADS_MS:
        known = " or ".join(str(one) for one in sorted(LOOK_AHEADS_MS))
        raise ValueError(f"talkin hears {known} ms ahead, not {look_ahead_ms}")
    usual = look_ahead_ms == LOOK_AHEADS_MS[0]
    return WEIGHTS_FILE if usual else WEIGHTS_FILE.replace(".", f"_{look_ahead_ms}.")


def delay_of(look_ahead_ms: int) -> int:
    """Samples of sound beyond a step's own position that the step hears.

    A position between two steps needs the later one, hence a step less than the look-ahead.
    """
    return look_ahead_ms * VOICE_RATE // 1000 - STEP


def step_position(start: int, index: int, delay: int) -> int:
    """The sample position that output step `index` speaks of, in a stream that began at `start`.

    delay: see delay_of.
    """
    return start + index * STEP + _FIRST_NEED - delay


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """What the mouth does at one position of the voice.

    coefficients: (K,) float32 for ExpressionBasis, with closure and rest already applied: all zero is the
    closed, relaxed mouth, and coefficient 0 is the aperture in canonical units, never below 0.
    closure: 0..1, how surely the lips are shut by p, b or m (or shut while speaking).
    speaking: 0..1, how surely someone speaks.
    """

    coefficients: F32
    closure: float
    speaking: float


class WeightsError(ValueError):
    """A weights file that is missing, damaged or of another kind; the message names it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Nets:
    """The nets of the ensemble, m of them: each tensor is all of theirs along a first axis.

    Row-vector layouts: x @ matrix. Side by side each gives the bits that it gives alone, in fewer calls.
    """

    conv1: F32
    bias1: F32
    conv2: F32
    bias2: F32
    said: F32
    gru: tuple[tuple[F32, F32, F32, F32], ...]
    head: F32
    head_bias: F32
    gates: F32
    gates_bias: F32

    @property
    def hidden(self) -> tuple[int, int]:
        """(m, units) the shape of a layer's state."""
        return len(self.conv2), self.conv2.shape[2]


@dataclass(frozen=True, slots=True, eq=False)
class _Weights:
    """The nets, whose outputs are averaged, what turns that into coefficients, and their delay in samples.

    gist: (width, n) and gist_bias: principal components of a frame of what is said, the same for all.
    linear: (frames * width, steps * K) and linear_bias: what a run alone tells of its steps' coefficients,
    normalised. share: what it counts beside the nets. snap: by how much of its way from its own running mean
    the opening is carried on, and how much of each step that mean takes in: regression smooths what lips do,
    most of all what they do fastest, shutting for p, b and m. It brings slow motion up to 19 ms forward.
    """

    nets: _Nets
    gist: F32
    gist_bias: F32
    linear: F32
    linear_bias: F32
    share: float
    mean: F32
    spread: F32
    gate_points: F32
    snap: tuple[float, float]
    delay: int


_COMMON = (
    *("mean", "spread", "gate_points", "delay", "snap"),
    *("gist_weight", "gist_bias", "linear_weight", "linear_bias", "linear_share"),
)
"""What joined nets have in common."""

_REQUIRED = ("conv1.weight", "conv2.weight", "said.weight", "head.weight", "gates.weight")


def join(nets: Sequence[dict[str, F32]]) -> dict[str, F32]:
    """One set of tensors from several nets' that were trained on the same data: their outputs are averaged.

    What they have in common, as mean, spread and delay, is the first's.
    """
    joined = {name: nets[0][name] for name in _COMMON}
    for index, net in enumerate(nets):
        joined |= {f"net{index}.{name}": value for name, value in net.items() if name not in _COMMON}
    return joined


def _unpack(tensors: dict[str, F32], source: str) -> _Weights:
    count = len({name.split(".")[0] for name in tensors if name.startswith("net")})
    prefixes = [f"net{index}." for index in range(count)] or [""]
    required = [prefix + name for prefix in prefixes for name in _REQUIRED]
    missing = [name for name in (*required, *_COMMON) if name not in tensors]
    if missing:
        raise WeightsError(f"{source}: not weights of the expression net ({', '.join(missing)} missing)")
    for name, width in (("gist_weight", WIDTH), ("linear_weight", FRAMES * WIDTH)):
        shape = tensors[name].shape
        if len(shape) != 2 or shape[1] != width:
            raise WeightsError(
                f"{source}: {name} has the shape {shape}, what hearing gives takes (n, {width}); "
                "the weights are of another version of retalk and must be trained anew"
            )
    return _Weights(
        _stacked(tensors, prefixes),
        np.ascontiguousarray(tensors["gist_weight"].T, np.float32),
        tensors["gist_bias"],
        np.ascontiguousarray(tensors["linear_weight"].T, np.float32),
        tensors["linear_bias"],
        float(tensors["linear_share"][0]),
        tensors["mean"],
        tensors["spread"],
        tensors["gate_points"],
        (float(tensors["snap"][0]), float(tensors["snap"][1])),
        int(tensors["delay"][0]),
    )


def _stacked(tensors: dict[str, F32], prefixes: Sequence[str]) -> _Nets:
    def matrix(name: str) -> F32:
        # A torch convolution (out, in, kernel) as one matrix over a flattened (kernel, in) patch.
        weights = [tensors[prefix + name] for prefix in prefixes]
        flat = [one.transpose(0, 2, 1).reshape(len(one), -1) if one.ndim == 3 else one for one in weights]
        return np.stack([np.ascontiguousarray(one.T, np.float32) for one in flat])

    def bias(name: str) -> F32:
        return np.stack([tensors[prefix + name] for prefix in prefixes])

    layers = tuple(
        (
            matrix(f"recurrent.weight_ih_l{layer}"),
            bias(f"recurrent.bias_ih_l{layer}"),
            matrix(f"recurrent.weight_hh_l{layer}"),
            bias(f"recurrent.bias_hh_l{layer}"),
        )
        for layer in range(2)
    )
    return _Nets(
        matrix("conv1.weight"),
        bias("conv1.bias"),
        matrix("conv2.weight"),
        bias("conv2.bias"),
        matrix("said.weight"),
        layers,
        matrix("head.weight"),
        bias("head.bias"),
        matrix("gates.weight"),
        bias("gates.bias"),
    )


def _sigmoid(value: F32) -> F32:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * value)), np.float32)


class SpeechToExpression:
    """The loaded net; shared by any number of streams, immutable."""

    def __init__(self, tensors: dict[str, F32], source: str = "weights", digest: str = "") -> None:
        """tensors: as the training exports them.

        Raises WeightsError where some are missing or of another width, SpeechEncoderError without what it
        hears with.
        """
        speech_encoder()
        self._weights = _unpack(tensors, source)
        self.digest = digest

    @property
    def size(self) -> int:
        """K, the number of coefficients."""
        return len(self._weights.mean)

    @property
    def look_ahead(self) -> int:
        """Samples that must be pushed beyond a position before `at` can answer for it."""
        return self._weights.delay + STEP

    @classmethod
    def load(cls, path: Path | None = None, look_ahead_ms: int = LOOK_AHEADS_MS[0]) -> SpeechToExpression:
        """From a safetensors file; the bundled weights of a look-ahead where path is None.

        Raises WeightsError for a file that is missing, damaged or of another kind, ValueError for a
        look-ahead that there are no weights for.
        """
        source = str(path) if path is not None else weights_file(look_ahead_ms)
        try:
            if path is None:
                data = files("retalk_models").joinpath("weights", source).read_bytes()
            else:
                data = path.read_bytes()
            tensors = load(data)
        except OSError as error:
            raise WeightsError(f"{source}: cannot be read ({error.strerror})") from None
        except Exception as error:
            raise WeightsError(f"{source}: not a safetensors file ({error})") from None
        return cls(tensors, source, sha256(data).hexdigest())

    def open_stream(self, start: int = 0) -> ExpressionStream:
        """A stream whose first pushed sample has position `start`."""
        return ExpressionStream(self._weights, start)


class ExpressionStream:
    """One voice's state. Bounded: it keeps HISTORY_STEPS steps. Used by one thread at a time."""

    def __init__(self, weights: _Weights, start: int = 0) -> None:
        self._weights = weights
        self._mel = MelStream()
        self._hearing = HearingStream()
        self._level = LevelTracker()
        self.restart(start)

    def restart(self, position: int) -> None:
        """Forget everything; the next pushed sample has this position."""
        weights = self._weights
        self._mel.reset()
        self._hearing.reset()
        self._level.reset()
        self._start, self._end, self._steps = position, position, 0
        bands = weights.nets.conv1.shape[1] // _HEARD_FRAMES
        self._heard = np.zeros((_HEARD_FRAMES, bands), np.float32)
        # Of each run that steps are still to be computed of: what the nets and the linear member make of it.
        self._said: deque[tuple[F32, F32]] = deque()
        self._mind = _Mind(weights.nets)
        self._usual: float | None = None
        self._odd = False
        self._positions: deque[int] = deque(maxlen=HISTORY_STEPS)
        self._values: deque[tuple[F32, float, float]] = deque(maxlen=HISTORY_STEPS)

    @property
    def end(self) -> int:
        """Position after the last pushed sample."""
        return self._end

    @property
    def ready_until(self) -> int:
        """The last position that `at` answers from what it heard; beyond it the last step is held."""
        return self._positions[-1] if self._positions else self._start

    def push(self, pcm: F32) -> None:
        """(n,) float32 mono at 16 kHz in -1..1, following the last sample pushed."""
        self._end += len(pcm)
        weights = self._weights
        # A sample that is no number would stay in every state for good.
        sound = np.clip(np.nan_to_num(pcm), -1, 1)
        for frames in self._hearing.push(sound):
            gist = self._mind.understand(frames @ weights.gist + weights.gist_bias)
            linear = frames.reshape(-1) @ weights.linear + weights.linear_bias
            self._said.append((gist, linear.reshape(STEPS_PER_RUN, -1)))
        for row in features(self._mel.push(sound), self._level):
            self._frame(row)

    def _frame(self, row: F32) -> None:
        weights = self._weights
        self._heard = np.concatenate([self._heard[1:], row[None]])
        self._mind.hear(self._heard.reshape(-1))
        self._odd = not self._odd
        if self._odd:
            return
        later = self._steps % STEPS_PER_RUN
        gist, linear = self._said[0]
        said, gated = self._mind.say(gist[:, later])
        if later == STEPS_PER_RUN - 1:
            self._said.popleft()
        values = said.sum(0) / len(said)
        values = values + np.float32(weights.share) * (linear[later] - values)
        values = self._snapped(values * weights.spread + weights.mean)
        gates = gated.sum(0) / len(gated)
        self._positions.append(step_position(self._start, self._steps, weights.delay))
        self._values.append((values.astype(np.float32), float(gates[0]), float(gates[1])))
        self._steps += 1

    def _snapped(self, values: F32) -> F32:
        opening, (snap, rate) = float(values[0]), self._weights.snap
        self._usual = opening if self._usual is None else self._usual + rate * (opening - self._usual)
        values[0] += snap * (opening - self._usual)
        return values

    def at(self, position: int) -> Expression:
        """The expression at a sample position; interpolates between steps.

        Exact where `end >= position + look_ahead`; beyond that the last step is held, and before the
        history (or before any sound) the mouth rests or the oldest step is held.
        """
        if not self._positions:
            return Expression(np.zeros(len(self._weights.mean), np.float32), 0.0, 0.0)
        right = bisect_right(self._positions, position)
        if right == 0 or right == len(self._positions):
            values, closure, speaking = self._values[0 if right == 0 else -1]
        else:
            share = (position - self._positions[right - 1]) / STEP
            before, after = self._values[right - 1], self._values[right]
            values = before[0] + np.float32(share) * (after[0] - before[0])
            closure = before[1] + share * (after[1] - before[1])
            speaking = before[2] + share * (after[2] - before[2])
        return Expression(self._gate(values, closure, speaking), closure, speaking)

    def _gate(self, values: F32, closure: float, speaking: float) -> F32:
        shut_low, shut_high, speak_low, speak_high = (float(v) for v in self._weights.gate_points)
        out = values * np.float32(ease_between(speaking, speak_low, speak_high))
        out[0] = max(0.0, float(out[0])) * (1 - ease_between(closure, shut_low, shut_high))
        return np.asarray(out, np.float32)


class _Mind:
    """The nets' state in one stream."""

    def __init__(self, nets: _Nets) -> None:
        self._nets = nets
        count, units = nets.hidden
        self._inner = np.zeros((count, 4, nets.conv2.shape[1] // 4), np.float32)
        self._hidden = [np.zeros((count, units), np.float32) for _ in nets.gru]

    def hear(self, heard: F32) -> None:
        """The last five feature frames, flat."""
        inner = np.maximum(heard @ self._nets.conv1 + self._nets.bias1, 0)
        self._inner = np.concatenate([self._inner[:, 1:], inner[:, None]], axis=1)

    def understand(self, gist: F32) -> F32:
        """(frames, n) of what is said in a run to (m, steps, units), what each of its steps takes from it."""
        said = gist.reshape(-1) @ self._nets.said
        return np.asarray(said.reshape(len(said), STEPS_PER_RUN, -1), np.float32)

    def say(self, understood: F32) -> tuple[F32, F32]:
        """(m, K) normalised coefficients and (m, 2) closure and speaking, one step on.

        understood: (m, units) of this step.
        """
        nets = self._nets
        flow = _product(self._inner.reshape(len(self._inner), -1), nets.conv2) + nets.bias2
        flow = np.maximum(flow + understood, 0)
        for layer, (into, into_bias, back, back_bias) in enumerate(nets.gru):
            flow = self._hidden[layer] = _gru(flow, self._hidden[layer], into, into_bias, back, back_bias)
        gates = _sigmoid(_product(flow, nets.gates) + nets.gates_bias)
        return _product(flow, nets.head) + nets.head_bias, gates


def _product(x: F32, matrices: F32) -> F32:
    """(m, n) by (m, n, k) to (m, k): each row by its own matrix."""
    return np.asarray((x[:, None] @ matrices)[:, 0], np.float32)


def _gru(x: F32, hidden: F32, into: F32, into_bias: F32, back: F32, back_bias: F32) -> F32:
    """One step of m gated recurrent units, gates in torch's order: reset, update, new."""
    size = hidden.shape[1]
    left, right = _product(x, into) + into_bias, _product(hidden, back) + back_bias
    gates = _sigmoid(left[:, : 2 * size] + right[:, : 2 * size])
    new = np.tanh(left[:, 2 * size :] + gates[:, :size] * right[:, 2 * size :])
    return np.asarray(new + gates[:, size:] * (hidden - new), np.float32)
