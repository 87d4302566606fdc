"""One session of the engine: watches the face, plans each frame for the stages, puts back what they drew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from retalk_models.engine import (
    EngineFrame,
    EngineOptions,
    EngineOutput,
    EngineResult,
    EngineWindow,
    FaceState,
    Rung,
)
from retalk_models.face.geometry import ObservedFace, aperture, fit_pose, from_canonical, to_canonical
from retalk_models.face.speaking import Gates, SpeakingGates
from retalk_models.face.timing import FrameSteps, StageClock
from retalk_models.face.tracker import ShapeFilter
from retalk_models.face.watch import FaceWatch, Sighting
from retalk_models.picture import F32, Box, Picture
from retalk_models.restore import MouthRestorer
from retalk_models.videoretalking.canvas import as_mask, blacken, face_picture, lay_in, put_back, send, upload
from retalk_models.videoretalking.enet import draw_noise
from retalk_models.videoretalking.framing import BoxTrack, shown_part
from retalk_models.videoretalking.landmarks import sixty_eight
from retalk_models.videoretalking.references import FaceReferences
from retalk_models.videoretalking.scenes import MakesReferences, SceneSource
from retalk_models.videoretalking.stages import FaceWork, Stages
from retalk_models.videoretalking.voice import VoiceColumns

STAGES = ("track", "canonical", "lip_sync", "enhancement", "restoration", "composite")

_VISIBLE = 0.004
"""A dub weaker than this cannot be seen, so the frame is left alone."""


class SteadyFace:
    """A FaceObserver that only fits the pose and steadies the shape."""

    def __init__(self) -> None:
        self._filter = ShapeFilter()

    def observe(self, points: F32, elapsed_s: float) -> ObservedFace:
        """See FaceObserver."""
        pose = fit_pose(points)
        shape = self._filter(to_canonical(points, pose), elapsed_s)
        return ObservedFace(from_canonical(shape, pose), pose, shape, max(0.0, aperture(shape)))

    def reset(self) -> None:
        """Forget the person."""
        self._filter.reset()


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """What is laid into a frame. drawn: (1, 3, S, S) BGR on the device. mask: (1, 1, M, M) of the box."""

    box: Box
    mask: Tensor
    drawn: Tensor

    def shifted(self, shift: F32, frame_size: tuple[int, int]) -> Drawing | None:
        """Moved by whole pairs of pixels; None where it would leave the frame."""
        dx, dy = (2 * int(np.rint(value / 2)) for value in shift)
        box = Box(self.box.left + dx, self.box.top + dy, self.box.right + dx, self.box.bottom + dy)
        if box.left < 0 or box.top < 0 or box.right > frame_size[0] or box.bottom > frame_size[1]:
            return None
        return replace(self, box=box)


@dataclass(slots=True, eq=False)
class FramePlan:
    """One frame on its way. work: for the stages, None where they are not needed.

    shift: how far the last drawing is to be moved and reused instead. points: (478, 3) of the face, if any.
    """

    frame: EngineFrame
    face: FaceState
    strength: float = 0.0
    elapsed_s: float = 0.0
    box: Box | None = None
    mask: Tensor | None = None
    points: F32 | None = None
    work: FaceWork | None = None
    shift: F32 | None = None
    drawn: Tensor | None = None


@dataclass(slots=True, eq=False)
class WindowPlan:
    """A window's frames, and the time that planning them took."""

    rung: Rung
    clock: StageClock
    frames: list[FramePlan] = field(default_factory=list)

    @property
    def work(self) -> list[FramePlan]:
        """Those that the stages must draw."""
        return [plan for plan in self.frames if plan.work is not None]


