"""References of a session: where they cannot be made, and when a better one takes their place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from retalk_models.engine import EngineOptions, Idle, Template
from retalk_models.face.geometry import Pose
from retalk_models.picture import Box, Picture
from retalk_models.pose_cache import Reference
from retalk_models.videoretalking.references import AGEING, FaceReferences
from retalk_models.videoretalking.scenes import Scene, SceneSource
from retalk_models.videoretalking.session import VideoRetalkingSession
from retalk_models.videoretalking.stages import FaceReference
from tests.retalk_models.videoretalking import synthetic
from tests.retalk_models.videoretalking.cheap import CheapStages
from tests.retalk_models.videoretalking.clip import pictures
from tests.retalk_models.videoretalking.test_engine import Later, run, total, windows

REST = EngineOptions(idle=Idle.REST)


class Maker:
    """Makes references that say what they are, or fails as told. own, canonical: calls so far."""

    def __init__(self, failing: Sequence[str] = ()) -> None:
        self.failing = set(failing)
        self.calls = {"own": 0, "canonical": 0}

    def own(self, scene: Scene) -> FaceReference:
        return self._made("own", 1.0)

    def canonical(self, scene: Scene) -> FaceReference:
        return self._made("canonical", 2.0)

    def _made(self, what: str, value: float) -> FaceReference:
        self.calls[what] += 1
        if what in self.failing:
            raise RuntimeError("CUDA out of memory")
        if f"{what} not finite" in self.failing:
            value = float("inf")
        return FaceReference(torch.full((1, 3, 1, 1), value), torch.zeros(1, 512))


@pytest.fixture(scope="module")
def face(clips: Path) -> list[Picture]:
    return pictures(clips / "open" / "o1_man_glasses_512.mp4", 40, side=384)


@pytest.fixture(scope="module")
def worker() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def source(picture: Picture, yaw: float = 0.0) -> SceneSource:
    turn = [[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]]
    pose = Pose(np.array(turn, np.float32), np.zeros(3, np.float32), 90.0)
    landmarks = synthetic.standard_points()[:, :2] * (90, -90) + (190, 190)
    return SceneSource(picture, landmarks, Box(90, 90, 290, 310), pose, Template.NEUTRAL)


def shown(references: FaceReferences) -> float:
    """1 where the frame itself is the reference, 2 where a canonical one is."""
    for _ in range(4):
        blended = references.blend(0.04)
    return float(blended.features.mean())


@pytest.mark.parametrize("place", ["in place", "beside"])
def test_a_reference_that_could_not_be_made_killed_the_session(
    place: str, face: list[Picture], worker: ThreadPoolExecutor
) -> None:
    stages, maker = CheapStages(), Maker(["canonical"])
    session = VideoRetalkingSession(stages, maker, REST, worker if place == "beside" else None)
    results = []
    for window in windows(face):
        results.append(session.process(window))
        if place == "beside":
            worker.submit(int).result()  # what was ordered is there by now
    assert total(results, "references_failed") == maker.calls["canonical"]
    # Less and less often: at most after 8, 16 ... frames.
    assert 2 <= maker.calls["canonical"] <= 4
    assert all(result.outputs[0].region is not None for result in results)
    assert {float(one.reference.features.mean()) for one in stages.work} == {1.0}, "the frame itself"
    maker.failing.clear()
    results = [result for _ in range(4) for result in run(session, windows(face, start=40))]
    worker.submit(int).result()
    assert maker.calls["canonical"] > 2
    assert float(stages.work[-1].reference.features.mean()) == 2.0, "tried again, and taken"
    session.close()


def test_without_any_reference_frames_pass_through(face: list[Picture]) -> None:
    stages, maker = CheapStages(), Maker(["canonical", "own"])
    session = VideoRetalkingSession(stages, maker, REST, None)
    results = run(session, windows(face))
    assert [result.outputs[0].picture for result in results] == face
    assert total(results, "references_made") == 0
    assert total(results, "references_failed") == maker.calls["canonical"] + maker.calls["own"] <= 16
    session.close()


def test_a_scene_that_cannot_be_cut_is_not_the_frames_fault(
    face: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: SceneSource) -> Scene:
        raise cv2.error("no room")

    monkeypatch.setattr(SceneSource, "cut", fail)
    references = FaceReferences(Maker(), None)
    for _ in range(100):
        references.seek(source(face[0]), 0.04)
    assert not references.ready
    assert 2 <= references.take_counts()["references_failed"] <= 10
    monkeypatch.undo()
    for _ in range(200):
        references.seek(source(face[0]), 0.04)
    assert shown(references) == 2.0


def test_a_reference_that_is_not_finite_is_the_frame_itself(face: list[Picture]) -> None:
    references = FaceReferences(Maker(["canonical not finite"]), None)
    references.seek(source(face[0]), 0.04)
    assert shown(references) == 1.0
    counts = references.take_counts()
    assert (counts["references_made"], counts["references_failed"]) == (1, 1)


def test_a_face_that_is_not_finite_leaves_the_frame_as_it_is(face: list[Picture]) -> None:
    class Broken(CheapStages):
        def speak(self, work: object) -> tuple[list[torch.Tensor], dict[str, float]]:
            faces, taken = super().speak(work)  # type: ignore[arg-type]
            faces[0][0, 0, 300, 100] = float("nan")
            return faces, taken

    session = VideoRetalkingSession(Broken(), Maker(), REST, None)
    results = run(session, windows(face[:4], size=2))
    assert [output.region is None for result in results for output in result.outputs] == [True, False] * 2
    assert total(results, "faces_not_finite") == 2
    session.close()


def test_a_canonical_reference_takes_the_place_of_the_frame_itself(face: list[Picture]) -> None:
    maker = Maker(["canonical"])
    references = FaceReferences(maker, None)
    references.seek(source(face[0]), 0.04)
    assert shown(references) == 1.0
    maker.failing.clear()
    for _ in range(9):
        references.seek(source(face[0]), 0.04)
    assert shown(references) == 2.0
    assert len(references) == 1


def test_a_blurred_reference_stayed_for_ever(face: list[Picture]) -> None:
    blurred = Picture.from_rgb(np.asarray(cv2.GaussianBlur(face[0].rgb(), (0, 0), 6), np.uint8))
    sharp, soft = source(face[0]), source(blurred)
    assert sharp.clarity() > soft.clarity() + 0.4
    assert replace(sharp, picture=darkened(face[0])).clarity() < 0.5 * sharp.clarity()
    maker = Maker()
    references = FaceReferences(maker, None)

    def frames_until_made(of: SceneSource) -> float:
        """Seconds until a reference of this is taken in, at most 60."""
        made = maker.calls["canonical"]
        for count in range(1500):
            if maker.calls["canonical"] > made:
                return count * 0.04
            references.seek(of, 0.04)
        return 60.0

    frames_until_made(soft)
    assert frames_until_made(sharp) < 0.06 / AGEING, "a clearer one within seconds"
    alike = frames_until_made(sharp)
    assert 0.9 * 0.08 / AGEING < alike < 1.2 * 0.08 / AGEING, "its like, for light changes"
    assert frames_until_made(soft) == 60.0, "a worse one never"
    assert len(references) == 1


def test_d_net_failing_later_does_not_cost_what_it_made_before(face: list[Picture]) -> None:
    maker = Maker()
    references = FaceReferences(maker, None)
    references.seek(source(face[0]), 0.04)
    maker.failing = {"canonical"}
    for _ in range(1500):
        references.seek(source(face[0]), 0.04)
    assert references.take_counts()["references_failed"] > 0
    assert shown(references) == 2.0


def darkened(picture: Picture) -> Picture:
    return Picture.from_rgb(np.asarray(picture.rgb() // 8, np.uint8))


def test_a_frame_of_a_turned_head_is_not_taken_for_a_canonical_one(face: list[Picture]) -> None:
    references = FaceReferences(Maker(), None)
    references.seek(source(face[0], yaw=0.55), 0.04)
    assert shown(references) == 2.0
    # Beyond D-Net's reach: its own picture fits better.
    references.seek(source(face[0], yaw=0.9), 0.04)
    assert shown(references) == 1.0


def test_what_waits_to_be_made_goes_with_its_person(face: list[Picture]) -> None:
    later = Later()
    references = FaceReferences(Maker(), later)
    references.seek(source(face[0]), 0.04)
    (first,) = later.waiting
    references.reset()
    assert first[0].cancelled()
    references.seek(source(face[0]), 0.04)
    assert len(later.waiting) == 2
    later.do_all()
    references.seek(source(face[0]), 0.04)
    assert references.take_counts()["references_made"] == 1
    references.close()


def test_references_of_talkin_do_not_age() -> None:
    from retalk_models.pose_cache import PoseCache

    young: PoseCache[int] = PoseCache()
    young.add(Reference(0, 0.0, 0.0, 0.5))
    young.age(1e6)
    assert not young.wants(0.0, 0.0, 0.57)
    ageing: PoseCache[int] = PoseCache(ageing=0.01)
    ageing.add(Reference(0, 0.0, 0.0, 0.5))
    assert not ageing.wants(0.0, 0.0, 0.57)
    ageing.age(2.0)
    assert ageing.wants(0.0, 0.0, 0.57)
    assert not ageing.wants(0.0, 0.0, 0.55)
    ageing.age(1e6)
    assert ageing.wants(0.0, 0.0, 0.5)
    assert not ageing.wants(0.0, 0.0, 0.47)
