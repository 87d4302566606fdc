"""What fits by measured cost, on a clock and a machine of the test's own."""

from __future__ import annotations

import random

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

    def admit_live(self, names: str) -> None:
        """Sessions of these one-letter names are admitted, and their frames flow."""
        for name in names:
            self.admission.join(name)
            self.admission.live(name)

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
    machine.admit_live("ab")
    assert machine.free == 5
    machine.run(12, device=0.6, cores=1.0)
    assert machine.free == 0


def test_sessions_that_cost_less_make_room() -> None:
    machine = Machine(Demand(0.3, 0.3))
    machine.admit_live("ab")
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


def test_a_camera_that_pauses_does_not_give_its_place_away() -> None:
    """bug: two live sessions filled the machine, both paused, and seven more were let in."""
    machine = Machine(Demand(0.3, 0.3))
    machine.admit_live("ab")
    machine.run(30, device=0.6, cores=0.6)
    assert machine.free == 0
    for noticed in (False, False, True):  # by those who look once a second
        if noticed:
            for name in "ab":
                machine.admission.live(name, flows=False)
        machine.run(1, device=0.0, cores=0.0)
        assert machine.free == 0
    for _ in range(30):
        machine.run(1, device=0.0, cores=0.0)
        assert machine.free == 0
    for name in "ab":
        machine.admission.live(name)
    for _ in range(30):
        machine.run(1, device=0.6, cores=0.6)
        assert machine.free == 0


def test_while_all_pause_it_is_remembered_what_they_took() -> None:
    """bug: the start's measure, a third of what these took, was all that was left of them."""
    machine = Machine(Demand(0.1, 0.1))
    machine.admit_live("abc")
    machine.run(30, device=0.69, cores=0.69)
    assert machine.free == 0
    for name in "abc":
        machine.admission.live(name, flows=False)
    machine.run(60, device=0.0, cores=0.0)
    assert machine.free <= 1  # all but forgetting them: four
    for name in "abc":
        machine.admission.leave(name)
    assert machine.free == 7, "nobody is left whose demand it was"


@pytest.mark.parametrize("each", [0.1, 0.3])
def test_a_session_that_has_begun_to_flow_counts_once(each: float) -> None:
    """bug: for ten seconds it counted as expected, and in what was in use as well."""
    machine = Machine(Demand(0.3, 0.3))
    machine.run(20, device=0.0, cores=0.0)
    machine.admission.join("a")
    machine.admission.live("a")
    for _ in range(30):
        machine.run(1, device=each, cores=each)
        assert machine.free >= 1


def test_who_leaves_gives_the_place_back_at_once() -> None:
    """bug: for most of ten seconds what a session had used still counted, and who came was refused."""
    machine = Machine(Demand(0.17, 0.34))
    machine.admit_live("abcd")
    machine.run(30, device=0.68, cores=1.36)
    assert machine.free == 0
    machine.admission.leave("a")
    for _ in range(30):
        assert machine.free == 1
        machine.run(1, device=0.51, cores=1.02)
    machine.admission.leave("b")
    machine.admission.join("e")
    for _ in range(30):
        assert machine.free == 1
        machine.run(1, device=0.34, cores=0.68)


def test_what_the_others_take_is_not_forgotten_when_one_leaves() -> None:
    """They take three times what one was measured to take at start: one place is free, not four."""
    machine = Machine(Demand(0.1, 0.1))
    machine.admit_live("abcd")
    machine.run(30, device=1.2, cores=1.2)
    machine.admission.leave("a")
    for _ in range(30):
        assert machine.free == 0
        machine.run(1, device=0.9, cores=0.9)


@pytest.mark.parametrize("each", [0.17, 0.11])
def test_what_all_may_come_to_take_stays_within_the_share(each: float) -> None:
    """Sessions come whenever one is let in, flow after seconds, pause, all pause at once, leave."""
    rng = random.Random(7)
    machine = Machine(Demand(each, each), cores=1)
    since: dict[int, int] = {}
    for second in range(3000):
        for name in list(since):
            # Looked at once a second, one that has stopped is seen two seconds later at the latest.
            machine.admission.live(name, flows=second > since[name] + 2 if since[name] >= 0 else False)
            if rng.random() < 0.01:
                del since[name]
                machine.admission.leave(name)
            elif rng.random() < 0.02:
                since[name] = -1 if since[name] >= 0 else second
        if rng.random() < 0.01:
            since = dict.fromkeys(since, -1)
        elif rng.random() < 0.01:
            since = dict.fromkeys(since, second)
        while machine.free:
            since[second * 64 + len(since)] = second + rng.randrange(8)
            machine.admission.join(second * 64 + len(since) - 1)
        assert len(since) * each <= 0.7
        takes = each * sum(0 <= at <= second for at in since.values())
        machine.run(1, device=takes, cores=takes)


def test_demand_is_what_a_session_spends() -> None:
    material = Material([flat_picture(luma) for luma in range(40, 60)], 25.0, tone(1.0, 48_000))
    demand = measure_demand(FakeEngine(before=burn), material)
    assert 25 * BURNT_S * 0.9 <= demand.device <= 25 * BURNT_S * 3
    assert demand.cores > demand.device
