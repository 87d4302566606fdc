"""Target geometry: the frame's own pose, identity and upper face with the voice's expression on the lower
face."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retalk_models.easing import settled
from retalk_models.face.geometry import (
    INNER_LIPS,
    LOWER_LIP,
    OUTER_LIPS,
    UPPER_LIP,
    IdentityEstimator,
    ObservedFace,
    Pose,
    aperture,
    fit_pose,
    from_canonical,
    lower_face_weights,
    template,
    to_canonical,
)
from retalk_models.face.tracker import ShapeFilter
from retalk_models.face.unfold import unfolded
from retalk_models.picture import F32
from retalk_models.talkin.basis import ExpressionBasis

_SETTLE_S = 0.35
"""Time constant of what the basis cannot say about where the mouth sits (pose error, a lasting smile)."""

_HELD_S = (3.0, 0.5)
"""Time constant of how the source holds the mouth: where it sits, how wide and how rounded it is whatever is
said; so slow that hardly anything of a syllable gets through. And how many seconds of it weigh as much as the
guess that it is held as in the neutral, so that at first it is the mean of what was seen."""

_SAID_S = (10.0, 2.0)
"""The same of how the voice would have it held, of which only what changes is drawn: what a voice is told on
average is its net's guess about nobody in particular."""

_AGAIN_S = 1.0
"""Seconds that what was learnt of a person weighs in another moment of them."""

_LEAP = 2.0
"""Standard deviations from the mean beyond which a frame (a hand before the mouth) pulls no harder."""

_POSTURE_MOST = 4.0
"""Standard deviations from the neutral within which how the source holds the mouth is softly kept."""

_NEUTRAL_S = 0.3
"""Time constant with which a better estimate of the person's neutral shape is taken on."""

_OPENING_FLOOR = 0.16
"""Even a person who never opened the mouth may be drawn speaking up to this aperture (canonical units)."""

_OPENING_CEILING = 0.34
_OPENING_MARGIN = 1.25

_WIDEST = 2.5
"""A voice's coefficients other than the opening are held softly within so many standard deviations: beyond,
skin folds."""

_PRESS, _PRESS_UNTIL = 0.008, 0.05
"""How much nearer than told shut lips are drawn (canonical units), and from which aperture on as told. Lips
that only just touch look parted: they are warped from open ones, and a neutral is seldom quite shut."""

_MEETING = 0.012
"""Gap, canonical units, from which on lips that are about to meet draw level with each other."""

_FLESH = (0.14, 0.26)
"""How far inside the lip, as a share of its thickness, the drawn lip begins, where the frame's own lips are
shut and where they are apart: landmarks run on the edge, and a sliver of tooth carried along with the lip
shows at once."""


@dataclass(frozen=True, slots=True, eq=False)
class TargetFace:
    """One frame's two geometries.

    source: (478, 2) where the frame's own points are sampled; target: (478, 2) where they shall lie. Pixels.
    depth: (478,) pixels, larger is farther.
    opening: aperture drawn, canonical units, at least 0. apart: 0..1, whether the frame's own lips are apart.
    """

    source: F32
    target: F32
    depth: F32
    pose: Pose
    opening: float
    apart: float


class OpeningRange:
    """How far this person opens the mouth: a running robust maximum of the source's own openings."""

    def __init__(self) -> None:
        self._reach = 0.0

    def reset(self) -> None:
        self._reach = 0.0

    def update(self, opening: float) -> None:
        """Take in one frame's own aperture; single wild frames move the range only a little."""
        if opening > self._reach:
            self._reach += 0.12 * (opening - self._reach)
        else:
            self._reach *= 0.9995

    @property
    def limit(self) -> float:
        """The widest aperture to draw, canonical units."""
        return float(np.clip(_OPENING_MARGIN * self._reach, _OPENING_FLOOR, _OPENING_CEILING))

    def bound(self, opening: float) -> float:
        """An aperture kept plausible for this person: unchanged below two thirds of the limit, softly held
        above."""
        knee = 2 / 3 * self.limit
        if opening <= knee:
            return max(0.0, opening)
        room = self.limit - knee
        return knee + room * float(np.tanh((opening - knee) / room))


class Posture:
    """How a mouth is held on average: (K,) coefficients of the last seconds."""

    def __init__(self, start: F32, constant_s: float, start_s: float) -> None:
        """start: (K,) where it begins, worth start_s seconds. constant_s: how long it remembers."""
        self.mean = start
        self._constant_s, self._known_s = constant_s, start_s

    def update(self, coefficients: F32, elapsed_s: float) -> None:
        """Take in what it did in elapsed_s."""
        early = elapsed_s / (self._known_s + elapsed_s)
        share = max(settled(elapsed_s, self._constant_s), early)
        self.mean = self.mean + np.float32(share) * np.clip(coefficients - self.mean, -_LEAP, _LEAP)
        self._known_s += elapsed_s

    def begin_anew(self) -> None:
        """Another moment of the same person: what was learnt is where it begins."""
        self._known_s = min(self._known_s, _AGAIN_S)


