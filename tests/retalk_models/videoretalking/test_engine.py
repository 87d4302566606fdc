"""The engine around its nets: a real face tracked, stages that cost nothing and tell what they were asked."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from retalk_models.engine import (
    BatchEngine,
    EngineFrame,
    EngineOptions,
    EngineResult,
    EngineWindow,
    FaceState,
    Idle,
    Rung,
    Template,
)
from retalk_models.face.geometry import Pose
from retalk_models.picture import F32, Box, Picture
from retalk_models.videoretalking.engine import VideoRetalkingEngine
from retalk_models.videoretalking.references import FaceReferences
from retalk_models.videoretalking.scenes import ReferenceMaker, SceneSource
from retalk_models.videoretalking.session import VideoRetalkingSession
from retalk_models.videoretalking.stages import BUCKETS, run_bucketed
from tests.retalk_models.videoretalking import synthetic
from tests.retalk_models.videoretalking.cheap import CheapStages
from tests.retalk_models.videoretalking.clip import pictures

STEP = 640
"""Samples per frame at 25 frames a second."""

PATIENT = EngineOptions(idle=Idle.REST, patient=True)


@pytest.fixture(scope="module")
def face(clips: Path) -> list[Picture]:
    """Eight seconds of a talking head."""
    return pictures(clips / "open" / "o1_man_glasses_512.mp4", 200, side=384)


def voice(samples: int, loud: float = 0.2) -> F32:
    return np.asarray(np.random.default_rng(0).normal(scale=loud, size=samples), np.float32)


def windows(
    shown: Sequence[Picture],
    rung: Rung = Rung.FULL,
    active: bool = True,
    size: int = 1,
    start: int = 0,
    sound: F32 | None = None,
) -> Iterator[EngineWindow]:
    """A clip at 25 frames a second as windows of `size` frames, frame `start` being its first."""
    ahead = 3400
    if sound is None:
        sound = voice((start + len(shown)) * STEP + ahead)
    said = start * STEP
    for first in range(0, len(shown), size):
        some = shown[first : first + size]
        frames = tuple(
            EngineFrame(one, (start + first + index) * 40_000, (start + first + index) * STEP, active)
            for index, one in enumerate(some)
        )
        until = frames[-1].voice_at + ahead
        yield EngineWindow(frames, sound[said:until], said, 0, rung)
        said = until


def run(session: VideoRetalkingSession, work: Iterator[EngineWindow]) -> list[EngineResult]:
    return [session.process(window) for window in work]


def opened(options: EngineOptions = PATIENT) -> tuple[VideoRetalkingSession, CheapStages]:
    stages = CheapStages()
    return VideoRetalkingEngine(stages, {}).open_session(options), stages


def total(results: Sequence[EngineResult], what: str) -> int:
    return sum(result.counts[what] for result in results)


def test_a_talking_head_is_dubbed_and_everything_else_is_its_own(face: list[Picture]) -> None:
    session, stages = opened()
    results = run(session, windows(face[:12]))
    outputs = [output for result in results for output in result.outputs]
    assert [output.face for output in outputs] == [FaceState.TRACKED] * 12
    strengths = [output.strength for output in outputs]
    assert strengths == sorted(strengths)
    assert strengths[-1] == 1.0
    for picture, output in zip(face, outputs, strict=False):
        box = output.region
        assert box is not None
        assert all(value % 2 == 0 for value in box)
        outside = np.ones_like(picture.planes[: picture.padded_height], bool)
        outside[box.top : box.bottom, box.left : box.right] = False
        assert np.array_equal(picture.y[outside], output.picture.y[outside])
        halves = (
            (outside[::2, ::2], picture.u, output.picture.u),
            (outside[::2, ::2], picture.v, output.picture.v),
        )
        assert all(np.array_equal(before[mask], after[mask]) for mask, before, after in halves)
        # The brows and the eyes are in the box, and stay too.
        upper = slice(box.top, box.top + box.height // 4), slice(box.left, box.right)
        assert np.array_equal(picture.y[upper], output.picture.y[upper])
    changed = np.abs(face[11].y.astype(int) - outputs[11].picture.y.astype(int))
    assert changed.max() > 20
    assert {one.noise is not None for one in stages.work} == {True}
    session.close()
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.process(next(windows(face[:1])))


def test_d_net_runs_on_a_miss_only_and_hits_come_fast(face: list[Picture]) -> None:
    session, stages = opened()
    results = run(session, windows(face))
    assert stages.asked.count("canonical") == total(results, "references_made") <= 12
    assert stages.asked.count("coefficients") == stages.asked.count("canonical")
    for result in results:
        if result.counts["references_made"] == 0:
            assert result.counts["reference_misses"] == 0
    late = results[75:]
    assert total(late, "reference_hits") / len(late) > 0.9
    # The template stands in all 26 columns; the pose is the coefficient net's.
    assert bool((stages.semantics[0][:, :64] == 0).all())
    assert bool((stages.semantics[0][:, 64:70] == 0.25).all())


def test_the_smile_is_another_template(face: list[Picture]) -> None:
    session, stages = opened(EngineOptions(template=Template.SMILE, patient=True))
    run(session, windows(face[:2]))
    assert bool((stages.semantics[0][:, :64] == 1).all())


def test_chunks_equal_the_whole(face: list[Picture]) -> None:
    one, _ = opened()
    many, _ = opened()
    alone = [o for result in run(one, windows(face[:12])) for o in result.outputs]
    together = [o for result in run(many, windows(face[:12], size=4)) for o in result.outputs]
    for a, b in zip(alone, together, strict=True):
        assert a.region == b.region
        assert np.array_equal(a.picture.planes, b.picture.planes)


def test_rungs_leave_out_what_they_say(face: list[Picture]) -> None:
    session, stages = opened()
    run(session, windows(face[:8]))
    stages.work.clear()
    run(session, windows(face[8:12], Rung.NO_ENHANCEMENT, start=8))
    assert [one.noise for one in stages.work] == [None] * 4
    stages.work.clear()
    halves = run(session, windows(face[12:18], Rung.HALF_RATE, start=12))
    assert len(stages.work) == 3
    assert all(result.outputs[0].region is not None for result in halves)
    stages.work.clear()
    passed = run(session, windows(face[18:20], Rung.PASS_THROUGH, start=18))
    assert stages.work == []
    assert all(result.outputs[0].picture is one for result, one in zip(passed, face[18:20], strict=True))


def test_silence_leaves_the_source_or_rests_on_silent_columns(face: list[Picture]) -> None:
    source, stages = opened(EngineOptions(idle=Idle.SOURCE, patient=True))
    results = run(source, windows(face[:6], active=False))
    assert [result.outputs[0].region for result in results] == [None] * 6
    assert stages.work == []
    assert stages.asked.count("canonical") >= 1, "a reference is ready before speech begins"
    rest, stages = opened()
    run(rest, windows(face[:6], active=False))
    assert [float(one.mel.max()) for one in stages.work] == [-4.0] * len(stages.work)


def test_an_epoch_restarts_the_voice(face: list[Picture]) -> None:
    session, stages = opened()
    first, second = windows(face[:2])
    session.process(first)
    quiet = np.zeros(len(second.voice) + 4000, np.float32)
    session.process(EngineWindow(second.frames, quiet, STEP - 1000, 1))
    assert float(stages.work[0].mel.max()) > -1
    # Even the columns that the old voice had reached.
    assert float(stages.work[1].mel.max()) == pytest.approx(-4.0)


def test_a_cut_forgets_the_person(face: list[Picture], clips: Path) -> None:
    session, stages = opened()
    run(session, windows(face[:6]))
    other = pictures(clips / "open" / "o2_woman_blue_700_vfr22.mp4", 6, side=384)
    asked = len(stages.asked)
    results = run(session, windows(other, start=6))
    assert "canonical" in stages.asked[asked:]
    assert results[0].outputs[0].strength < 0.3
    colours = stages.work[5].reference.features, stages.work[-1].reference.features
    assert not torch.allclose(*colours, atol=0.01)


class Later(Executor):
    """Does nothing until told."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Any, Any]] = []

    def submit(self, work: Any, /, *args: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, work, args))
        return future

    def do_all(self) -> None:
        for future, work, args in self.waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(work(*args))
        self.waiting.clear()


