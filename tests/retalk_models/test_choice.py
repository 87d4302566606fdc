"""Which reference supports a frame: steady, in time, and never changed where it shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from retalk_models.picture import F32
from retalk_models.pose_cache import Reference
from retalk_models.talkin.choice import AHEAD, ReferenceChoice
from retalk_models.talkin.references import MouthReferences
from tests.retalk_models.faces import dub, frames, portrait, session

Held = Reference[float]


def look(brightness: float) -> F32:
    return np.full(4, brightness, np.float32)


def reference(yaw: float, brightness: float = 0.5) -> Held:
    return Reference(brightness, yaw, 0.0, 0.8)


def run(yaws: list[float], openings: list[float], states: list[Held]) -> list[Held | None]:
    """Choose frame by frame, three frames foreseen."""
    choice: ReferenceChoice[float] = ReferenceChoice(look)
    out = []
    for index, yaw in enumerate(yaws):

        def cost(one: Held, opening: float, yaw: float = yaw) -> float:
            return abs(one.yaw - yaw)

        out.append(choice.choose(states, cost, openings[index : index + 4]))
    return out


def test_nothing_to_choose_from_is_nothing() -> None:
    choice: ReferenceChoice[float] = ReferenceChoice(look)
    assert choice.choose([], lambda one, opening: 0.0, [0.0]) is None
    assert choice.current is None


def test_the_first_choice_is_the_best_even_with_open_lips() -> None:
    left, right = reference(-0.4), reference(0.4)
    assert run([0.4], [0.1], [left, right]) == [right]


def test_a_change_waits_until_the_lips_are_shut() -> None:
    left, right = reference(-0.4), reference(0.4)
    openings = [0.0] * 4 + [0.1] * 8 + [0.0] * 4
    chosen = run([-0.4] * 5 + [0.4] * 11, openings, [left, right])
    assert chosen[:12] == [left] * 12
    assert chosen[12:] == [right] * 4


def test_a_small_gain_is_not_worth_a_change() -> None:
    left, right = reference(-0.03), reference(0.03)
    assert set(run([-0.03, 0.03] * 20, [0.0] * 40, [left, right])) == {left}


def test_a_change_to_another_look_has_to_be_worth_more() -> None:
    near, alike, other = reference(0.0, 0.5), reference(0.12, 0.5), reference(0.12, 0.9)
    assert run([0.0] + [0.12] * 8, [0.0] * 9, [near, alike])[-1] is alike
    assert run([0.0] + [0.12] * 8, [0.0] * 9, [near, other])[-1] is near


def test_what_the_cache_let_go_stays_until_the_lips_shut() -> None:
    gone, held = reference(0.0), reference(0.5)
    choice: ReferenceChoice[float] = ReferenceChoice(look)

    def cost(one: Held, opening: float) -> float:
        return abs(one.yaw)

    assert choice.choose([gone], cost, [0.0]) is gone
    assert choice.choose([held], cost, [0.1] * 4) is gone
    # Still the better of the two, and still there: letting go of it is its holder's business.
    assert choice.choose([held], cost, [0.0] * 4) is gone
    choice.reset()
    assert choice.current is None
    assert choice.choose([held], cost, [0.1] * 4) is held


def test_the_engine_foresees_what_its_voice_will_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    told = np.array([0.0, 0.02, 0.04, 0.06, 0.08, 0.06, 0.04, 0.02, 0.0, 0.0, 0.0, 0.0], np.float32)
    foreseen: list[list[float]] = []

    def note(self: MouthReferences, openings: Sequence[float]) -> None:
        foreseen.append(list(openings))

    monkeypatch.setattr(MouthReferences, "foresee", note)
    speaking = session(told)
    dub(speaking, frames([portrait()] * 8))
    speaking.close()
    assert len(foreseen) == 8
    # The gate that lets the voice in takes the first two frames.
    for index in range(3, 8):
        assert foreseen[index] == pytest.approx(told[index + 1 : index + 1 + AHEAD].tolist(), abs=1e-6)
