"""The whole engine: it follows the voice, leaves the rest alone, and any split gives the same frames."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest

from retalk_models.engine import EngineOptions, EngineOutput, EngineWindow, FaceState, Idle, Rung
from retalk_models.face.geometry import ObservedFace, lip_opening
from retalk_models.face.presence import Presence
from retalk_models.face.tracker import FaceTracker, TrackedFace
from retalk_models.face.watch import Sighting
from retalk_models.picture import F32, Picture
from retalk_models.talkin import engine as engine_room
from retalk_models.talkin.engine import TalkinEngine
from retalk_models.talkin.own_mouth import OwnMouth
from tests.retalk_models.faces import BASIS, ToldSpeech, dub, frames, noise, portrait, pose, session

WAVE = (0.06 + 0.06 * np.sin(np.arange(400) / 2.5)).astype(np.float32)
SHUT = np.zeros(400, np.float32)


def swaying(count: int, size: tuple[int, int] = (512, 512)) -> list[Picture]:
    return [portrait(*size, x=round(10 * np.sin(i / 5)), y=round(4 * np.cos(i / 4))) for i in range(count)]


def openings(outputs: list[EngineOutput]) -> F32:
    """Re-tracked by a fresh landmarker."""
    tracker = FaceTracker()
    found = [tracker.track(output.picture) for output in outputs]
    tracker.close()
    return np.array([np.nan if face is None else lip_opening(face.points) for face in found], np.float32)


def test_the_dubbed_mouth_follows_the_voice() -> None:
    engine = session(WAVE)
    outputs = dub(engine, frames(swaying(60)))
    engine.close()
    seen = openings(outputs)[8:]
    assert np.corrcoef(seen, WAVE[8:60])[0, 1] > 0.9
    assert seen.min() < 0.03
    assert seen.max() > 0.055


def test_the_voice_is_heard_while_the_face_is_tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, seen = session(WAVE), threading.Event()
    push, look = engine._stream.push, engine._watch.look

    def hear(pcm: F32) -> None:
        assert seen.wait(20), "tracking waits for hearing"
        push(pcm)

    def track(picture: Picture, elapsed_s: float) -> Sighting:
        seen.set()
        return look(picture, elapsed_s)

    monkeypatch.setattr(engine._stream, "push", hear)
    monkeypatch.setattr(engine._watch, "look", track)
    assert len(dub(engine, frames(swaying(1)))) == 1
    engine.close()


def test_a_window_that_fails_in_tracking_ends_after_its_hearing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, seen, done = session(WAVE), threading.Event(), threading.Event()

    def hear(pcm: F32) -> None:
        assert seen.wait(20)
        done.set()

    def track(picture: Picture, elapsed_s: float) -> Sighting:
        seen.set()
        raise RuntimeError("blind")

    monkeypatch.setattr(engine._stream, "push", hear)
    monkeypatch.setattr(engine._watch, "look", track)
    with pytest.raises(RuntimeError, match="blind"):
        dub(engine, frames(swaying(1)))
    assert done.is_set()
    engine.close()
    engine.close()
    assert not any(thread.name.startswith("talkin-hearing") for thread in threading.enumerate())


def test_a_fault_in_hearing_is_the_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = session(WAVE)

    def deaf(pcm: F32) -> None:
        raise RuntimeError("deaf")

    monkeypatch.setattr(engine._stream, "push", deaf)
    for rung in (Rung.FULL, Rung.PASS_THROUGH):
        with pytest.raises(RuntimeError, match="deaf"):
            dub(engine, frames(swaying(1)), rung=rung)
    engine.close()


@pytest.mark.parametrize(("asked", "heard_ms"), [(None, 120), (120, 120), (80, 80)])
def test_the_look_ahead_can_be_chosen(asked: int | None, heard_ms: int) -> None:
    engine = TalkinEngine.load("cpu", rendered=False, look_ahead_ms=asked)
    assert engine.look_ahead_us == 1000 * heard_ms
    assert ("talkin_expression_80.safetensors" in engine.weights) is (heard_ms == 80)
    with pytest.raises(ValueError, match="80 or 120"):
        TalkinEngine.load("cpu", rendered=False, look_ahead_ms=0)


def test_a_face_as_wide_as_the_limit_is_not_drawn_now_sharply_now_softly() -> None:
    engine = session(SHUT)
    shown = []
    for width in (400, 470, 430, 490, 470, 430, 400):
        points = np.zeros((478, 3), np.float32)
        points[454, 0] = width
        face = ObservedFace(points, pose(), points, 0.0)
        shown.append(engine._is_detailed(Sighting(FaceState.TRACKED, 1.0, face, None, True)))
    engine.close()
    assert shown == [True, True, True, False, False, False, True]


def test_every_sample_outside_the_region_is_the_sources() -> None:
    pictures = swaying(8)
    engine = session(WAVE)
    outputs = dub(engine, frames(pictures))
    engine.close()
    for picture, output in zip(pictures, outputs, strict=True):
        box = output.region
        if box is None:
            assert output.picture is picture
            continue
        assert not any(side % 2 for side in box)
        differs = output.picture.y != picture.y
        differs[box.top : box.bottom, box.left : box.right] = False
        assert not differs.any()
        for dubbed, own in ((output.picture.u, picture.u), (output.picture.v, picture.v)):
            differs = dubbed != own
            differs[box.top // 2 : box.bottom // 2, box.left // 2 : box.right // 2] = False
            assert not differs.any()


def test_any_split_into_windows_gives_the_same_frames() -> None:
    pictures = swaying(20)
    results = []
    for group in (1, 2, 5):
        engine = session(WAVE)
        results.append(dub(engine, frames(pictures), group=group))
        engine.close()
    for outputs in results[1:]:
        for one, other in zip(results[0], outputs, strict=True):
            assert np.array_equal(one.picture.planes, other.picture.planes)
            assert (one.face, one.region, one.strength) == (other.face, other.region, other.strength)


def test_strength_fades_in_without_a_jump() -> None:
    engine = session(WAVE)
    strengths = [output.strength for output in dub(engine, frames(swaying(8)))]
    engine.close()
    assert strengths[-1] == 1.0
    assert max(np.diff([0.0, *strengths])) < 0.5


def test_at_rest_the_mouth_shuts_and_stays_shut() -> None:
    engine = session(np.full(400, 0.12, np.float32))
    pictures = swaying(30)
    dub(engine, frames(pictures[:12]))
    outputs = dub(engine, frames(pictures[12:], first=12, active=False), heard=12 * 640 + 1280)
    engine.close()
    seen = openings(outputs)
    # The third frame of silence is 120 ms after the voice ended.
    assert seen[3:].max() < 0.03
    assert all(output.region is not None for output in outputs)


def test_when_idle_follows_the_source_the_frames_come_back_untouched_and_leave_again() -> None:
    engine = session(np.full(400, 0.12, np.float32), Idle.SOURCE)
    pictures = swaying(40)
    speaking = dub(engine, frames(pictures[:10]))
    silent = dub(engine, frames(pictures[10:28], first=10, active=False), heard=10 * 640 + 1280)
    again = dub(engine, frames(pictures[28:], first=28), heard=28 * 640 + 1280)
    engine.close()
    assert speaking[-1].strength == 1.0
    assert silent[-1].region is None
    assert silent[-1].picture is pictures[27]
    assert again[-1].strength == 1.0
    everything = [o.strength for o in (*speaking, *silent, *again)]
    assert np.abs(np.diff(everything)).max() < 0.5


def test_pass_through_passes_through_and_comes_back_by_fading() -> None:
    engine = session(WAVE)
    pictures = swaying(20)
    dub(engine, frames(pictures[:8]))
    passed = dub(engine, frames(pictures[8:12], first=8), rung=Rung.PASS_THROUGH, heard=8 * 640 + 1280)
    after = dub(engine, frames(pictures[12:], first=12), heard=12 * 640 + 1280)
    engine.close()
    assert all(o.region is None and o.strength == 0 for o in passed)
    assert all(o.picture is p for o, p in zip(passed, pictures[8:12], strict=True))
    assert 0 < after[0].strength < 0.5
    assert after[-1].strength == 1.0


@pytest.mark.parametrize("rung", [Rung.NO_RESTORATION, Rung.NO_ENHANCEMENT, Rung.HALF_RATE])
def test_lower_rungs_still_dub(rung: Rung) -> None:
    engine = session(WAVE)
    outputs = dub(engine, frames(swaying(40)), rung=rung)
    engine.close()
    assert np.corrcoef(openings(outputs)[8:], WAVE[8:40])[0, 1] > 0.75
    assert outputs[-1].face is FaceState.TRACKED


def test_half_rate_tracks_and_draws_every_second_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Picture] = []
    track = FaceTracker.track

    def counting(self: FaceTracker, picture: Picture) -> TrackedFace | None:
        looked.append(picture)
        return track(self, picture)

    monkeypatch.setattr(FaceTracker, "track", counting)
    engine = session(WAVE)
    pictures = swaying(24)
    outputs = dub(engine, frames(pictures), rung=Rung.HALF_RATE)
    engine.close()
    assert len(looked) <= 14
    # What is carried over lies where the face is now, not where it was.
    for one, other in pairwise(outputs[12:]):
        assert one.region is not None
        assert other.region is not None
        assert abs(one.region.left - other.region.left) < 12


def test_a_frames_own_mouth_is_shown_while_there_is_time_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    class Told(OwnMouth):
        def look(self, *_: object) -> None:
            looked.append("look")

        def fade(self, *_: object) -> None:
            looked.append("fade")

        def rest(self) -> None:
            looked.append("rest")

    monkeypatch.setattr(engine_room, "OwnMouth", Told)
    engine = session(WAVE)
    dub(engine, frames(swaying(4)))
    assert looked[-3:] == ["look"] * 3
    dub(engine, frames(swaying(8)[4:], first=4), rung=Rung.NO_ENHANCEMENT)
    assert looked[-4:] == ["fade"] * 4
    with monkeypatch.context() as hidden:
        hidden.setattr(Presence, "_judge", lambda *_: FaceState.OCCLUDED)
        dub(engine, frames(swaying(18)[8:], first=8))
    assert looked[-10:-7] == ["fade"] * 3, "of a face with something before it only what was seen before is"
    assert looked[-1] == "rest", "and that not for long"
    dub(engine, frames([noise(512, 512)] * 3, first=18))
    assert "look" not in looked[-3:]
    looked.clear()
    dub(engine, frames(swaying(1), first=21), rung=Rung.PASS_THROUGH)
    engine._forget()
    assert looked == ["rest"] * 2, "what was seen is another time's, or another person's"
    engine.close()


def test_a_cut_to_no_face_and_back_neither_jumps_nor_fails() -> None:
    engine = session(WAVE)
    pictures = [*swaying(8), *[noise(512, 512, i) for i in range(6)], *swaying(10)]
    outputs = dub(engine, frames(pictures))
    engine.close()
    assert outputs[8].strength == 0.0
    assert outputs[8].picture is pictures[8]
    assert outputs[12].face is FaceState.NONE
    assert outputs[-1].strength == 1.0


@pytest.mark.parametrize("size", [(2, 2), (64, 48), (333, 251)])
def test_pictures_of_any_size_and_content_pass(size: tuple[int, int]) -> None:
    engine = session(WAVE)
    pictures = [portrait(*size), Picture.from_rgb(np.zeros((size[1], size[0], 3), np.uint8)), portrait(*size)]
    outputs = dub(engine, frames(pictures))
    engine.close()
    assert [o.picture.width for o in outputs] == [size[0]] * 3


def test_the_size_may_change_within_a_session() -> None:
    engine = session(WAVE)
    outputs = dub(engine, frames([*swaying(6), *swaying(8, (640, 480))]))
    engine.close()
    assert outputs[6].strength < 0.5
    assert outputs[-1].strength == 1.0


def test_a_new_epoch_or_a_jump_restarts_the_voice() -> None:
    told = ToldSpeech(SHUT)
    streams = []

    class Spying(ToldSpeech):
        def open_stream(self):  # type: ignore[no-untyped-def]
            streams.append(told.open_stream())
            return streams[-1]

    engine = TalkinEngine(Spying(SHUT), BASIS, {}).open_session(EngineOptions())
    voice = np.zeros(640, np.float32)
    for start, epoch in ((0, 0), (640, 0), (1280, 1), (1920, 1), (5000, 1)):
        engine.process(EngineWindow((), voice, start, epoch))
    engine.close()
    assert streams[0].restarts == [0, 1280, 5000]
    assert streams[0].pushed == 5 * 640


def test_a_closed_session_says_so_and_closes_twice() -> None:
    engine = session(SHUT)
    engine.close()
    engine.close()
    with pytest.raises(ValueError, match="closed"):
        engine.process(EngineWindow((), np.zeros(0, np.float32), 0, 0))


def test_stages_are_timed() -> None:
    engine = session(WAVE)
    shown = frames(swaying(3))
    result = engine.process(EngineWindow(shown, np.zeros(5000, np.float32), 0, 0))
    engine.close()
    assert set(result.stage_ms) == {"track", "expression", "render", "composite", "enhance"}
    assert result.stage_ms["track"] > 0
    assert result.stage_ms["composite"] > 0


def test_the_bundled_weights_load_and_are_hashed() -> None:
    engine = TalkinEngine.load("cpu")
    assert engine.name == "talkin"
    assert engine.device == "cpu"
    assert engine.look_ahead_us <= 160_000
    assert set(engine.weights) == {
        "talkin_basis.safetensors",
        "talkin_expression.safetensors",
        "talkin_renderer.safetensors",
        "moonshine-voice/tiny-en",
    }
    assert all(len(digest) == 64 for digest in engine.weights.values())


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(ValueError, match=device):
        TalkinEngine.load(device)
