"""Says how many more sessions this machine carries, from what sessions were measured to cost."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from retalk_models.engine import Engine
from stream.bench import measure_cost
from stream.material import Material

UTILISATION = 0.7
"""Of the device and of the cores; beyond it queues form, and a queue of sessions never recovers by itself."""

_WINDOW_S = 10.0
_SAMPLES = 11


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


class Admission:
    """Counts sessions in, and says how many more fit under UTILISATION of both device and cores.

    A session counts as what was measured at start until its frames have flowed for ten seconds; from then on
    what is in use counts, and what all running ones take on average corrects the estimate of the next one.
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
        self._sessions: dict[object, float | None] = {}
        self._loads: deque[float] = deque(maxlen=_SAMPLES)
        self._cpu: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)

    def join(self, session: object) -> None:
        """A session is admitted."""
        self._sessions[session] = None

    def live(self, session: object) -> None:
        """Its frames flow. Only the first call counts."""
        if session in self._sessions and self._sessions[session] is None:
            self._sessions[session] = self._now_s()

    def leave(self, session: object) -> None:
        """It has ended. Unknown sessions are fine."""
        self._sessions.pop(session, None)

    def sample(self) -> None:
        """Look at what is in use; to be called once a second."""
        self._loads.append(sum(self._device_loads().values()))
        self._cpu.append((self._now_s(), self._cpu_s()))

    def room(self) -> Room:
        """How full the machine is now."""
        used = self._used()
        count = len(self._sessions)
        since = [at for at in self._sessions.values() if at is not None]
        settled = sum(self._now_s() - at >= _WINDOW_S for at in since)
        expected = self._expected(used, settled)
        device, cores = (
            used.device + (count - settled) * expected.device,
            used.cores + (count - settled) * expected.cores,
        )
        fits = min(
            _fits(UTILISATION * self._devices - device, expected.device),
            _fits(UTILISATION * self._cores - cores, expected.cores),
        )
        if self._apart:
            fits = min(fits, max(0, self._devices * max(1, _fits(UTILISATION, expected.device)) - count))
        free = max(fits, 0 if count else 1)
        return Room(device / self._devices, cores / self._cores, free)

    def _expected(self, used: Demand, settled: int) -> Demand:
        """The next session's demand: the start's measure counts as much as one running session does."""
        if not settled:
            return self._start
        parts = 1 + settled
        return Demand((self._start.device + used.device) / parts, (self._start.cores + used.cores) / parts)

    def _used(self) -> Demand:
        device = sum(self._loads) / len(self._loads) if self._loads else 0.0
        cores = 0.0
        if len(self._cpu) > 1 and self._cpu[-1][0] > self._cpu[0][0]:
            cores = (self._cpu[-1][1] - self._cpu[0][1]) / (self._cpu[-1][0] - self._cpu[0][0])
        return Demand(device, cores)


def _fits(room: float, each: float) -> int:
    # What was measured as nothing still is something: a thousand places at most.
    return max(0, int(room / max(each, 0.0005) + 1e-9))
