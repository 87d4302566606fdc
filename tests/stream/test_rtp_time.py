from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.rtp_time import RtpClock, SenderClock


def _stamps(seconds: float, rate: int, first: int, drift_ppm: float = 0.0) -> list[tuple[int, int]]:
    """(RTP stamp, true session us) every 40 ms of a sender whose crystal is off."""
    out = []
    for k in range(int(seconds * 25)):
        media_s = k * 0.04
        out.append(((first + round(media_s * rate)) % 2**32, round(media_s * (1 + drift_ppm / 1e6) * 1e6)))
    return out


def test_jitter_is_removed_and_the_stamp_wraps() -> None:
    rng = random.Random(1)
    clock = RtpClock(90_000)
    worst = 0
    for k, (stamp, true_us) in enumerate(_stamps(60, 90_000, 2**32 - 90_000 * 20)):
        mapped = clock.to_session_us(stamp, true_us + 20_000 + rng.randrange(0, 60_000))
        if k > 100:
            worst = max(worst, abs(mapped - true_us - 20_000))
    assert clock.anchors == 1
    assert worst < 8_000


@pytest.mark.parametrize("drift_ppm", [-200.0, 200.0])
def test_drift_is_followed(drift_ppm: float) -> None:
    rng = random.Random(2)
    clock = RtpClock(48_000)
    last_error = 0
    for stamp, true_us in _stamps(600, 48_000, 5, drift_ppm):
        mapped = clock.to_session_us(stamp, true_us + rng.randrange(0, 30_000))
        last_error = mapped - true_us
        assert abs(last_error) < 40_000
    # Ten minutes at 200 ppm are 120 ms; none of it may be left.
    assert abs(last_error) < 15_000


@pytest.mark.parametrize("jump", [90_000 * 100, -90_000 * 100, 2**31 - 1])
def test_a_jump_anchors_anew(jump: int) -> None:
    clock = RtpClock(90_000)
    for k in range(50):
        clock.to_session_us(k * 3600, k * 40_000)
    assert clock.to_session_us((50 * 3600 + jump) % 2**32, 2_000_000) == 2_000_000
    assert clock.to_session_us((51 * 3600 + jump) % 2**32, 2_040_000) == 2_040_000
    assert clock.anchors == 2


def test_a_stalled_network_is_no_jump_of_time() -> None:
    clock = RtpClock(90_000)
    for k in range(50):
        clock.to_session_us(k * 3600, k * 40_000)
    for k in range(50, 75):
        assert abs(clock.to_session_us(k * 3600, 3_000_000) - k * 40_000) <= 1_000
    assert clock.anchors == 1


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 10**7)), max_size=60))
def test_nothing_is_captured_after_it_arrived(packets: list[tuple[int, int]]) -> None:
    clock = RtpClock(90_000)
    arrived_us = 0
    for stamp, gap_us in packets:
        arrived_us += gap_us
        mapped = clock.to_session_us(stamp, arrived_us)
        assert arrived_us - 1_500_001 <= mapped <= arrived_us


def test_a_first_frame_that_came_by_a_shorter_way_is_forgotten() -> None:
    """Else every later frame counts as captured that much too early, and playout has to pay for it."""
    clock = RtpClock(90_000)
    clock.to_session_us(0, 0)
    lateness = [
        index * 40_000 + 66_000 - clock.to_session_us(index * 3600, index * 40_000 + 66_000)
        for index in range(1, 500)
    ]
    assert lateness[0] == pytest.approx(106_000 - 40_000, abs=1000)
    assert lateness[-1] < 1000


def ntp(seconds: float) -> int:
    """The 64-bit NTP time of a sender's own clock."""
    return round((3_900_000_000 + seconds) * 2**32)


@pytest.mark.parametrize("reports", [True, False])
def test_reports_put_tracks_of_unequal_ways_onto_one_time(reports: bool) -> None:
    """The camera takes 90 ms to get here and the sound 10: with reports that does not part them."""
    rng = random.Random(4)
    sender = SenderClock()
    video, audio = RtpClock(90_000, sender), RtpClock(48_000, sender)
    apart = 0
    for k in range(60 * 50):
        true_s = k * 0.02
        arrived_us = round(true_s * 1e6) + 10_000 + rng.randrange(5_000)
        heard_us = audio.to_session_us(round(77 + true_s * 48_000) % 2**32, arrived_us)
        if reports and k % 50 == 7:
            audio.report(ntp(true_s), round(77 + true_s * 48_000) % 2**32)
            video.report(ntp(true_s), round(991 + true_s * 90_000) % 2**32)
        if k % 2 == 0:
            arrived_us = round(true_s * 1e6) + 90_000 + rng.randrange(20_000)
            seen_us = video.to_session_us(round(991 + true_s * 90_000) % 2**32, arrived_us)
            apart = seen_us - heard_us
    assert abs(apart) < 5_000 if reports else abs(apart - 80_000) < 10_000


def test_a_report_makes_no_jump() -> None:
    sender = SenderClock()
    sender.learn(0.0, 0)
    clock = RtpClock(90_000, sender)
    last_us = -1
    for k in range(500):
        at_us = clock.to_session_us(k * 3600, k * 40_000 + 100_000)
        if k == 100:
            sender.learn(3_900_000_000 * 1e6 + k * 40_000, k * 40_000)
            clock.report(ntp(k * 0.04), k * 3600)
        if k:
            assert 30_000 < at_us - last_us < 50_000
        last_us = at_us


@pytest.mark.parametrize("wrong_s", [-3600.0, -2.0, 5.0])
def test_a_sender_whose_reports_are_nonsense_is_mapped_by_arrival(wrong_s: float) -> None:
    sender = SenderClock()
    other = RtpClock(48_000, sender)
    clock = RtpClock(90_000, sender)
    for k in range(500):
        other.to_session_us(k * 1920, k * 40_000)
        assert abs(clock.to_session_us(k * 3600, k * 40_000 + 20_000) - k * 40_000 - 20_000) < 1000
        if k % 25 == 3:
            other.report(ntp(k * 0.04), k * 1920)
            clock.report(ntp(k * 0.04 - wrong_s), k * 3600)


@pytest.mark.parametrize("fps", [15.0, 24.0, 25.0, 30000 / 1001, 30.0, 60.0])
@pytest.mark.parametrize("ppm", [-200.0, 200.0])
def test_a_camera_whose_clock_is_off_stays_in_time_for_an_hour(fps: float, ppm: float) -> None:
    rng = random.Random(5)
    clock = RtpClock(90_000)
    worst = 0
    for k in range(round(3600 * fps)):
        true_us = round(k * 1e6 / fps / (1 + ppm / 1e6))
        mapped = clock.to_session_us(round(k * 90_000 / fps) % 2**32, true_us + rng.randrange(20_000))
        if k > 10 * fps:
            worst = max(worst, abs(mapped - true_us))
    assert worst < 20_000
    assert clock.anchors == 1
