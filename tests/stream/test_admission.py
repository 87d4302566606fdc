"""What fits by measured cost, on a clock and a machine of the test's own."""

from __future__ import annotations

import pytest

from stream.admission import Admission, Demand, measure_demand
from stream.material import Material
from tests.stream.fakes import FakeEngine, flat_picture
from tests.stream.test_bench import BURNT_S, burn, tone


class Machine:
    """Two cores, one device, and sessions that take what the test says."""

    def __init__(self, demand: Demand, cores: int = 2) -> None:
        self.now = self.cpu = self.device = 0.0
        self.admission = Admission(
            demand,
            devices=1,
            cores=cores,
            device_loads=lambda: {1: self.device},
            cpu_s=lambda: self.cpu,
            now_s=lambda: self.now,
        )

    def run(self, seconds: int, device: float, cores: float) -> None:
        self.device = device
        for _ in range(seconds):
            self.now += 1
            self.cpu += cores
            self.admission.sample()

    @property
    def free(self) -> int:
        return self.admission.room().free


@pytest.mark.parametrize(
    ("demand", "places"),
    [
        (Demand(device=0.17, cores=0.2), 4),  # 0.7 of one device
        (Demand(device=0.05, cores=0.45), 3),  # 0.7 of two cores
        (Demand(device=3.0, cores=3.0), 1),  # too much for this machine: its ladder answers for it
    ],
)
def test_places_are_counted_before_anyone_runs(demand: Demand, places: int) -> None:
    machine = Machine(demand)
    for left in range(places, 0, -1):
        assert machine.free == left
        machine.admission.join(object())
    assert machine.free == 0


@pytest.mark.parametrize(
    ("devices", "each", "places"),
    [
        (8, 0.5, 8),  # 5.6 of eight would hold eleven, of which three pairs would need a whole device each
        (8, 0.3, 16),
        (8, 0.75, 7),  # 0.7 of all eight
        (1, 3.0, 1),
    ],
)
def test_what_is_left_of_two_devices_is_no_place_for_a_session_that_keeps_to_one(
    devices: int, each: float, places: int
) -> None:
    admission = Admission(
        Demand(each, 0.01), devices=devices, apart=True, cores=64, device_loads=dict, cpu_s=lambda: 0.0
    )
    for left in range(places, 0, -1):
        assert admission.room().free == left
        admission.join(object())
    assert admission.room().free == 0


def test_a_session_gives_its_place_back() -> None:
    machine = Machine(Demand(0.6, 0.6))
    machine.admission.join("a")
    assert machine.free == 0
    machine.admission.leave("a")
    machine.admission.leave("a")
    assert machine.free == 1


def test_sessions_that_cost_more_than_measured_take_the_places() -> None:
    machine = Machine(Demand(0.1, 0.1))
    assert machine.free == 7
    for name in "ab":
        machine.admission.join(name)
        machine.admission.live(name)
    assert machine.free == 5
    machine.run(12, device=0.6, cores=1.0)
    assert machine.free == 0


def test_sessions_that_cost_less_make_room() -> None:
    machine = Machine(Demand(0.3, 0.3))
    for name in "ab":
        machine.admission.join(name)
        machine.admission.live(name)
    assert machine.free == 0
    machine.run(12, device=0.1, cores=0.2)
    assert machine.free >= 2


def test_a_session_that_does_not_flow_yet_keeps_its_place() -> None:
    machine = Machine(Demand(0.3, 0.3))
    for name in "ab":
        machine.admission.join(name)
    machine.run(60, device=0.0, cores=0.01)
    assert machine.free == 0


def test_other_work_in_this_process_counts() -> None:
    machine = Machine(Demand(0.1, 0.3))
    assert machine.free == 4
    machine.admission.join("a")
    machine.admission.live("a")
    machine.run(12, device=0.1, cores=1.3)
    assert machine.free == 0


def test_demand_is_what_a_session_spends() -> None:
    material = Material([flat_picture(luma) for luma in range(40, 60)], 25.0, tone(1.0, 48_000))
    demand = measure_demand(FakeEngine(before=burn), material)
    assert 25 * BURNT_S * 0.9 <= demand.device <= 25 * BURNT_S * 3
    assert demand.cores > demand.device
