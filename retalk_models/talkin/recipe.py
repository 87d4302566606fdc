"""What decides a run of the expression net, and what it learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from retalk_models.picture import F32
from retalk_models.talkin.batches import Bank, real_banks, synthetic_banks
from retalk_models.talkin.fits import gist, linear
from retalk_models.talkin.net import LOOK_AHEADS_MS, delay_of
from retalk_models.talkin.pairs import Pair
from retalk_models.talkin.recurrent import SAID
from retalk_models.talkin.synthetic import Utterance


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the result, besides the clips."""

    seed: int = 0
    listening: int = 250
    """Steps on synthetic speech alone, before any lips: timing and closures come from there."""
    steps: int = 100
    """Steps on real and synthetic windows after that; beyond, the nets learn these five minutes by heart."""
    real: int = 18
    synthetic: int = 6
    synthetic_seconds: float = 1500.0
    listening_rate: float = 2e-3
    rate: float = 7e-4
    decay: float = 0.05
    hidden: int = 128
    dropout: float = 0.5
    unlikeness: float = 1.0
    """Weight of 1 - r per window beside the distance."""
    held_out: tuple[str, ...] = field(default=())
    look_ahead_ms: int = LOOK_AHEADS_MS[0]


def _statistics(banks: Sequence[Bank]) -> tuple[F32, F32]:
    """Mean and spread of every value while speaking, each clip counting alike."""
    means, squares = [], []
    for bank in banks:
        rows = bank.targets[(bank.targets[:, -1] > 0.5) & (bank.targets[:, -2] > 0.5)][:, :-3]
        if not len(rows):
            continue  # a take with nothing but a pause in it
        means.append(rows.mean(0))
        squares.append((rows**2).mean(0))
    mean = np.mean(means, axis=0)
    return mean.astype(np.float32), np.sqrt(np.mean(squares, axis=0) - mean**2).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What a recipe learns from, and what is found from it at once: the same for nets of any seed.

    recipe: without synthetic steps where nothing synthetic was made. pairs: all clips, those held out among
    them. banks, made: real and synthetic recordings to learn from. mean, spread: (K,) of the real targets in
    speech. components, member: weight and bias as fits.gist and fits.linear give them.
    """

    recipe: Recipe
    pairs: Sequence[Pair]
    banks: Sequence[Bank]
    made: Sequence[Bank]
    mean: F32
    spread: F32
    components: tuple[F32, F32]
    member: tuple[F32, F32]

    @classmethod
    def of(
        cls, recipe: Recipe, pairs: Sequence[Pair], said: Sequence[Utterance], cache: Path | None = None
    ) -> Material:
        """cache: where what is said in the clips and the synthetic speech is kept between runs."""
        delay = delay_of(recipe.look_ahead_ms)
        known = [pair for pair in pairs if pair.person not in recipe.held_out]
        banks = real_banks(known, delay, cache=cache)
        made = synthetic_banks(said, delay, cache)
        mean, spread = _statistics(banks)
        return cls(
            recipe if made else replace(recipe, listening=0, synthetic=0),
            pairs,
            banks,
            made,
            mean,
            spread,
            gist(banks, SAID),
            linear(banks, mean, spread),
        )
