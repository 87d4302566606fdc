"""References of a session by pose: canonical ones made on a miss only, off the path of the frames."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from retalk_models.engine import Template
from retalk_models.face.geometry import Pose
from retalk_models.face.tracker import shrink
from retalk_models.picture import F32, U8, Box, Picture
from retalk_models.pose_cache import CacheUse, PoseCache, Reference
from retalk_models.videoretalking.canvas import SIDE
from retalk_models.videoretalking.geometry import (
    F64,
    Alignment,
    align,
    cut_aligned,
    face_frame,
    first_crop,
    semantic_row,
    semantic_window,
)
from retalk_models.videoretalking.stages import FaceReference, Stages

CROP = 256
"""Side of D-Net's pictures."""

CELL = 0.21
"""Size in radians (12 degrees) of the cells of pose that get a reference each."""

CAPACITY = 48
"""References of one session: 0.3 MB each in float32."""

_YAW, _PITCH = 0.6, 0.5
"""Radians. A head turned farther is more than D-Net can redraw; its own picture is the reference then."""

_CANONICAL, _OWN = 1.0, 0.95
"""Quality of a reference with a canonical expression, and of one that is the frame itself."""

_CROSS_S = 0.12
"""A change of reference takes three frames at 25 a second."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What a reference is made of: part of a frame, copied, for the frame itself moves on.

    rgb: (h, w, 3), the part. landmarks: (68, 2) in its pixels. face: the nets' box in it, all of it inside.
    pose: of the head. template: the expression to give it.
    """

    rgb: U8
    landmarks: F64
    face: Box
    pose: Pose
    template: Template

    @classmethod
    def cut(cls, picture: Picture, landmarks: F64, face: Box, pose: Pose, template: Template) -> Scene:
        """landmarks, face: in the picture's pixels."""
        around = first_crop(face_frame(landmarks), picture.width, picture.height)
        left, top = min(around.left, face.left) & ~1, min(around.top, face.top) & ~1
        right, bottom = max(around.right, face.right), max(around.bottom, face.bottom)
        part = Box(left, top, right + right % 2, bottom + bottom % 2)
        rgb = shrink(picture, part, max(part.width, part.height)).rgb()
        moved = Box(face.left - left, face.top - top, face.right - left, face.bottom - top)
        return cls(rgb, landmarks - (left, top), moved, pose, template)

    @property
    def within_reach(self) -> bool:
        """Whether D-Net can be asked for this pose."""
        return abs(self.pose.yaw) <= _YAW and abs(self.pose.pitch) <= _PITCH


class MakesReferences(Protocol):
    """What turns a scene into a reference; see ReferenceMaker."""

    def own(self, scene: Scene) -> FaceReference: ...

    def canonical(self, scene: Scene) -> FaceReference: ...


class ReferenceMaker:
    """Runs D-Net and what comes with it. One for all sessions."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages

    def own(self, scene: Scene) -> FaceReference:
        """The face as it is."""
        with torch.inference_mode():
            return self._stages.reference(_face_of(scene.rgb, scene.face))

    def canonical(self, scene: Scene) -> FaceReference:
        """The face with the template's expression: coefficient net, D-Net, and back into its surroundings."""
        with torch.inference_mode():
            return self._stages.reference(_face_of(self.redrawn(scene), scene.face))

    def redrawn(self, scene: Scene) -> U8:
        """The scene with its face redrawn by D-Net inside the face's square; (h, w, 3) RGB."""
        height, width = scene.rgb.shape[:2]
        frame = face_frame(scene.landmarks)
        around = first_crop(frame, width, height)
        crop = scene.rgb[around.top : around.bottom, around.left : around.right]
        small = cv2.resize(crop, (CROP, CROP), interpolation=cv2.INTER_LINEAR)
        scale = np.array([CROP / around.width, CROP / around.height])
        landmarks = (scene.landmarks - (around.left, around.top)) * scale
        alignment = align(landmarks, self._stages.standard_points, CROP, CROP)
        window = self._semantics(np.asarray(small, np.uint8), alignment, scene.template)
        image = _tensor(small) * 2 - 1
        fake = self._stages.canonical(image, torch.from_numpy(window)[None])
        # Truncated, as the nets that follow were trained on.
        drawn = ((fake[0] + 1) * 127.5).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        # Outside the face's square the picture stays its own.
        inside = np.zeros((CROP, CROP), np.uint8)
        square = face_frame(landmarks).quad
        cv2.fillConvexPoly(inside, np.round(square * 16).astype(np.int32), 1, cv2.LINE_8, 4)
        mixed = np.where(inside[..., None] > 0, drawn, small)
        out = scene.rgb.copy()
        out[around.top : around.bottom, around.left : around.right] = cv2.resize(
            mixed, (around.width, around.height), interpolation=cv2.INTER_LINEAR
        )
        return out

    def _semantics(self, small: U8, alignment: Alignment, template: Template) -> F32:
        coefficients = self._stages.coefficients(_tensor(cut_aligned(small, alignment)))
        row = semantic_row(coefficients.numpy(), alignment)
        expressions = self._stages.expressions
        wanted = expressions.smile if template is Template.SMILE else expressions.neutral
        # The pose is held over the whole window: live there is no future, and a reference is a still.
        return semantic_window(row[None], wanted)