class TargetGeometry:
    """Factorises a tracked face and puts another expression on it. One person's state; not thread-safe."""

    def __init__(self, basis: ExpressionBasis) -> None:
        self._basis = basis
        self._identity = IdentityEstimator(basis)
        self._weights = lower_face_weights()[:, None]
        self._range = OpeningRange()
        self._neutral: F32 | None = None
        self._settle = np.zeros(3, np.float32)
        self._filter = ShapeFilter()
        self._own: Posture | None = None
        self._said = Posture(np.zeros(basis.size, np.float32), *_SAID_S)
        self._elapsed_s = 0.0

    def reset(self) -> None:
        """Forget the person, as after a cut. The voice is the same."""
        self._identity.reset()
        self._range.reset()
        self._filter.reset()
        self._neutral = None
        self._settle = np.zeros(3, np.float32)
        self._own = None

    def begin_anew(self) -> None:
        """Another moment of the same person: what was learnt stays, what was in motion does not."""
        self._filter.reset()
        self._settle = np.zeros(3, np.float32)
        if self._own is not None:
            self._own.begin_anew()

    @property
    def range(self) -> OpeningRange:
        return self._range

    @property
    def neutral(self) -> F32 | None:
        """(478, 3) this person's canonical neutral shape as used for drawing; None before the first frame."""
        return self._neutral

    def observe(self, points: F32, elapsed_s: float) -> ObservedFace:
        """Take in one tracked frame, (478, 3) pixels, elapsed_s after the one before.

        Raises ValueError for points that are not finite.
        """
        pose = fit_pose(points, self._neutral)
        shape = self._filter(to_canonical(points, pose), elapsed_s)
        self._identity.update(shape)
        estimate = self._identity.neutral
        if self._neutral is None:
            self._neutral = estimate
        else:
            self._neutral = self._neutral + settled(elapsed_s, _NEUTRAL_S) * (estimate - self._neutral)
        offsets = shape - self._neutral
        own = self._basis.project(offsets)
        rest = (offsets - self._basis.apply(own))[list(OUTER_LIPS)].mean(axis=0)
        self._settle = self._settle + settled(elapsed_s, _SETTLE_S) * (rest - self._settle)
        self._range.update(float(own[0]))
        absolute = self._basis.project(shape - template())
        if self._own is None:
            self._own = Posture(self._basis.project(self._neutral - template()), *_HELD_S)
        self._own.update(absolute, elapsed_s)
        self._elapsed_s = elapsed_s
        flat = unfolded(shape)
        return ObservedFace(from_canonical(flat, pose), pose, flat, max(0.0, aperture(shape)))

    def bounded(self, expression: F32) -> F32:
        """(K,) coefficients of a voice, kept plausible for this person."""
        out: F32 = np.asarray(_WIDEST * np.tanh(expression / _WIDEST), np.float32)
        out[0] = self._range.bound(float(expression[0]))
        return out

    def target(self, face: ObservedFace, expression: F32, strength: float, voice: float = 1.0) -> TargetFace:
        """Geometry for one observed frame.

        expression: (K,) coefficients of the voice. strength: 0 leaves the frame's own mouth, 1 draws the
        voice's. voice: 0..1, how far the voice speaks; at 0 lips are shut and at rest.
        """
        neutral = self._neutral if self._neutral is not None else face.shape
        expression = self._held(expression, voice, neutral)
        spoken = _met(unfolded(neutral + self._basis.apply(expression) + self._settle))
        change = strength * self._weights * (spoken - face.shape)
        moved = face.points + face.pose.scale * change @ face.pose.rotation.T
        opening = max(0.0, aperture(face.shape + change))
        sampled = face.points[:, :2].copy()
        apart = float(np.clip(face.opening / 0.04, 0, 1))
        flesh = _FLESH[0] + apart * (_FLESH[1] - _FLESH[0])
        flesh *= strength * float(np.clip(max(opening, face.opening) / 0.03, 0, 1))
        inner, outer = list(INNER_LIPS), list(OUTER_LIPS)
        sampled[inner] += flesh * (sampled[outer] - sampled[inner])
        return TargetFace(
            sampled,
            np.asarray(moved[:, :2], np.float32),
            np.asarray(moved[:, 2], np.float32),
            face.pose,
            opening,
            apart,
        )

    def _held(self, expression: F32, voice: float, neutral: F32) -> F32:
        """(K,) coefficients of a voice, but for the opening round how this person holds the mouth.

        Who smiles speaks smiling; and a neutral is a guess for as long as the lips were seldom shut.
        """
        self._said.update(expression, voice * self._elapsed_s)
        spoken = pressed(np.asarray(voice * expression, np.float32))
        if self._own is None:
            return spoken
        held = self._own.mean - self._basis.project(neutral - template())
        more = _POSTURE_MOST * np.tanh(held / _POSTURE_MOST) - voice * self._said.mean
        more[0] = 0
        return np.asarray(spoken + more, np.float32)


def _met(shape: F32) -> F32:
    """A canonical shape (478, 3) with lips that would cross meeting midway: each stays on its own side.

    Sideways and in depth they come together a little before, or they would leap there in a turned head.
    """
    upper, lower = list(UPPER_LIP[1:-1]), list(LOWER_LIP[1:-1])
    gap = shape[lower, 1] - shape[upper, 1]
    near = np.clip(1 - gap / _MEETING, 0, 1)
    share = np.stack([near, gap < 0, near], axis=1).astype(np.float32)
    half = share * (shape[lower] - shape[upper]) / 2
    out = shape.copy()
    out[upper] += half
    out[lower] -= half
    return out


def pressed(expression: F32) -> F32:
    """(K,) coefficients with nearly shut lips told to press on each other; wider ones as they are."""
    out = expression.copy()
    out[0] -= _PRESS * max(0.0, 1 - float(expression[0]) / _PRESS_UNTIL)
    return out
