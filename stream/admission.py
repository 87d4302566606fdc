"""Says how many more sessions this machine carries, from what sessions were measured to cost."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import islice

from retalk_models.engine import Engine
from stream.bench import measure_cost
from stream.material import Material

UTILISATION = 0.7
"""Of the device and of the cores; beyond it queues form, and a queue of sessions never recovers by itself."""

_WINDOW = 10
"""Seconds that count as what is in use now."""

_NOTICED_S = 2
"""Seconds until those who look at a session once a second, and are asked once a second, have seen it stop."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a session takes: seconds of the device, and of one core, per second."""

    device: float
    cores: float


def measure_demand(engine: Engine, material: Material, seconds: float = 1.0) -> Demand:
    """Dub `material` alone for a moment. Blocks for about that long, and warms the engine up."""
    cost = measure_cost(engine, material, seconds, warm_up_s=0.6)
    if engine.device.startswith("cuda"):
        # Processor time says nothing about another device: its share is how long its calls take.
        return Demand(cost.window_ms.p50 / 1000 * material.fps, cost.total)
    return Demand(sum(cost.stages.values()), cost.total)


@dataclass(frozen=True, slots=True)
class Room:
    """How full the machine is: shares of device and cores in use, and how many more sessions fit."""

    device: float
    cores: float
    free: int


@dataclass(slots=True)
class _Second:
    """What all sessions took together in one second, and those for whom the engine worked."""

    use: Demand
    flowing: set[object]


class Admission:
    """Counts sessions in, and says how many more fit under UTILISATION of both device and cores.

    What the last ten seconds took counts, and one session's expected demand for every session that is here
    and took no part in them: it has just been admitted, its camera has paused, its engine hangs. One that has
    left and took part in them gives as much back at once. So a session's place stays its own, whatever it
    does with it, and counts once.
    Expected is the start's measure, corrected by what sessions took in the last ten seconds in which any
    flowed: the start's measure counts as much as ten seconds of one session do. It is remembered while they
    all pause, and forgotten when none is left.
    The first session is always admitted: where even that is too much, its ladder answers for it.
    apart: a session keeps to one of the devices for life, so what is left of several makes no place together;
    one that takes more than UTILISATION of a device may have it to itself.
    """

    def __init__(
        self,
        demand: Demand,
        *,
        devices: int,
        apart: bool = False,
        cores: int | None = None,
        device_loads: Callable[[], Mapping[int, float]],
        cpu_s: Callable[[], float] = time.process_time,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = demand
        self._devices = devices
        self._apart = apart
        self._cores = cores or len(os.sched_getaffinity(0))
        self._device_loads = device_loads
        self._cpu_s = cpu_s
        self._now_s = now_s
        self._sessions: set[object] = set()
        self._flowing: set[object] = set()
        self._seconds: deque[_Second] = deque(maxlen=_WINDOW + _NOTICED_S)
        self._at_work: deque[_Second] = deque(maxlen=_WINDOW)
        self._sampled = now_s(), cpu_s()

    def join(self, session: object) -> None:
        """A session is admitted."""
        self._sessions.add(session)

    def live(self, session: object, flows: bool = True) -> None:
        """Whether frames flow that the engine made, once a second. Unknown sessions are fine."""
        if flows and session in self._sessions:
            self._flowing.add(session)
        elif not flows and session in self._flowing:
            self._flowing.discard(session)
            # It had stopped before it could be noticed: what it did not take then was not its demand.
            for second in islice(reversed(self._seconds), _NOTICED_S):
                second.flowing.discard(session)

    def leave(self, session: object) -> None:
        """It has ended. Unknown sessions are fine."""
        self._sessions.discard(session)
        self._flowing.discard(session)
        if not self._sessions:
            self._seconds.clear()
            self._at_work.clear()

    def sample(self) -> None:
        """Look at what is in use; to be called once a second."""
        (since, spent), (now, cpu) = self._sampled, (self._now_s(), self._cpu_s())
        self._sampled = now, cpu
        cores = (cpu - spent) / (now - since) if now > since else 0.0
        use = Demand(sum(self._device_loads().values()), cores)
        self._seconds.append(_Second(use, set(self._flowing)))
        known = self._known()
        if known and known[-1].flowing:
            self._at_work.append(known[-1])

    def room(self) -> Room:
        """How full the machine is now."""
        used, flowed = _mean(self._known())
        count = len(self._sessions)
        expected = self._expected()
        others = count - flowed
        device = max(0.0, used.device + others * expected.device)
        cores = max(0.0, used.cores + others * expected.cores)
        fits = min(
            _fits(UTILISATION * self._devices - device, expected.device),
            _fits(UTILISATION * self._cores - cores, expected.cores),
        )
        if self._apart:
            fits = min(fits, max(0, self._devices * max(1, _fits(UTILISATION, expected.device)) - count))
        free = max(fits, 0 if count else 1)
        return Room(device / self._devices, cores / self._cores, free)

    def _known(self) -> list[_Second]:
        """The seconds of which it is known who flowed in them."""
        return list(self._seconds)[:-_NOTICED_S]

    def _expected(self) -> Demand:
        used, flowed = _mean(self._at_work)
        return Demand(
            (self._start.device + used.device) / (1 + flowed), (self._start.cores + used.cores) / (1 + flowed)
        )


def _mean(seconds: Collection[_Second]) -> tuple[Demand, float]:
    """What a second took, and how many sessions flowed in it; where fewer are known the rest were idle."""
    return (
        Demand(
            sum(second.use.device for second in seconds) / _WINDOW,
            sum(second.use.cores for second in seconds) / _WINDOW,
        ),
        sum(len(second.flowing) for second in seconds) / _WINDOW,
    )


def _fits(room: float, each: float) -> int:
    # What was measured as nothing still is something: a thousand places at most.
    return max(0, int(room / max(each, 0.0005) + 1e-9))