def _tensor(rgb: U8) -> Tensor:
    """(h, w, 3) uint8 -> (1, 3, h, w) float32, 0..1."""
    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].float() / 255


def _face_of(rgb: U8, face: Box) -> Tensor:
    """(1, 3, 384, 384) BGR, 0..1."""
    crop = rgb[face.top : face.bottom, face.left : face.right]
    whole = cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    return _tensor(np.asarray(whole, np.uint8)).flip(1)


class FaceReferences:
    """One session's references. Used by the session's thread alone.

    worker: where references are made while frames go on without them; None makes each at once.
    """

    def __init__(self, maker: MakesReferences, worker: Executor | None) -> None:
        self._maker, self._worker = maker, worker
        self._cache: PoseCache[FaceReference] = PoseCache(CAPACITY, CELL)
        self._pending: tuple[Future[FaceReference], Scene, int] | None = None
        self._person = 0
        self._made = 0
        self._forget()

    def __len__(self) -> int:
        return len(self._cache)

    @property
    def ready(self) -> bool:
        """Whether there is anything to draw with."""
        return self._current is not None

    def reset(self) -> None:
        """Forget the person; what is still being made is not taken in."""
        self._cache.clear()
        self._person += 1
        self._forget()

    def _forget(self) -> None:
        self._current: Reference[FaceReference] | None = None
        self._makeshift: Reference[FaceReference] | None = None
        self._shown: FaceReference | None = None
        self._before: FaceReference | None = None
        self._crossed = 1.0

    def close(self) -> None:
        """Ask that nothing more be made."""
        if self._pending is not None:
            self._pending[0].cancel()
        self._pending = None
        self.reset()

    def take_use(self) -> tuple[CacheUse, int]:
        """Hits and misses, and references made, since this was last asked."""
        made, self._made = self._made, 0
        return self._cache.take_use(), made

    def seek(self, scene: SceneSource) -> None:
        """Look the frame's pose up and have a reference made where there is none; once per tracked frame."""
        self._take_in()
        pose = scene.pose
        found = self._cache.seek(pose.yaw, pose.pitch, self._current, pose.roll)
        if self._pending is None and self._cache.wants(pose.yaw, pose.pitch, _OWN, pose.roll):
            self._order(scene.cut())
            found = self._cache.nearest(pose.yaw, pose.pitch, self._current, pose.roll)
        if found is None:
            if self._makeshift is None:
                # The first frames of a person do not wait either: their own picture is a reference.
                self._makeshift = self._reference(self._maker.own(scene.cut()), pose, _OWN)
            found = self._makeshift
        if found is not self._current:
            self._before, self._crossed = self._shown, 0.0 if self._shown is not None else 1.0
            self._current = found

    def blend(self, elapsed_s: float) -> FaceReference:
        """What the frame just sought is drawn with; moves a change of reference on by elapsed_s."""
        assert self._current is not None, "seek comes first"
        if self._before is None or self._crossed >= 1:
            self._shown, self._before = self._current.item, None
            return self._shown
        self._crossed = min(1.0, self._crossed + elapsed_s / _CROSS_S)
        old, new, share = self._before, self._current.item, self._crossed
        self._shown = FaceReference(
            torch.lerp(old.features, new.features, share), torch.lerp(old.style, new.style, share)
        )
        return self._shown

    def _order(self, scene: Scene) -> None:
        work = self._maker.canonical if scene.within_reach else self._maker.own
        if self._worker is None:
            self._adopt(work(scene), scene)
        else:
            self._pending = (self._worker.submit(work, scene), scene, self._person)

    def _take_in(self) -> None:
        if self._pending is None or not self._pending[0].done():
            return
        future, scene, person = self._pending
        self._pending = None
        made = future.result()
        if person == self._person:
            self._adopt(made, scene)

    def _adopt(self, made: FaceReference, scene: Scene) -> None:
        self._made += 1
        quality = _CANONICAL if scene.within_reach else _OWN
        self._cache.add(self._reference(made, scene.pose, quality))

    @staticmethod
    def _reference(made: FaceReference, pose: Pose, quality: float) -> Reference[FaceReference]:
        for tensor in (made.features, made.style):
            if tensor.is_cuda:
                # Made on another stream: its memory must not be reused there while this one reads it.
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return Reference(made, pose.yaw, pose.pitch, quality, pose.roll)


@dataclass(frozen=True, slots=True, eq=False)
class SceneSource:
    """A frame from which a scene can be cut, if one is needed."""

    picture: Picture
    landmarks: F64
    face: Box
    pose: Pose
    template: Template

    def cut(self) -> Scene:
        return Scene.cut(self.picture, self.landmarks, self.face, self.pose, self.template)
