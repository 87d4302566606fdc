"""The streaming net: equals torch, chunks equal the whole, rests in silence, shuts on closures."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import retalk_models
from retalk_models.hearing import FRAMES, WIDTH, HearingStream
from retalk_models.picture import F32
from retalk_models.speech import LevelTracker, MelStream, features
from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.net import (
    HISTORY_STEPS,
    LOOK_AHEADS_MS,
    STEP,
    WEIGHTS_FILE,
    ExpressionStream,
    SpeechToExpression,
    WeightsError,
    delay_of,
    join,
    step_position,
)
from retalk_models.talkin.recurrent import RecurrentNet

SHIPPED = SpeechToExpression.load()
DELAY = delay_of(LOOK_AHEADS_MS[0])


def _sound(seconds: float, seed: int) -> F32:
    """Syllable-like bursts of a buzzing voice."""
    rng = np.random.default_rng(seed)
    at = np.arange(round(seconds * 16000)) / 16000
    buzz = sum(np.sin(2 * np.pi * 120 * k * at) / k for k in range(1, 30))
    swell = np.clip(np.sin(2 * np.pi * 2.3 * at), 0, 1)
    return np.asarray(0.15 * buzz * swell + rng.normal(0, 0.002, len(at)), np.float32)


def _tensors(size: int = 10, hidden: int = 24) -> tuple[RecurrentNet, dict[str, F32]]:
    torch.manual_seed(0)
    net = RecurrentNet(size, hidden, 0.0).eval()
    torch.nn.init.normal_(net.gist_weight, std=0.03)
    tensors = {k: v.numpy().copy() for k, v in net.state_dict().items()}
    tensors["mean"] = np.linspace(0.1, 0.2, size).astype(np.float32)
    tensors["spread"] = np.linspace(1, 2, size).astype(np.float32)
    rng = np.random.default_rng(0)
    tensors["linear_weight"] = rng.normal(0, 0.003, (2 * size, FRAMES * WIDTH)).astype(np.float32)
    tensors["linear_bias"] = rng.normal(0, 1, 2 * size).astype(np.float32)
    tensors["linear_share"] = np.array([0.25], np.float32)
    # Gates far out of reach: always speaking, never shut.
    tensors["gate_points"] = np.array([2.0, 3.0, -2.0, -1.0], np.float32)
    tensors["snap"] = np.array([0.4, 0.3], np.float32)
    tensors["delay"] = np.array([DELAY], np.float32)
    return net, tensors


def _answers(stream: ExpressionStream, sound: F32, sizes: list[int]) -> list[F32]:
    """Push in pieces and ask, as an engine does, as soon as the look-ahead is there."""
    asked, at, out = 0, 0, []
    for size in [*sizes, len(sound)]:
        stream.push(sound[at : at + size])
        at = min(len(sound), at + size)
        while asked + SHIPPED.look_ahead <= at:
            said = stream.at(asked)
            out.append(np.append(said.coefficients, [said.closure, said.speaking]))
            asked += 533
    return out


def test_equals_torch() -> None:
    net, tensors = _tensors()
    sound = _sound(1.5, 1)
    frames = HearingStream().push(sound)[None]
    heard = features(MelStream().push(sound), LevelTracker())[None, : 4 * frames.shape[1]]
    with torch.no_grad():
        value, gates, _ = net(torch.from_numpy(heard), torch.from_numpy(frames))
    stream = SpeechToExpression(tensors).open_stream()
    stream.push(sound)
    usual = None
    for index in range(60):
        said = stream.at(step_position(0, index, DELAY))
        newest = frames[0, index // 2].reshape(-1)
        linear = (tensors["linear_weight"] @ newest + tensors["linear_bias"]).reshape(2, -1)[index % 2]
        expected = 0.75 * value[0, index].numpy() + 0.25 * linear
        expected = expected * tensors["spread"] + tensors["mean"]
        usual = expected[0] if usual is None else usual + 0.3 * (expected[0] - usual)
        expected[0] = max(0.0, expected[0] + 0.4 * (expected[0] - usual))
        assert np.abs(said.coefficients - expected).max() < 1e-4
        assert said.closure == pytest.approx(float(torch.sigmoid(gates[0, index, 0])), abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 4000), max_size=12))
def test_any_chunking_gives_the_same_bits(sizes: list[int]) -> None:
    sound = _sound(1.0, 2)
    whole = _answers(SHIPPED.open_stream(), sound, [])
    split = _answers(SHIPPED.open_stream(), sound, sizes)
    assert len(whole) == len(split) > 20
    assert all(np.array_equal(a, b) for a, b in zip(whole, split, strict=True))


@pytest.mark.parametrize("milliseconds", LOOK_AHEADS_MS)
def test_look_ahead_is_enough_and_is_needed(milliseconds: int) -> None:
    net = SpeechToExpression.load(look_ahead_ms=milliseconds)
    assert net.look_ahead == 16 * milliseconds
    sound = _sound(2.0, 3)
    other = sound.copy()
    asked = 16000
    other[asked + net.look_ahead :] = 0.3
    first, second = net.open_stream(), net.open_stream()
    first.push(sound)
    second.push(other)
    assert np.array_equal(first.at(asked).coefficients, second.at(asked).coefficients)
    short = net.open_stream()
    short.push(sound[: asked + net.look_ahead])
    assert np.array_equal(first.at(asked).coefficients, short.at(asked).coefficients)
    assert short.ready_until >= asked
    changed = sound.copy()
    changed[asked + delay_of(milliseconds) // 2 :] *= np.float32(-0.2)
    third = net.open_stream()
    third.push(changed)
    assert not np.array_equal(first.at(asked).coefficients, third.at(asked).coefficients)


def test_between_steps_it_interpolates() -> None:
    _, tensors = _tensors()
    tensors["mean"][0] = 10  # An opening that never comes to its end at shut.
    stream = SpeechToExpression(tensors).open_stream()
    stream.push(_sound(1.0, 4))
    left, right = step_position(0, 20, DELAY), step_position(0, 21, DELAY)
    middle = stream.at((left + right) // 2).coefficients
    mean = (stream.at(left).coefficients + stream.at(right).coefficients) / 2
    assert right - left == STEP
    assert np.abs(middle - mean).max() < 1e-5


def test_restart_places_the_voice_anew() -> None:
    sound = _sound(1.0, 5)
    stream = SHIPPED.open_stream()
    stream.push(sound)
    stream.restart(1_000_000)
    assert stream.end == 1_000_000
    stream.push(sound)
    fresh = SHIPPED.open_stream()
    fresh.push(sound)
    assert np.array_equal(stream.at(1_008_000).coefficients, fresh.at(8_000).coefficients)


def test_history_is_bounded() -> None:
    stream = SHIPPED.open_stream()
    for seed in range(12):
        stream.push(_sound(1.0, seed))
    assert len(stream._positions) == HISTORY_STEPS
    assert len(stream._values) == HISTORY_STEPS


def test_samples_that_are_no_numbers_do_not_stay() -> None:
    sound = _sound(2.0, 6)
    broken = sound.copy()
    broken[3200:3210] = np.nan
    broken[3300] = np.inf
    stream = SHIPPED.open_stream()
    stream.push(broken)
    assert np.isfinite(stream.at(20_000).coefficients).all()


def test_before_any_sound_the_mouth_rests() -> None:
    said = SHIPPED.open_stream(500).at(500)
    assert (said.coefficients == 0).all()
    assert (said.closure, said.speaking) == (0.0, 0.0)


@pytest.mark.parametrize("floor", [0.0, 0.0005])
def test_silence_comes_to_rest_within_900_ms(floor: float) -> None:
    noise = np.random.default_rng(1).normal(0, 1, 3 * 16000) * floor
    sound = noise.astype(np.float32)
    sound[16000:32000] += _sound(1.0, 6)
    last = 16000 + round(16000 * (0.5 / 2.3 + 2 / 2.3 - 1 / 2.3))
    stream = SHIPPED.open_stream()
    stream.push(sound)
    assert np.abs(stream.at(8000).coefficients).max() < 0.02
    for position in range(last + 900 * 16, 46000, 160):
        said = stream.at(position)
        assert said.coefficients[0] < 0.015
        assert said.speaking < 0.5


def test_a_sure_closure_shuts_the_mouth_and_silence_rests_it() -> None:
    _, tensors = _tensors()
    tensors["gate_points"] = np.array([0.4, 0.8, 0.2, 0.6], np.float32)
    tensors["head.bias"][:] = 5
    tensors["gates.weight"][:] = 0
    sound = _sound(0.5, 7)

    def at_half(closure: float, speaking: float) -> F32:
        tensors["gates.bias"][:] = (closure, speaking)
        stream = SpeechToExpression(tensors).open_stream()
        stream.push(sound)
        return stream.at(4000).coefficients

    assert at_half(-9, 9)[0] > 1
    assert at_half(9, 9)[0] == 0
    assert at_half(9, 9)[3] != 0
    assert (at_half(-9, -9) == 0).all()


def test_opening_is_never_negative() -> None:
    _, tensors = _tensors()
    tensors["head.bias"][:] = -50
    stream = SpeechToExpression(tensors).open_stream()
    stream.push(_sound(0.5, 8))
    assert stream.at(4000).coefficients[0] == 0


def test_shipped_weights_fit_the_basis_and_are_small() -> None:
    bundled = Path(retalk_models.__file__).parent / "weights" / WEIGHTS_FILE
    assert bundled.stat().st_size < 5_000_000
    assert SHIPPED.size == ExpressionBasis.load().size
    assert len(SHIPPED.digest) == 64


def test_a_chunk_costs_little() -> None:
    sound = _sound(4.0, 9)
    stream = SHIPPED.open_stream()
    spent = []
    for at in range(0, len(sound), 640):
        began = time.thread_time()
        stream.push(sound[at : at + 640])
        spent.append(time.thread_time() - began)
    assert np.median(spent) < 0.02


def test_bad_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"missing\.safetensors: cannot be read"):
        SpeechToExpression.load(tmp_path / "missing.safetensors")
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not weights at all")
    with pytest.raises(WeightsError, match=r"junk\.safetensors: not a safetensors file"):
        SpeechToExpression.load(junk)
    other = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, str(other))
    with pytest.raises(WeightsError, match="not weights of the expression net"):
        SpeechToExpression.load(other)


def test_weights_that_heard_otherwise_are_named() -> None:
    """Bug: nets of an encoder with other layers loaded, and the first run of a voice raised."""
    _, tensors = _tensors()
    for name, width in (("gist_weight", WIDTH), ("linear_weight", FRAMES * WIDTH)):
        rows = len(tensors[name])
        for shape in ((rows, width // 3), (rows * width,), ()):
            other = tensors | {name: np.zeros(shape, np.float32)}
            with pytest.raises(WeightsError, match=rf"mine: {name} has the shape .* takes \(n, {width}\); "):
                SpeechToExpression(other, "mine")


def test_joined_nets_speak_their_average() -> None:
    _, one = _tensors()
    other = {name: value.copy() for name, value in one.items()}
    other["head.bias"] = other["head.bias"] + 1
    joined = SpeechToExpression(join([one, other])).open_stream()
    alone = SpeechToExpression(one).open_stream()
    sound = _sound(1.0, 3)
    for stream in (joined, alone):
        stream.push(sound)
    both, single = joined.at(8000).coefficients, alone.at(8000).coefficients
    np.testing.assert_allclose(both[1:], single[1:] + 0.75 * one["spread"][1:] / 2, rtol=1e-4)