class VideoRetalkingSession:
    """Used by one thread at a time: `plan` a window, `draw` its work, `finish` it."""

    def __init__(
        self,
        stages: Stages,
        maker: MakesReferences,
        options: EngineOptions,
        worker: Executor | None,
        restorer: MouthRestorer | None = None,
    ) -> None:
        self._stages, self._device, self._options = stages, stages.device, options
        self._references = FaceReferences(maker, worker)
        self._boxes = BoxTrack()
        self._restoring = restorer.open() if restorer is not None else None
        self._watch = FaceWatch(SteadyFace(), self._forget_person)
        self._gates = SpeakingGates(options.idle)
        self._voice = VoiceColumns()
        self._steps = FrameSteps()
        self._noise = draw_noise(options.seed, stages.device)
        self._count = 0
        self._last: Drawing | None = None
        self._closed = False

    def _forget_person(self) -> None:
        self._references.reset()
        self._boxes.reset()
        self._last = None
        if self._restoring is not None:
            self._restoring.reset()

    def process(self, window: EngineWindow) -> EngineResult:
        """See EngineSession. Raises ValueError once closed."""
        plan = self.plan(window)
        return self.finish(plan, draw(self._stages, [plan])[0])

    def close(self) -> None:
        """Give everything back. Idempotent."""
        if not self._closed:
            self._watch.close()
            self._references.close()
            self._last = None
        self._closed = True

    # --- before the stages

    def plan(self, window: EngineWindow) -> WindowPlan:
        """Track a window's frames and say what is to be drawn. Raises ValueError once closed."""
        if self._closed:
            raise ValueError("this engine session is closed")
        plan = WindowPlan(window.rung, StageClock(STAGES))
        with torch.inference_mode():
            with plan.clock.stage("lip_sync"):
                self._voice.hear(window)
            for frame in window.frames:
                plan.frames.append(self._plan_frame(frame, window.rung, plan.clock))
        return plan

    def _plan_frame(self, frame: EngineFrame, rung: Rung, clock: StageClock) -> FramePlan:
        elapsed_s = self._steps.step_s(frame.time_us)
        self._count += 1
        gates = self._gates.update(frame.voice_active, elapsed_s)
        if rung >= Rung.PASS_THROUGH:
            self._last = None
            return FramePlan(frame, self._watch.skip())
        with clock.stage("track"):
            if rung is Rung.HALF_RATE and self._count % 2:
                followed = self._watch.follow(frame.picture)
                if followed is not None:
                    sighting, shift = followed
                    strength = sighting.strength * gates.dub
                    return FramePlan(frame, sighting.state, strength, elapsed_s, shift=shift)
            sighting = self._watch.look(frame.picture, elapsed_s)
        plan = FramePlan(frame, sighting.state, sighting.strength * gates.dub, elapsed_s)
        face = sighting.face
        if face is not None:
            self._plan_face(plan, sighting, face, gates, rung, clock)
        return plan

    def _plan_face(
        self,
        plan: FramePlan,
        sighting: Sighting,
        face: ObservedFace,
        gates: Gates,
        rung: Rung,
        clock: StageClock,
    ) -> None:
        """Fill in what is to be drawn on a face that was found or carried over."""
        picture = plan.frame.picture
        size = (picture.padded_width, picture.padded_height)
        box = self._boxes(face.points, size, plan.elapsed_s)
        if box is None:
            return
        landmarks = sixty_eight(face.points)
        with clock.stage("canonical"):
            if sighting.tracked:
                source = SceneSource(picture, landmarks, box, face.pose, self._options.template)
                self._references.seek(source, plan.elapsed_s)
            if plan.strength < _VISIBLE or not self._references.ready:
                return
            reference = self._references.blend(plan.elapsed_s)
        with clock.stage("composite"):
            masked = blacken(face_picture(upload(picture, box, self._device)))
            plan.box, plan.points = box, face.points
            plan.mask = as_mask(shown_part(landmarks, box), self._device)
        heard = torch.from_numpy(self._voice.at(plan.frame.voice_at, gates.voice))
        mel = send(heard, self._device)[None]
        noise = self._noise if rung < Rung.NO_ENHANCEMENT else None
        plan.work = FaceWork(mel, masked, reference, noise)

    # --- after the stages

    def finish(self, plan: WindowPlan, stage_ms: Mapping[str, float]) -> EngineResult:
        """The window's result, once every `work` has its `drawn`. stage_ms: what the stages took for it."""
        clock = plan.clock
        with torch.inference_mode():
            outputs = tuple(self._finish_frame(one, plan.rung, clock) for one in plan.frames)
        for stage, milliseconds in stage_ms.items():
            clock.milliseconds[stage] += milliseconds
        lost = sum(one.work is not None and one.drawn is None for one in plan.frames)
        counts = self._references.take_counts() | {"faces_not_finite": lost}
        return EngineResult(outputs, clock.milliseconds, counts)

    def _finish_frame(self, plan: FramePlan, rung: Rung, clock: StageClock) -> EngineOutput:
        picture = plan.frame.picture
        drawing = self._drawing(plan, picture)
        self._last = drawing
        if drawing is None or plan.strength < _VISIBLE:
            return EngineOutput(picture, plan.face, None, 0.0)
        if self._restoring is not None and rung < Rung.NO_RESTORATION and plan.points is not None:
            with clock.stage("restoration"):
                drawn = self._restoring.restore(drawing.drawn, drawing.box, plan.points, plan.elapsed_s)
                drawing = replace(drawing, drawn=drawn)
                self._last = drawing
        with clock.stage("composite"):
            planes = upload(picture, drawing.box, self._device)
            flat = lay_in(planes, drawing.drawn, drawing.mask, plan.strength)
            out = put_back(picture, drawing.box, flat)
        return EngineOutput(out, plan.face, drawing.box, plan.strength)

    def _drawing(self, plan: FramePlan, picture: Picture) -> Drawing | None:
        if plan.shift is not None:
            size = (picture.padded_width, picture.padded_height)
            return self._last.shifted(plan.shift, size) if self._last is not None else None
        if plan.drawn is None or plan.box is None or plan.mask is None:
            return None
        return Drawing(plan.box, plan.mask, plan.drawn)


def draw(stages: Stages, plans: Sequence[WindowPlan]) -> list[dict[str, float]]:
    """Have the stages draw all windows' work in one batch; what they took, shared out by frames drawn.

    A face with values that are not finite is left out: its frame stays the source's own.
    """
    frames = [frame for plan in plans for frame in plan.work]
    if not frames:
        return [{} for _ in plans]
    with torch.inference_mode():
        faces, stage_ms = stages.speak([frame.work for frame in frames if frame.work is not None])
        # One number a face: the stages have waited for the device by now, and no picture's sum overflows.
        fine = torch.isfinite(torch.stack([face.sum() for face in faces])).tolist()
    for frame, face, good in zip(frames, faces, fine, strict=True):
        frame.drawn = face if good else None
    return [{stage: ms * len(plan.work) / len(frames) for stage, ms in stage_ms.items()} for plan in plans]
