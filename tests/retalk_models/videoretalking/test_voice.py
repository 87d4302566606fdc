"""The voice of a session: bounded in any state, restarted where it does not go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retalk_models.engine import EngineFrame, EngineOptions, EngineWindow, FaceState, Idle, Rung
from retalk_models.face.watch import Sighting
from retalk_models.picture import F32, Picture
from retalk_models.videoretalking.engine import VideoRetalkingEngine
from retalk_models.videoretalking.mel import COLUMNS, LOOK_AHEAD
from retalk_models.videoretalking.session import VideoRetalkingSession
from retalk_models.videoretalking.voice import VoiceColumns
from tests.retalk_models.videoretalking.cheap import CheapStages
from tests.retalk_models.videoretalking.clip import pictures

STEP = 640
GREY = Picture.from_rgb(np.full((64, 64, 3), 128, np.uint8))


def window(place: int, picture: Picture = GREY, rung: Rung = Rung.FULL, active: bool = True) -> EngineWindow:
    """The place-th window of one frame of a silent voice at 25 frames a second."""
    until = place * STEP + LOOK_AHEAD
    said = until - STEP if place else 0
    frame = EngineFrame(picture, place * 40_000, place * STEP, active)
    return EngineWindow((frame,), np.zeros(until - said, np.float32), said, 0, rung)


def nothing_seen(session: VideoRetalkingSession, picture: Picture) -> None:
    sighting = Sighting(FaceState.NONE, 0.0, None, None, False)
    session._watch.look = lambda picture, elapsed_s: sighting  # type: ignore[method-assign]


def the_same_face_seen(session: VideoRetalkingSession, picture: Picture) -> None:
    sighting = session._watch.look(picture, 0.0)
    assert sighting.face is not None
    sighting = replace(sighting, strength=1.0)
    session._watch.look = lambda picture, elapsed_s: sighting  # type: ignore[method-assign]


def as_it_is(session: VideoRetalkingSession, picture: Picture) -> None:
    pass


@pytest.mark.parametrize(
    ("see", "rung", "active"),
    [
        (as_it_is, Rung.PASS_THROUGH, True),
        (nothing_seen, Rung.FULL, True),
        (the_same_face_seen, Rung.FULL, False),
    ],
    ids=["passed through", "no face", "silence"],
)
def test_the_voice_grew_without_bound_where_nothing_was_drawn(
    see: Callable[[VideoRetalkingSession, Picture], None], rung: Rung, active: bool, clips: Path
) -> None:
    (picture,) = pictures(clips / "open" / "o1_man_glasses_512.mp4", 1, side=192)
    stages = CheapStages()
    session = VideoRetalkingEngine(stages, {}).open_session(EngineOptions(Idle.SOURCE, patient=True))
    see(session, picture)
    for place in range(10_000):
        session.plan(window(place, picture, rung, active))
        assert len(session._voice._columns) <= COLUMNS + 1
    assert stages.work == []
    session.close()


def test_columns_let_go_unheard_leave_the_rest_in_place() -> None:
    sound = np.random.default_rng(0).normal(scale=0.1, size=60 * STEP + LOOK_AHEAD).astype(np.float32)

    def hear(drawn: range) -> list[F32]:
        voice, out = VoiceColumns(), []
        for place in range(60):
            silent = window(place)
            said = silent.voice_start
            voice.hear(replace(silent, voice=sound[said : said + len(silent.voice)]))
            if place in drawn:
                out.append(voice.at(place * STEP))
        return out

    always, at_last = hear(range(60)), hear(range(50, 60))
    assert all(np.array_equal(a, b) for a, b in zip(always[50:], at_last, strict=True))
