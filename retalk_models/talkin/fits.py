"""What is fitted to the training data at once, before any net: principal components and the linear member."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retalk_models.hearing import FRAMES
from retalk_models.picture import F32
from retalk_models.talkin.batches import F16, Bank
from retalk_models.talkin.net import STEPS_PER_RUN

_RIDGE = 6.0
"""Price of the linear member's weights per sample; the samples of every take and speed count."""


def linear(banks: Sequence[Bank], mean: F32, spread: F32) -> tuple[F32, F32]:
    """Ridge regression from what is said to the coefficients, normalised by mean and spread.

    (steps * K, FRAMES * WIDTH) weight and (steps * K,) bias, for each step of a run in turn.
    """
    steps = STEPS_PER_RUN

    def seen(said: F16) -> F32:
        return said.reshape(len(said), -1).astype(np.float32)

    some = np.concatenate([seen(bank.said[:: len(banks) // 64 + 1]) for bank in banks])
    centre, scale = some.mean(0), some.std(0) + 1e-6
    size = len(mean)
    inner = np.zeros((len(centre), len(centre)), np.float32)
    outer = np.zeros((len(centre), steps * size), np.float32)
    samples = 0
    for bank in banks:
        rows = bank.targets[: len(bank.said) * steps].reshape(-1, steps, bank.targets.shape[1])
        valid = (rows[:, :, -1] > 0.5).all(1)
        if valid.any():
            heard = (seen(bank.said[: len(rows)][valid]) - centre) / scale
            values = (rows[valid, :, :size] - mean) / spread
            # A person's own average is face, not voice.
            values = values - values.mean((0, 1))
            inner += heard.T @ heard
            outer += heard.T @ values.reshape(len(values), -1)
            samples += len(values)
    inner[np.diag_indices(len(centre))] += _RIDGE * samples
    weight = np.ascontiguousarray(np.linalg.solve(inner, outer).T / scale, np.float32)
    return weight, (-weight @ centre).astype(np.float32)


def gist(banks: Sequence[Bank], size: int) -> tuple[F32, F32]:
    """(size, WIDTH) principal components of what is said, and (size,) bias: mean 0, average spread 1."""
    frames = np.concatenate([bank.said[:, FRAMES // 2] for bank in banks]).astype(np.float32)
    mean = frames.mean(0)
    spread = frames.std(0) + 1e-6
    values, vectors = np.linalg.eigh(np.cov(((frames - mean) / spread).T))
    weight = vectors[:, ::-1][:, :size].T / spread
    weight *= np.sqrt(size / values[::-1][:size].sum())
    return weight.astype(np.float32), (-weight @ mean).astype(np.float32)
