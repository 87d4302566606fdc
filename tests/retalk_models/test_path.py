"""Dynamic programming: what must hold of any costs, and what it is worth on tracks like those of a mouth."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retalk_models.talkin.path import (
    F64,
    FixedLag,
    Loop,
    best_path,
    first_of_best,
    path_cost,
    reference_moves,
)

SHUT = 0.02
Track = tuple[list[F64], list[F64]]


@st.composite
def tracks(draw: st.DrawFn, most: int = 9) -> Track:
    """Any costs over a few states; some moves forbidden, standing still never."""
    count, frames = draw(st.integers(1, 4)), draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    states = [rng.integers(0, 10, count).astype(np.float64) for _ in range(frames)]
    moves = []
    for _ in range(frames - 1):
        move = rng.integers(0, 10, (count, count)).astype(np.float64)
        move[rng.random((count, count)) < 0.25] = np.inf
        np.fill_diagonal(move, 0.0)
        moves.append(move)
    return states, moves


def emitted(track: Track, lag: int) -> list[int]:
    states, moves = track
    path = FixedLag(lag)
    out = []
    for index, state in enumerate(states):
        found = path.push(state, moves[index - 1] if index else None)
        if found is not None:
            out.append(found)
        assert len(out) == max(0, index + 1 - lag)
    return out + path.finish()


def greedy(track: Track) -> list[int]:
    states, moves = track
    path = [int(states[0].argmin())]
    for state, move in zip(states[1:], moves, strict=True):
        path.append(int((move[path[-1]] + state).argmin()))
    return path


@settings(max_examples=150, deadline=None)
@given(tracks(most=5))
def test_best_path_is_the_cheapest_of_all(track: Track) -> None:
    states, moves = track
    everything = product(range(len(states[0])), repeat=len(states))
    path, cost = best_path(states, moves)
    assert cost == pytest.approx(min(path_cost(one, states, moves) for one in everything))
    assert path_cost(path, states, moves) == pytest.approx(cost)


@settings(max_examples=150, deadline=None)
@given(tracks(), st.integers(0, 4))
def test_a_lag_that_covers_the_clip_gives_the_optimum(track: Track, more: int) -> None:
    states, moves = track
    _, best = best_path(states, moves)
    got = emitted(track, len(states) - 1 + more)
    assert path_cost(got, states, moves) == pytest.approx(best)


@settings(max_examples=200, deadline=None)
@given(tracks(), st.integers(0, 8))
def test_no_lag_beats_the_optimum_or_does_what_is_forbidden(track: Track, lag: int) -> None:
    states, moves = track
    got = emitted(track, lag)
    assert len(got) == len(states)
    cost = path_cost(got, states, moves)
    assert np.isfinite(cost)
    assert cost >= best_path(states, moves)[1] - 1e-9


@settings(max_examples=80, deadline=None)
@given(tracks(), st.integers(0, 4), st.integers(1, 8))
def test_what_was_emitted_does_not_change_with_what_comes_later(track: Track, lag: int, cut: int) -> None:
    states, moves = track
    whole = emitted(track, lag)
    path = FixedLag(lag)
    early = [path.push(s, moves[i - 1] if i else None) for i, s in enumerate(states[:cut])]
    known = [state for state in early if state is not None]
    assert known == whole[: len(known)]


def test_no_lag_at_all_is_greedy() -> None:
    track = like_a_mouth(3)
    assert emitted(track, 0) == greedy(track)


def like_a_mouth(seed: int, count: int = 8, frames: int = 300) -> Track:
    """Pose drifts, lips open and shut as in speech, references have poses and openings of their own."""
    rng = np.random.default_rng(seed)
    kernel = np.hanning(41) / np.hanning(41).sum()
    pose = np.stack([np.convolve(rng.normal(0, 1.2, frames + 40), kernel, "valid") for _ in range(2)], 1)
    opening = np.maximum(0, np.convolve(rng.normal(0.012, 0.11, frames + 6), np.hanning(7) / 4, "valid"))
    at, apart = rng.normal(0, 0.35, (count, 2)), rng.uniform(0, 1, (count, count))
    apart = (apart + apart.T) / 2
    np.fill_diagonal(apart, 0)
    quality = rng.uniform(0, 0.3, count)
    states = [quality + np.abs(at - p).sum(1) for p in pose]
    moves = [reference_moves(apart, float(o), SHUT, 0.4, 0.4) for o in opening[1:]]
    return states, moves


def excess(track: Track, path: list[int]) -> float:
    states, moves = track
    return path_cost(path, states, moves) / best_path(states, moves)[1] - 1


def test_three_frames_of_lag_come_within_15_percent_and_beat_greedy() -> None:
    found = [like_a_mouth(seed) for seed in range(12)]
    by_lag = {
        lag: float(np.mean([excess(one, emitted(one, lag)) for one in found])) for lag in (0, 1, 2, 3, 10)
    }
    alone = float(np.mean([excess(one, greedy(one)) for one in found]))
    print(by_lag, alone)
    assert by_lag[3] < 0.15
    assert by_lag[3] < alone
    assert by_lag[10] < by_lag[3] < by_lag[1]


def foreseen(track: Track, ahead: int) -> list[int]:
    """As the engine has it: decided at once, from a pose that is held and the next frame's opening."""
    states, moves = track
    out: list[int] = []
    for index, state in enumerate(states):
        rest = min(ahead, len(states) - 1 - index)
        before = moves[index - 1][out[-1]] if index else None
        out.append(first_of_best([state] * (rest + 1), [moves[min(index, len(moves) - 1)]] * rest, before))
    return out


