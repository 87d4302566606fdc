"""The linear member: what it learns, that it streams as it was fitted, and that a file keeps it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from retalk_models.picture import F32
from retalk_models.speech import LevelTracker, MelStream, features
from retalk_models.talkin.batches import Bank
from retalk_models.talkin.linear import context, fit_linear
from retalk_models.talkin.net import LINEAR_SHARE, SpeechToExpression, step_position
from retalk_models.talkin.recurrent import RecurrentNet
from retalk_models.talkin.scores import correlation

SIZE = 10


def _sound(seed: int) -> F32:
    rng = np.random.default_rng(seed)
    at = np.arange(3 * 16000) / 16000
    swell = np.clip(np.sin(2 * np.pi * 2.3 * at + seed), 0, 1)
    buzz = sum(np.sin(2 * np.pi * 120 * k * at) / k for k in range(1, 30))
    return np.asarray(0.15 * buzz * swell + rng.normal(0, 0.002, len(at)), np.float32)


def _bank(seed: int) -> Bank:
    """A recording whose second value follows the level 100 ms before and whose others are noise."""
    power = MelStream().push(_sound(seed))
    power = power[: len(power) // 2 * 2]
    steps = len(power) // 2
    targets = np.random.default_rng(seed).normal(0, 0.1, (steps, SIZE + 3)).astype(np.float32)
    loud = np.log(power.mean(1) + 1e-9)
    targets[:, 1] = loud[np.clip(2 * np.arange(steps) + 1 - 10, 0, None)] / 4
    targets[:, -1] = 1
    return Bank(f"x{seed}", f"x{seed}", power, targets)


def _fitted() -> dict[str, F32]:
    return fit_linear(
        [_bank(seed) for seed in range(4)], np.zeros(SIZE, np.float32), np.ones(SIZE, np.float32)
    )


def test_it_learns_what_the_sound_tells() -> None:
    fitted, unseen = _fitted(), _bank(9)
    seen = context(features(unseen.power, LevelTracker()))
    said = seen @ fitted["linear.weight"].T + fitted["linear.bias"]
    assert correlation(said[:, 1], unseen.targets[:, 1]) > 0.9
    assert abs(correlation(said[:, 2], unseen.targets[:, 2])) < 0.5


def test_a_file_keeps_it_and_the_stream_speaks_it_bug_transposed_view_saved_scrambled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = RecurrentNet(SIZE, 24, 0.0).eval()
    for tensor in (net.head.weight, net.head.bias):
        torch.nn.init.zeros_(tensor)
    tensors = {k: v.numpy().copy() for k, v in net.state_dict().items()} | _fitted()
    tensors["mean"], tensors["spread"] = np.zeros(SIZE, np.float32), np.ones(SIZE, np.float32)
    # Gates far out of reach: always speaking, never shut.
    tensors["gate_points"] = np.array([2.0, 3.0, -2.0, -1.0], np.float32)
    save_file(tensors, str(tmp_path / "net.safetensors"))
    kept = load_file(str(tmp_path / "net.safetensors"))
    sound = _sound(7)
    stream = SpeechToExpression(kept).open_stream()
    stream.push(sound)
    heard = features(MelStream().push(sound), LevelTracker())
    expected = context(heard[: len(heard) // 2 * 2]) @ tensors["linear.weight"].T + tensors["linear.bias"]
    for index in (0, 5, 40, 100):
        said = stream.at(step_position(0, index)).coefficients
        assert np.abs(said[1:] - LINEAR_SHARE * expected[index, 1:]).max() < 1e-4
