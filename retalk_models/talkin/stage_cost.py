"""What the enhancement stage takes on this machine, by which it is decided whether it runs live."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from retalk_models.face.geometry import ObservedFace, Pose, from_canonical, template
from retalk_models.face.warp import warp_field
from retalk_models.picture import U8, Picture
from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.enhance import Enhancement, Renderer
from retalk_models.talkin.target import TargetFace

_WIDTH, _HEIGHT = 640, 480
_FACE_PX = 100.0
"""Distance of the eyes' outer corners: a head that fills half of the frame."""

_OPENING = 0.06
_ROUNDS = 16


def milliseconds(renderer: Renderer, basis: ExpressionBasis) -> float:
    """What a 640x480 frame takes, at best of a few: net, second view, warps and laying in."""
    planes: U8 = np.full((_HEIGHT * 3 // 2, _WIDTH), 110, np.uint8)
    picture = Picture(planes, _WIDTH, _HEIGHT)
    pose = Pose(np.eye(3, dtype=np.float32), np.array([_WIDTH / 2, _HEIGHT / 2, 0], np.float32), _FACE_PX)
    neutral = template()
    shape = neutral + _OPENING * basis.vectors[0]
    shut, parted = from_canonical(neutral, pose), from_canonical(shape, pose)
    target = TargetFace(
        np.ascontiguousarray(shut[:, :2]),
        np.ascontiguousarray(parted[:, :2]),
        np.ascontiguousarray(parted[:, 2]),
        pose,
        _OPENING,
        0.0,
    )
    field = warp_field(target.source, target.target, target.depth, (_WIDTH, _HEIGHT), feather=12.0)
    if field is None:
        raise AssertionError("lips that part move something")
    stage = Enhancement(renderer)
    stage.observe(picture, ObservedFace(parted, pose, shape, _OPENING), neutral, 0.04)
    face, taken = ObservedFace(shut, pose, neutral, 0.0), []
    for _ in range(_ROUNDS):
        dubbed = picture.copy()
        began_s = perf_counter()
        stage(picture, dubbed, face, target, neutral, field, 1.0)
        taken.append(perf_counter() - began_s)
    return 1000 * min(taken)