def test_live_frames_do_not_wait_for_d_net(face: list[Picture]) -> None:
    stages, later = CheapStages(), Later()
    engine = VideoRetalkingEngine(stages, {})
    session = VideoRetalkingSession(stages, engine._maker, EngineOptions(idle=Idle.REST), later)
    before = run(session, windows(face[:8]))
    assert "canonical" not in stages.asked
    assert len(later.waiting) == 1, "one at a time, however many frames miss"
    assert before[-1].outputs[0].region is not None
    assert total(before, "reference_misses") == 8
    own = stages.work[-1].reference.features
    later.do_all()
    after = run(session, windows(face[8:16], start=8))
    assert total(after, "reference_hits") == 8
    assert total(after, "references_made") == 1
    # Over three frames, not at once.
    shown = [float((one.reference.features - own).abs().max()) for one in stages.work[8:]]
    assert shown[0] == pytest.approx(shown[2] / 3, rel=0.01)
    assert shown[1] == pytest.approx(shown[2] * 2 / 3, rel=0.01)
    assert shown[2] == shown[-1]
    session.close()


def test_a_head_turned_too_far_for_d_net_is_its_own_reference(face: list[Picture]) -> None:
    stages = CheapStages()
    references = FaceReferences(ReferenceMaker(stages), None)
    landmarks = synthetic.standard_points()[:, :2] * (90, -90) + (190, 190)
    for yaw, made in ((0.5, "canonical"), (0.7, "reference"), (-0.7, "reference")):
        turn = np.array(
            [[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]], np.float32
        )
        pose = Pose(turn, np.zeros(3, np.float32), 90.0)
        assert pose.yaw == pytest.approx(yaw)
        stages.asked.clear()
        references.seek(SceneSource(face[0], landmarks, Box(90, 90, 290, 310), pose, Template.NEUTRAL))
        assert made in stages.asked
        assert ("canonical" in stages.asked) == (made == "canonical")
        references.seek(SceneSource(face[0], landmarks, Box(90, 90, 290, 310), pose, Template.NEUTRAL))
    assert references.take_counts() == {
        "reference_hits": 3,
        "reference_misses": 3,
        "references_made": 3,
        "references_failed": 0,
    }


