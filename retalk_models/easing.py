"""How things come and go without a jump: smooth steps, and averages that settle with time."""

from __future__ import annotations

import numpy as np

from retalk_models.picture import F32


def ease(value: float) -> float:
    """0 below 0, 1 above 1, smooth between (smoothstep)."""
    share = min(1.0, max(0.0, value))
    return share * share * (3 - 2 * share)


def ease_between(value: float, low: float, high: float) -> float:
    """0 below low, 1 above high, smooth between."""
    return ease((value - low) / (high - low))


def ease_each(values: F32) -> F32:
    """`ease` of every value of an array of any shape."""
    share = np.clip(values, 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


def settled(elapsed_s: float, constant_s: float) -> float:
    """The share, 0 to 1, of its way that an exponential average goes in elapsed_s (below 0 as 0).

    constant_s: seconds in which it goes 63 % of it.
    """
    return 1 - float(np.exp(-max(0.0, elapsed_s) / constant_s))