def test_foreseeing_three_frames_costs_no_delay_and_little_more() -> None:
    found = [like_a_mouth(seed) for seed in range(12)]
    nested = float(np.mean([excess(one, foreseen(one, 3)) for one in found]))
    assert nested < 0.15
    assert nested < 0.5 * float(np.mean([excess(one, greedy(one)) for one in found]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 6))
def test_references_never_switch_while_lips_are_open(seed: int, lag: int) -> None:
    track = like_a_mouth(seed, frames=80)
    got = emitted(track, lag)
    for (before, after), move in zip(pairwise(got), track[1], strict=True):
        if np.isinf(move).any():
            assert before == after


def test_foreseen_frames_make_a_switch_worth_its_price() -> None:
    better = np.array([1.0, 0.6])
    move = reference_moves(np.zeros((2, 2)), 0.0, SHUT, 1.0, 0.0)
    assert first_of_best([better], [], move[0]) == 0
    assert first_of_best([better] * 4, [move] * 3, move[0]) == 1
    # Open lips ahead: the last moment at which the switch does not show is now.
    opened = reference_moves(np.zeros((2, 2)), 0.1, SHUT, 1.0, 0.0)
    assert first_of_best([better] * 4, [opened] * 3, move[0]) == 1
    assert first_of_best([better] * 4, [move] * 3, opened[0]) == 0


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="no path"):
        best_path([np.zeros(2), np.zeros(2)], [np.full((2, 2), np.inf)])
    with pytest.raises(ValueError, match="0 moves"):
        best_path([np.zeros(2)], [np.zeros((2, 2))])
    with pytest.raises(ValueError, match="at least 0"):
        FixedLag(-1)
    path = FixedLag(1)
    path.push(np.zeros(2))
    with pytest.raises(ValueError, match="moving"):
        path.push(np.zeros(2))


def test_a_path_may_begin_anew_after_its_end() -> None:
    path = FixedLag(2)
    for _ in range(2):
        assert path.push(np.array([0.0, 1.0])) is None
        assert path.finish() == [0]


def film() -> Loop:
    """60 frames: the presenter speaks from 10 to 40 and nods along a circle that comes back to its start."""
    at = np.arange(60)
    motion = 8 * np.stack([np.cos(2 * np.pi * at / 30), np.sin(2 * np.pi * at / 30)], 1)
    return Loop(motion, ((at >= 10) & (at < 40)).astype(np.float64))


def retimed(loop: Loop, voice: list[float], lag: int = 8) -> list[int]:
    moves = loop.moves(cut=1.5, turn=0.5)
    path = FixedLag(lag)
    out = [path.push(loop.states(speaking), moves if index else None) for index, speaking in enumerate(voice)]
    return [state for state in out if state is not None] + path.finish()


def test_a_loop_that_agrees_with_the_voice_runs_on() -> None:
    loop = film()
    assert retimed(loop, list(loop.activity)) == list(range(60))


def test_a_loop_follows_another_voice_and_cuts_where_the_head_is_alike() -> None:
    loop = film()
    voice = [0.0] * 5 + [1.0] * 50 + [0.0] * 10
    shown = retimed(loop, voice)
    agree = np.mean([loop.activity[k] == v for k, v in zip(shown, voice, strict=True)])
    assert agree > 0.85
    cuts = [(a, b) for a, b in pairwise(shown) if b != min(a + 1, 59)]
    assert 1 <= len(cuts) <= 6
    usual = float(np.linalg.norm(loop.motion[1] - loop.motion[0]))
    jumps = [float(np.linalg.norm(loop.motion[min(a + 1, 59)] - loop.motion[b])) for a, b in cuts]
    assert max(jumps) < 3 * usual
