"""The linear member of the expression ensemble: ridge regression from half a second of features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retalk_models.picture import F32
from retalk_models.speech import LevelTracker, features
from retalk_models.talkin.batches import Bank
from retalk_models.talkin.net import LINEAR_FRAMES, LINEAR_STRIDE

_PENALTY = 5000.0
"""Ridge penalty on the features' own scale; from 1000 to 20000 the held-out r stays within .015."""


def context(heard: F32) -> F32:
    """(frames, bands) features, frames even, to (frames / 2, n): what the linear member sees at each step."""
    padded = np.pad(heard, ((LINEAR_FRAMES - 1, 0), (0, 0)))
    steps = 2 * np.arange(len(heard) // 2) + 1
    rows = [padded[steps + offset] for offset in range(0, LINEAR_FRAMES, LINEAR_STRIDE)]
    return np.asarray(np.concatenate(rows, 1), np.float32)


def fit_linear(banks: Sequence[Bank], mean: F32, spread: F32) -> dict[str, F32]:
    """The member's tensors from clean recordings; targets as the nets have them, (value - mean) / spread.

    A clip counts by the root of its length, and by how its values move, not by where they lie.
    """
    size = len(mean)
    inputs, outputs, weights = [], [], []
    for bank in banks:
        valid = bank.targets[:, -1] > 0
        inputs.append(context(features(bank.power, LevelTracker()))[valid])
        wanted = (bank.targets[valid, :size] - mean) / spread
        outputs.append(wanted - wanted.mean(0))
        weights.append(np.full(int(valid.sum()), 1 / np.sqrt(max(1, valid.sum()))))
    x, y, weight = np.concatenate(inputs), np.concatenate(outputs), np.concatenate(weights)
    weight = weight / weight.mean()
    centre = np.average(x, axis=0, weights=weight)
    weighted = (x - centre) * weight[:, None]
    gram = weighted.T @ (x - centre) + _PENALTY * np.eye(x.shape[1])
    matrix = np.linalg.solve(gram, weighted.T @ y)
    return {
        # safetensors writes the buffer as it lies: a transposed view would come back scrambled.
        "linear.weight": np.ascontiguousarray(matrix.T, np.float32),
        "linear.bias": (-centre @ matrix).astype(np.float32),
    }
