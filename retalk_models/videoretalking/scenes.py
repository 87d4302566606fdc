"""What a reference is made of, and how: a scene cut from a frame, D-Net, and what if that fails."""

from __future__ import annotations

import logging
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

logger = logging.getLogger(__name__)

CROP = 256
"""Side of D-Net's pictures."""

_YAW, _PITCH = 0.6, 0.5
"""Radians. A head turned farther is more than D-Net can redraw; its own picture is the reference then."""

_SHARP, _SHARP_SIDE = 0.25, 192
"""Mean of the Laplacian over the spread of the luma from which a face of so many pixels counts as sharp."""

_DARK, _BRIGHT = 32, 224
"""Luma beyond which there is nothing left to learn of a face."""


def within_reach(pose: Pose) -> bool:
    """Whether D-Net can be asked for this pose."""
    return abs(pose.yaw) <= _YAW and abs(pose.pitch) <= _PITCH


@dataclass(frozen=True, slots=True, eq=False)
class SceneSource:
    """A frame from which a scene can be cut, if one is needed."""

    picture: Picture
    landmarks: F64
    face: Box
    pose: Pose
    template: Template

    def cut(self) -> Scene:
        return Scene.cut(self)

    def clarity(self) -> float:
        """0..1: how sharp the face is at the nets' scale, and how much of it is well lit."""
        luma = self.picture.y[self.face.top : self.face.bottom, self.face.left : self.face.right]
        small = cv2.resize(luma, (_SHARP_SIDE, _SHARP_SIDE), interpolation=cv2.INTER_AREA)
        edges = float(np.abs(cv2.Laplacian(small, cv2.CV_16S)).mean()) / (float(small.std()) + 1)
        lit = float(((small >= _DARK) & (small <= _BRIGHT)).mean())
        return min(1.0, edges / _SHARP) * lit


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
    def cut(cls, source: SceneSource) -> Scene:
        """A copy of what a reference needs of the frame."""
        picture, landmarks, face = source.picture, source.landmarks, source.face
        around = first_crop(face_frame(landmarks), picture.width, picture.height)
        left, top = min(around.left, face.left) & ~1, min(around.top, face.top) & ~1
        right, bottom = max(around.right, face.right), max(around.bottom, face.bottom)
        part = Box(left, top, right + right % 2, bottom + bottom % 2)
        rgb = shrink(picture, part, max(part.width, part.height)).rgb()
        moved = Box(face.left - left, face.top - top, face.right - left, face.bottom - top)
        return cls(rgb, landmarks - (left, top), moved, source.pose, source.template)


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


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What became of a scene. canonical: whether D-Net redrew it. failed: attempts that failed."""

    reference: FaceReference | None
    canonical: bool
    failed: int


def make(maker: MakesReferences, scene: Scene, wanted: bool = True) -> Made:
    """A canonical reference where that is wanted, or else the face as it is, or else none. Never raises.

    The picture goes on without a reference, and what D-Net cannot do with one face it may do with the next.
    """
    failed = 0
    for canonical in (True, False) if wanted else (False,):
        try:
            made = maker.canonical(scene) if canonical else maker.own(scene)
            if not all(bool(torch.isfinite(tensor).all()) for tensor in (made.features, made.style)):
                raise ArithmeticError("it has values that are not finite")
        except Exception as error:
            failed += 1
            what = "a canonical reference" if canonical else "a reference"
            logger.warning("%s could not be made: %s: %s", what, type(error).__name__, error)
        else:
            return Made(made, canonical, failed)
    return Made(None, False, failed)
