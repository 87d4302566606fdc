"""What is fitted to the training data at once, before any net: principal components and the linear member."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retalk_models.hearing import FRAMES
from retalk_models.picture import F32
from retalk_models.talkin.batches import Bank
from retalk_models.talkin.net import STEPS_PER_RUN

_RIDGE = 1.3
"""Price of the linear member's weights per sample; the samples of every take and speed count."""


def linear(banks: Sequence[Bank], mean: F32, spread: F32) -> tuple[F32, F32]:
    """Ridge regression from what is said to the coefficients, normalised by mean and spread.

    (steps * K, FRAMES * WIDTH) weight and (steps * K,) bias, for each step of a run in turn.
    """
    steps = STEPS_PER_RUN

    def seen(bank: Bank) -> F32:
        return bank.said.reshape(len(bank.said), -1).astype(np.float32)

    some = np.concatenate([seen(bank)[:: len(banks) // 64 + 1] for bank in banks])
    centre, scale = some.mean(0), some.std(0) + 1e-6
    size = len(mean)
    inner = np.zeros((steps, len(centre), len(centre)), np.float32)
    outer = np.zeros((steps, len(centre), size), np.float32)
    samples = np.zeros(steps)
    for bank in banks:
        heard = (seen(bank) - centre) / scale
        for step in range(steps):
            rows = bank.targets[step::steps][: len(heard)]
            valid = rows[:, -1] > 0.5
            if valid.any():
                values = (rows[valid, :size] - mean) / spread
                inner[step] += heard[valid].T @ heard[valid]
                # A person's own average is face, not voice.
                outer[step] += heard[valid].T @ (values - values.mean(0))
                samples[step] += valid.sum()
    weights = []
    for step in range(steps):
        price = _RIDGE * samples[step] * np.eye(len(centre), dtype=np.float32)
        weights.append(np.linalg.solve(inner[step] + price, outer[step]).T / scale)
    weight = np.ascontiguousarray(np.concatenate(weights), np.float32)
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
