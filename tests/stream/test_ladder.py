from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from retalk_models.engine import Rung
from stream.ladder import QualityLadder

STEP_US = 40_000


def rung(ladder: QualityLadder) -> Rung:
    """The rung now: a call, for mypy takes a property for a constant once it was compared."""
    return ladder.rung


def drive(ladder: QualityLadder, start_us: int, seconds: float, cost_us: int) -> int:
    """Windows of 40 ms at this cost, wherever the ladder lets one run; returns when they end."""
    now_us = start_us
    while now_us < start_us + seconds * 1_000_000:
        now_us += STEP_US
        if ladder.may_run(now_us):
            ladder.finished(now_us, cost_us, STEP_US, cost_us < 100_000)
    return now_us


def test_a_light_load_stays_at_full() -> None:
    ladder = QualityLadder()
    drive(ladder, 0, 60, 20_000)
    assert rung(ladder) == Rung.FULL


def test_it_steps_down_before_the_first_deadline_is_missed() -> None:
    ladder = QualityLadder()
    drive(ladder, 0, 3, 39_000)
    assert rung(ladder) > Rung.FULL


def test_overload_ends_at_pass_through_and_probes_ever_less() -> None:
    ladder = QualityLadder()
    now_us = drive(ladder, 0, 5, 300_000)
    assert rung(ladder) == Rung.PASS_THROUGH
    probes = 0
    for _ in range(1500):
        now_us += STEP_US
        if ladder.may_run(now_us):
            probes += 1
            ladder.finished(now_us, 300_000, STEP_US, False)
    assert 1 <= probes <= 8


def test_it_climbs_with_patience_and_one_rung_at_a_time() -> None:
    ladder = QualityLadder()
    now_us = drive(ladder, 0, 1.5, 60_000)
    low = ladder.rung
    assert low > Rung.FULL
    seen = [low]
    for _ in range(20 * 25):
        now_us = drive(ladder, now_us, 0.04, 10_000)
        if ladder.rung != seen[-1]:
            seen.append(ladder.rung)
    assert seen == [Rung(r) for r in range(low, -1, -1)]


def test_a_climb_that_failed_is_tried_again_later_and_later() -> None:
    ladder = QualityLadder()
    now_us, climbs, last = 0, [], ladder.rung
    for _ in range(25 * 240):
        now_us += STEP_US
        cost_us = 50_000 if ladder.rung == Rung.FULL else 15_000
        ladder.finished(now_us, cost_us, STEP_US, True)
        if ladder.rung < last:
            climbs.append(now_us)
        last = ladder.rung
    gaps = [b - a for a, b in itertools.pairwise(climbs)]
    assert len(gaps) >= 3
    assert gaps[-1] > 3 * gaps[0]


def test_a_fault_passes_through_at_once_and_returns_to_where_it_was() -> None:
    ladder = QualityLadder()
    ladder.failed(1_000_000)
    assert rung(ladder) == Rung.PASS_THROUGH
    assert ladder.faulted
    assert not ladder.may_run(1_400_000)
    assert ladder.may_run(1_500_000)
    ladder.finished(1_500_000, 10_000, STEP_US, False)
    assert rung(ladder) == Rung.FULL
    assert not ladder.faulted
    ladder.failed(2_000_000)
    ladder.finished(9_000_000, 10_000, STEP_US, True)
    assert rung(ladder) == Rung.NO_RESTORATION


def test_a_fault_of_long_ago_does_not_keep_the_dub_away_after_an_overload() -> None:
    ladder = QualityLadder()
    now_us = drive(ladder, 0, 5, 10_000)
    while now_us < 60_000_000:  # an engine that raises for a minute is asked ever less
        now_us += STEP_US
        if ladder.may_run(now_us):
            ladder.failed(now_us)
    now_us = drive(ladder, now_us, 600, 10_000)
    assert rung(ladder) == Rung.FULL
    while rung(ladder) < Rung.PASS_THROUGH:
        now_us = drive(ladder, now_us, 0.04, 300_000)
    down_us = now_us
    while not ladder.may_run(now_us):
        now_us += STEP_US
    assert now_us - down_us <= 1_000_000


def test_a_fixed_ladder_moves_for_faults_only() -> None:
    ladder = QualityLadder(fixed=True)
    now_us = drive(ladder, 0, 10, 400_000)
    assert rung(ladder) == Rung.FULL
    ladder.failed(now_us)
    assert rung(ladder) == Rung.PASS_THROUGH
    drive(ladder, now_us, 2, 400_000)
    assert rung(ladder) == Rung.FULL


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3_000_000), st.integers(0, 10**6), st.booleans(), st.sampled_from([0, 0, 0, 1])
        ),
        max_size=200,
    )
)
def test_it_never_leaves_the_ladder_and_always_comes_back_to_try(
    events: list[tuple[int, int, bool, int]],
) -> None:
    ladder = QualityLadder()
    now_us = 0
    for wait_us, cost_us, on_time, fault in events:
        now_us += wait_us
        if not ladder.may_run(now_us):
            continue
        if fault:
            ladder.failed(now_us)
        else:
            ladder.finished(now_us, cost_us, STEP_US, on_time)
        assert ladder.window_rung() <= Rung.HALF_RATE
    assert ladder.may_run(now_us + 31_000_000)


def test_one_slow_window_now_and_then_is_no_overload() -> None:
    ladder = QualityLadder()
    for k in range(25 * 60):
        ladder.finished(k * STEP_US, 250_000 if k % 25 == 24 else 20_000, STEP_US, True)
        assert rung(ladder) == Rung.FULL


def test_the_turmoil_of_the_first_second_costs_no_rung() -> None:
    ladder = QualityLadder()
    for k in range(25):
        ladder.finished(k * STEP_US, 45_000, STEP_US, True)
    assert rung(ladder) == Rung.FULL
    for k in range(25, 100):
        ladder.finished(k * STEP_US, 20_000, STEP_US, True)
    assert rung(ladder) == Rung.FULL
    for k in range(100, 125):
        ladder.finished(k * STEP_US, 45_000, STEP_US, True)
    assert rung(ladder) > Rung.FULL


def test_half_a_second_at_the_edge_is_left_to_the_playout_delay() -> None:
    ladder = QualityLadder()
    for k in range(25 * 20):
        cost_us = 40_000 if k % 125 < 13 else 22_000
        ladder.finished(k * STEP_US, cost_us, STEP_US, True)
        assert rung(ladder) == Rung.FULL


def test_a_backlog_that_grows_costs_a_rung_within_half_a_second() -> None:
    ladder = QualityLadder()
    now_us = drive(ladder, 0, 10, 22_000)
    drive(ladder, now_us, 0.5, 60_000)
    assert rung(ladder) > Rung.FULL


def test_half_the_rate_is_not_taken_while_every_window_is_done_before_the_next() -> None:
    ladder = QualityLadder()
    drive(ladder, 0, 30, 39_000)
    assert rung(ladder) == Rung.NO_ENHANCEMENT
    drive(ladder, 30_000_000, 1.1, 42_000)
    assert rung(ladder) == Rung.HALF_RATE
