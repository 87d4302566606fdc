"""Pose, canonical frame and identity on faces made from the template and the basis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retalk_models.face import geometry
from retalk_models.face.geometry import IdentityEstimator, Pose
from retalk_models.picture import F32
from retalk_models.talkin.basis import ExpressionBasis


def _pose(yaw: float, pitch: float, roll: float, scale: float = 120.0) -> Pose:
    """A pose from angles, built as turn, then nod, then lean, of the direction the face looks in."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    turn = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    lean = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    rotation = (lean @ turn @ nod).astype(np.float32)
    return Pose(rotation, np.array([310.0, 190.0, 4.0], np.float32), scale)


@settings(max_examples=30, deadline=None)
@given(
    yaw=st.floats(-1.0, 1.0), pitch=st.floats(-0.6, 0.6), roll=st.floats(-0.8, 0.8), scale=st.floats(10, 900)
)
def test_pose_comes_back_and_inverts(yaw: float, pitch: float, roll: float, scale: float) -> None:
    pose = _pose(yaw, pitch, roll, scale)
    points = geometry.from_canonical(geometry.template(), pose)
    found = geometry.fit_pose(points)
    assert np.abs(found.rotation - pose.rotation).max() < 1e-3
    assert found.scale == pytest.approx(pose.scale, rel=1e-3)
    assert np.abs(geometry.to_canonical(points, found) - geometry.template()).max() < 1e-3
    assert np.linalg.det(found.rotation) == pytest.approx(1.0, abs=1e-4)


def test_angles_have_the_documented_signs() -> None:
    assert _pose(0.3, 0, 0).yaw == pytest.approx(0.3, abs=1e-5)
    assert _pose(0, 0, 0.2).roll == pytest.approx(0.2, abs=1e-5)
    right = geometry.from_canonical(geometry.template(), _pose(0.4, 0, 0))
    eyes = (right[33, 0] + right[263, 0]) / 2
    assert right[4, 0] > eyes + 5, "turned to the picture's right, the nose tip leads to the right"
    down = _pose(0, 0.3, 0)
    level = geometry.from_canonical(geometry.template(), _pose(0, 0, 0))
    nodded = geometry.from_canonical(geometry.template(), down)
    assert down.pitch > 0
    assert nodded[4, 1] - nodded[168, 1] > level[4, 1] - level[168, 1]


def test_speech_does_not_move_the_pose() -> None:
    basis = ExpressionBasis.load()
    pose = _pose(0.2, 0.1, -0.1)
    open_mouth = np.zeros(basis.size, np.float32)
    open_mouth[0] = 0.25
    shape = geometry.template() + basis.apply(open_mouth)
    found = geometry.fit_pose(geometry.from_canonical(shape, pose))
    assert np.abs(found.rotation - pose.rotation).max() < 0.01
    assert found.scale == pytest.approx(pose.scale, rel=0.01)


def test_bad_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(478, 3\)"):
        geometry.fit_pose(np.zeros((468, 3), np.float32))
    with pytest.raises(ValueError, match="finite"):
        geometry.fit_pose(np.full((478, 3), np.nan, np.float32))


def test_template_is_symmetric_and_shut() -> None:
    template, mirror = geometry.template(), geometry.mirror_index()
    assert (mirror[mirror] == np.arange(478)).all()
    assert mirror[[33, 61, 152]].tolist() == [263, 291, 152]
    assert np.abs(template[mirror] * (-1, 1, 1) - template).max() < 0.01
    assert geometry.aperture(template) == pytest.approx(geometry.CLOSED_GAP, abs=1e-3)
    assert np.linalg.norm(template[33] - template[263]) == pytest.approx(1.0, abs=0.01)


def test_lower_face_weights_hold_the_upper_face_still() -> None:
    weights = geometry.lower_face_weights()
    assert weights.min() >= 0
    assert weights.max() <= 1
    assert (weights[list(geometry.OUTER_LIPS)] == 1).all()
    assert weights[152] == 1
    assert (weights[[*geometry.STABLE, 4]] == 0).all()


def _talker(basis: ExpressionBasis, identity: F32, frames: int, seed: int) -> list[F32]:
    rng = np.random.default_rng(seed)
    shapes = []
    for index in range(frames):
        expression = rng.normal(0, 0.5, basis.size).astype(np.float32)
        expression[0] = max(0.0, 0.12 * np.sin(index * 0.9) + 0.03)
        noise = rng.normal(0, 0.002, (478, 3)).astype(np.float32)
        shapes.append(identity + basis.apply(expression) + noise)
    return shapes


def test_identity_settles_on_the_closed_mouth_within_a_second() -> None:
    basis = ExpressionBasis.load()
    rng = np.random.default_rng(3)
    identity = geometry.template() + rng.normal(0, 0.02, (478, 1)).astype(np.float32)
    identity = identity + geometry.template() * np.float32(0.05)
    estimator = IdentityEstimator(basis)
    for shape in _talker(basis, identity, 25, 4):
        estimator.update(shape)
    assert estimator.settled
    upper = geometry.lower_face_weights() == 0
    assert np.abs(estimator.neutral[upper] - identity[upper]).max() < 0.01
    assert geometry.aperture(estimator.neutral) == pytest.approx(geometry.aperture(identity), abs=0.03)
    wide = identity + basis.apply(np.eye(basis.size, dtype=np.float32)[0] * np.float32(0.2))
    assert estimator.expression(wide)[0] == pytest.approx(0.2, abs=0.03)


def test_identity_closes_a_mouth_that_was_never_shut() -> None:
    basis = ExpressionBasis.load()
    parted = np.zeros(basis.size, np.float32)
    parted[0] = 0.15
    estimator = IdentityEstimator(basis)
    for _ in range(30):
        estimator.update(geometry.template() + basis.apply(parted))
    assert geometry.aperture(estimator.neutral) <= geometry.CLOSED_GAP + 1e-4


def test_identity_shrugs_off_a_few_wild_frames_and_stays_bounded() -> None:
    basis = ExpressionBasis.load()
    estimator = IdentityEstimator(basis, history=50)
    for shape in _talker(basis, geometry.template(), 100, 5):
        estimator.update(shape)
    before = estimator.neutral
    rng = np.random.default_rng(6)
    for _ in range(3):
        estimator.update(geometry.template() + rng.normal(0, 0.3, (478, 3)).astype(np.float32))
    assert np.abs(estimator.neutral - before).mean() < 0.002
    assert len(estimator._history) == 50


def test_reset_forgets() -> None:
    basis = ExpressionBasis.load()
    estimator = IdentityEstimator(basis)
    estimator.update(geometry.template() * np.float32(1.2))
    estimator.reset()
    assert estimator.frames == 0
    assert (estimator.neutral == geometry.template()).all()


def test_opening_measures_follow_the_mouth() -> None:
    basis = ExpressionBasis.load()
    shut = geometry.template()
    wide = shut + basis.apply(np.eye(basis.size, dtype=np.float32)[0] * np.float32(0.2))
    assert geometry.lip_opening(shut) < 0.01 < 0.08 < geometry.lip_opening(wide)
    assert 0.2 < geometry.lip_width(shut) < 0.5
