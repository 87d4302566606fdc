"""What a call of several windows takes, measured before anybody waits for one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import count, cycle, islice, takewhile
from statistics import median

import numpy as np

from retalk_models.engine import (
    VOICE_RATE,
    BatchEngine,
    Engine,
    EngineFrame,
    EngineOptions,
    EngineWindow,
)
from stream.material import Material
from stream.media import PLAYOUT_RATE

_CALLS = 6
_WARM_UP = 2
"""Calls of a size that are left out: there memory is taken and kernels are chosen."""


def measure_calls(engine: Engine, material: Material, most_s: float = 3.0) -> dict[int, float]:
    """Seconds that a call of n windows takes, by n: 1, 2, 4 and so on up to the engine's most.

    Blocks for about `most_s`; sizes for which that leaves no time are left out, and calls that fail too.
    Empty for an engine that takes one window at a time, here or always.
    """
    found: dict[int, float] = {}
    if not isinstance(engine, BatchEngine) or engine.most_windows < 2:
        return found
    until_s = time.perf_counter() + most_s
    most = engine.most_windows
    for size in [*takewhile(lambda size: size < most, (2**k for k in count())), most]:
        taken = _calls(engine, material, size, until_s)
        if len(taken) <= _WARM_UP:
            break
        found[size] = median(taken[_WARM_UP:])
    return found


def _calls(engine: Engine, material: Material, size: int, until_s: float) -> list[float]:
    """How long each of a few calls with windows of `size` new sessions took, as far as there is time."""
    assert isinstance(engine, BatchEngine)
    taken: list[float] = []
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(engine.open_session(EngineOptions()))) for _ in range(size)]
        for window in islice(_windows(engine, material), _CALLS):
            if time.perf_counter() + max(taken, default=0.0) > until_s:
                break
            began_s = time.perf_counter()
            try:
                results = engine.process_many([(session, window) for session in sessions])
            except (MemoryError, RuntimeError):
                # It does not fit into memory: no size from here on does.
                return []
            if any(isinstance(result, Exception) for result in results):
                return []
            taken.append(time.perf_counter() - began_s)
    return taken


def _windows(engine: Engine, material: Material) -> Iterator[EngineWindow]:
    """Windows of one frame each, as a live session makes them."""
    voice = np.asarray(material.voice[:: PLAYOUT_RATE // VOICE_RATE], np.float32) / 32768
    ahead = engine.look_ahead_us * VOICE_RATE // 1_000_000
    heard = 0
    for index, picture in enumerate(cycle(material.frames)):
        time_us = round(index * 1_000_000 / material.fps)
        at = time_us * VOICE_RATE // 1_000_000
        places = np.arange(heard, at + ahead + VOICE_RATE // 25) % len(voice)
        yield EngineWindow((EngineFrame(picture, time_us, at, True),), voice[places], heard, 0)
        heard += len(places)
