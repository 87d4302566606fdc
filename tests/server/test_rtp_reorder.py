"""Reordering: frames on their marker, holes waited for just long enough, nothing twice."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.rtp_reorder import (
    KEY_PATIENCE_US,
    NACK_RETRY_US,
    NACK_TRIES,
    STALL_US,
    AudioReorderer,
    EncodedFrame,
    Packet,
    Unwrapper,
    VideoAssembler,
    h264_is_key,
    vp8_is_key,
)

FRAME_US = 40_000


def is_key(data: bytes) -> bool:
    """In these tests a key frame begins with K."""
    return data.startswith(b"K")


def film(frames: int, per_frame: int = 3, first: int = 65_530, keys: tuple[int, ...] = (0,)) -> list[Packet]:
    """Packets of `frames` frames; data tells frame and part; sequence numbers wrap."""
    packets = []
    for frame in range(frames):
        for part in range(per_frame):
            head = b"K" if frame in keys else b"d"
            data = head + b"%d.%d;" % (frame, part) if part == 0 else b"%d.%d;" % (frame, part)
            sequence = (first + frame * per_frame + part) % 65_536
            marker = part == per_frame - 1
            packets.append(Packet(sequence, frame * 3600 % 2**32, marker, data, frame * FRAME_US))
    return packets


def numbers(frames: list[EncodedFrame]) -> list[int]:
    """Which frames these are, each checked to be whole."""
    found = []
    for frame in frames:
        parts = frame.data.lstrip(b"Kd").decode().rstrip(";").split(";")
        index = int(parts[0].split(".")[0])
        assert parts == [f"{index}.{part}" for part in range(len(parts))]
        found.append(index)
    return found


def test_a_frame_leaves_with_its_last_packet() -> None:
    assembler = VideoAssembler(is_key)
    for packet in film(5):
        frames = assembler.add(packet)
        assert len(frames) == packet.marker
        assert not assembler.nacks(packet.arrived_us)
    assert not assembler.take_key_request()


def test_a_sender_that_forgets_the_marker_is_one_frame_later() -> None:
    assembler = VideoAssembler(is_key)
    given_frames = []
    for packet in film(4):
        unmarked = Packet(packet.sequence, packet.timestamp, False, packet.data, packet.arrived_us)
        given_frames += assembler.add(unmarked)
    assert numbers(given_frames) == [0, 1, 2]


def test_every_complete_frame_is_drained_at_once() -> None:
    packets = film(6)
    assembler = VideoAssembler(is_key)
    given_frames = []
    for packet in packets[:4] + packets[5:]:
        given_frames += assembler.add(packet)
    assert numbers(given_frames) == [0]
    assert assembler.nacks(packets[-1].arrived_us) == [packets[4].sequence]
    assert numbers(assembler.add(packets[4])) == [1, 2, 3, 4, 5]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.integers(1, 12), twice=st.booleans())
def test_any_order_of_a_few_gives_every_frame_once(seed: int, spread: int, twice: bool) -> None:
    chance = random.Random(seed)
    packets = film(20)
    late = sorted(packets[3:], key=lambda p: packets.index(p) + chance.uniform(0, spread))
    sent = packets[:3] + late + (chance.sample(late, 10) if twice else [])
    assembler = VideoAssembler(is_key)
    given_frames = []
    for packet in sent:
        given_frames += assembler.add(packet)
    assert numbers(given_frames) == list(range(20))


@pytest.mark.parametrize("round_trip_us", [4_000, 40_000, 100_000, 180_000])
def test_requests_are_repeated_at_the_pace_of_the_round_trip(round_trip_us: int) -> None:
    """Every tenth packet is lost and comes a round trip after the request for it."""
    assembler = VideoAssembler(is_key)
    packets = film(200)
    answers: list[tuple[int, Packet]] = []
    asked: dict[int, int] = {}
    now_us = 0
    for index, packet in enumerate(packets):
        now_us += 2_000
        for at_us, answer in [a for a in answers if a[0] <= now_us]:
            assembler.add(replace(answer, arrived_us=at_us))
            answers.remove((at_us, answer))
        if index % 10 != 5:
            assembler.add(replace(packet, arrived_us=now_us))
        for missing in assembler.nacks(now_us):
            asked[missing] = asked.get(missing, 0) + 1
            if asked[missing] == 1:
                answer = next(p for p in packets if p.sequence == missing)
                answers.append((now_us + round_trip_us, answer))
    assert round_trip_us < assembler.nack_retry_us <= max(round_trip_us + 20_000, 25_000)
    late = [asked[sequence] for sequence in sorted(asked)[len(asked) // 2 :]]
    assert sum(late) <= 1.2 * len(late), "asked again before an answer can have come"


def test_a_hole_is_asked_for_again_and_then_no_more() -> None:
    packets = film(4)
    assembler = VideoAssembler(is_key)
    for packet in packets[:4] + packets[5:]:
        assembler.add(packet)
    now = packets[-1].arrived_us
    asked = 0
    for step in range(20):
        asked += len(assembler.nacks(now + step * NACK_RETRY_US // 2))
    assert asked == NACK_TRIES


def test_a_stalled_head_wants_a_key_frame_and_shows_nothing_before_it() -> None:
    packets = film(30, keys=(0, 20))
    lost = {4}
    assembler = VideoAssembler(is_key)
    given_frames: list[EncodedFrame] = []
    wanted_at = None
    for packet in packets:
        if packets.index(packet) in lost:
            continue
        given_frames += assembler.add(packet)
        if wanted_at is None and assembler.take_key_request():
            wanted_at = packet.arrived_us
    assert numbers(given_frames) == [0, *range(20, 30)]
    assert wanted_at is not None
    assert abs(wanted_at - (FRAME_US + STALL_US)) <= 2 * FRAME_US


def test_a_stall_ends_by_time_alone_too() -> None:
    packets = film(6, keys=(0, 3))
    assembler = VideoAssembler(is_key)
    given_frames = []
    for index, packet in enumerate(packets):
        if index != 4:
            given_frames += assembler.add(packet)
    assert numbers(given_frames) == [0]
    assert assembler.waits
    assert numbers(assembler.expire(packets[-1].arrived_us + STALL_US)) == [3, 4, 5]
    assert not assembler.waits


def test_an_encoder_that_never_sends_key_frames_is_shown_in_the_end() -> None:
    assembler = VideoAssembler(is_key)
    count = KEY_PATIENCE_US // FRAME_US + 10
    given_frames = []
    for packet in film(count, keys=()):
        given_frames += assembler.add(packet)
    assert numbers(given_frames)[0] == KEY_PATIENCE_US // FRAME_US


def test_a_jump_beyond_capacity_starts_anew() -> None:
    packets = film(330, keys=(0, 320))
    assembler = VideoAssembler(is_key, capacity=64)
    given_frames = []
    for packet in packets[:30] + packets[900:]:
        given_frames += assembler.add(packet)
    assert numbers(given_frames) == [*range(10), *range(320, 330)]
    assert assembler.take_key_request()


def test_padding_never_reaches_the_decoder() -> None:
    assembler = VideoAssembler(is_key)
    frames = assembler.add(Packet(1, 0, True, b"K0.0;", 0))
    frames += assembler.add(Packet(2, 3600, True, b"", 1))
    frames += assembler.add(Packet(3, 7200, True, b"d2.0;", 2))
    assert numbers(frames) == [0, 2]


def test_a_lost_decoder_waits_for_the_next_key_frame() -> None:
    packets = film(6, per_frame=1, keys=(0, 4))
    assembler = VideoAssembler(is_key)
    given_frames = assembler.add(packets[0]) + assembler.add(packets[1])
    assembler.lose(packets[1].arrived_us)
    assert assembler.take_key_request()
    for packet in packets[2:]:
        given_frames += assembler.add(packet)
    assert numbers(given_frames) == [0, 1, 4, 5]


def sound(count: int) -> list[Packet]:
    return [Packet((65_530 + i) % 65_536, i * 960, False, b"%d" % i, i * 20_000) for i in range(count)]


def heard(frames: list[EncodedFrame]) -> list[int]:
    return [int(frame.data) for frame in frames]


def test_sound_in_order_is_never_held_back() -> None:
    reorderer = AudioReorderer()
    for index, packet in enumerate(sound(20)):
        assert heard(reorderer.add(packet)) == [index]
    assert not reorderer.waits


def test_sound_swapped_on_the_way_is_put_right() -> None:
    packets = sound(8)
    packets[3], packets[4] = packets[4], packets[3]
    reorderer = AudioReorderer()
    frames = []
    for packet in packets:
        frames += reorderer.add(packet)
    assert heard(frames) == list(range(8))
    assert reorderer.skipped == 0


@pytest.mark.parametrize("lost", [1, 3, 8])
def test_lost_sound_is_skipped_after_its_patience(lost: int) -> None:
    packets = [p for i, p in enumerate(sound(30)) if not 10 <= i < 10 + lost]
    reorderer = AudioReorderer(patience_us=40_000)
    frames, delays = [], []
    for packet in packets:
        got = reorderer.add(packet)
        frames += got
        delays += [packet.arrived_us - int(f.data) * 20_000 for f in got]
    assert heard(frames) == [i for i in range(30) if not 10 <= i < 10 + lost]
    assert max(delays) <= 40_000
    assert reorderer.skipped == lost


def test_sound_that_comes_after_it_was_given_up_is_not_heard_again() -> None:
    packets = sound(12)
    reorderer = AudioReorderer(patience_us=40_000)
    frames = []
    for packet in [*packets[:4], *packets[5:], packets[4]]:
        frames += reorderer.add(packet)
    assert heard(frames) == [0, 1, 2, 3, *range(5, 12)]


def test_the_last_words_are_set_free_by_time() -> None:
    packets = sound(6)
    reorderer = AudioReorderer(patience_us=40_000)
    for packet in [*packets[:3], *packets[4:]]:
        reorderer.add(packet)
    assert heard(reorderer.expire(packets[-1].arrived_us + 40_000)) == [4, 5]


@given(steps=st.lists(st.integers(-1000, 1000), max_size=60), first=st.integers(0, 65_535))
def test_an_unwrapped_counter_goes_as_the_true_one(steps: list[int], first: int) -> None:
    unwrapper = Unwrapper(16)
    true = first
    assert unwrapper.unwrap(first) == first
    for step in steps:
        true += step
        assert unwrapper.unwrap(true % 65_536) == true


def test_key_frames_are_told_from_others() -> None:
    assert h264_is_key(b"\0\0\0\1\x67abc\0\0\0\1\x68d\0\0\1\x65xyz")
    assert not h264_is_key(b"\0\0\0\1\x41abc\0\0\1\x06")
    assert not h264_is_key(b"")
    assert vp8_is_key(b"\x10\x02\x00\x9d\x01\x2a\x40\x01")
    assert not vp8_is_key(b"\x11\x02\x00\x9d\x01\x2a\x40\x01")
    assert not vp8_is_key(b"\x10\x02\x00\x00\x00\x00\x00")