def test_what_is_made_for_a_person_who_left_is_not_taken(face: list[Picture]) -> None:
    stages, later = CheapStages(), Later()
    session = VideoRetalkingSession(
        stages, VideoRetalkingEngine(stages, {})._maker, EngineOptions(idle=Idle.REST), later
    )
    run(session, windows(face[:2]))
    session._forget_person()
    later.do_all()
    results = run(session, windows(face[2:3], start=2))
    assert total(results, "references_made") == 0
    session.close()


def test_windows_of_several_sessions_are_drawn_together(face: list[Picture]) -> None:
    stages = CheapStages()
    engine = VideoRetalkingEngine(stages, {})
    assert isinstance(engine, BatchEngine)
    alone, _ = opened()
    want = run(alone, windows(face[:6]))
    sessions = [engine.open_session(PATIENT) for _ in range(3)]
    sessions[2].close()
    for place, window in enumerate(windows(face[:6])):
        results = engine.process_many([(session, window) for session in sessions])
        for result in results[:2]:
            assert isinstance(result, EngineResult)
            assert np.array_equal(result.outputs[0].picture.planes, want[place].outputs[0].picture.planes)
            assert result.stage_ms["enhancement"] == 1.0, "half of what the batch took"
        assert isinstance(results[2], ValueError)


def test_a_closed_engine_leaves_no_thread_and_nothing_to_be_made(face: list[Picture]) -> None:
    engine = VideoRetalkingEngine(CheapStages(), {})
    session = engine.open_session(EngineOptions(idle=Idle.REST))
    run(session, windows(face[:4]))
    engine.close()
    engine.close()
    threads = [*engine._worker._threads, *engine._trackers._threads]
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)
    # A session that outlives it has what it has.
    session._forget_person()
    results = run(session, windows(face[4:8], start=4))
    assert total(results, "references_failed") == 1
    assert results[-1].outputs[0].region is not None
    session.close()


def test_a_batch_is_filled_up_to_what_was_captured() -> None:
    asked: list[int] = []

    def graph(x: Tensor, y: Tensor) -> Tensor:
        asked.append(len(x))
        return x + y

    graphs: Any = dict.fromkeys(BUCKETS, graph)
    x = torch.arange(5.0)[:, None]
    assert torch.equal(run_bucketed(graphs, graph, x, 2 * x), 3 * x)
    assert torch.equal(run_bucketed(graphs, graph, x[:2], x[:2]), 2 * x[:2])
    assert asked == [8, 2]


def test_nobody_in_the_picture_passes_through() -> None:
    session, stages = opened()
    grey = Picture.from_rgb(np.full((240, 320, 3), 128, np.uint8))
    results = run(session, windows([grey] * 3))
    assert [result.outputs[0].picture for result in results] == [grey] * 3
    assert stages.asked == []


def test_nothing_grows(face: list[Picture]) -> None:
    session, stages = opened()
    there_and_back = face[:12] + face[11::-1]
    sound = voice(8 * 24 * STEP)
    held: list[int] = []
    for lap in range(6):
        for window in windows(there_and_back, start=24 * lap, sound=sound):
            session.process(window)
            stages.work.clear()
            stages.semantics.clear()
        gc.collect()
        held.append(psutil.Process().memory_info().rss)
    assert held[-1] - held[2] < 8_000_000, f"grew in 72 frames: {held}"
