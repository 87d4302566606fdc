"""Whether there is a face to dub in a frame, and how much of the dub to show: a state and an eased
strength."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retalk_models.easing import ease
from retalk_models.engine import FaceState
from retalk_models.face.geometry import OUTER_LIPS, Pose
from retalk_models.face.tracker import TrackedFace

FADE_S = 0.16
"""How long the dub takes to come or go: four frames at 25 a second."""

_SMALL = (48.0, 54.0)
"""Face width in pixels: below the first a tracked face turns small, above the second it is tracked again."""

_PROFILE = (np.radians(48.0), np.radians(42.0))
"""Yaw: beyond the first a tracked face turns to profile, below the second it is tracked again."""

_STEEP = (np.radians(42.0), np.radians(36.0))
"""The same for pitch."""

_HIDDEN = (0.5, 0.35)
"""The same for how unlike itself the mouth looks, see align.Look."""

_EDGE = (0.08, 0.12)
"""The same for the lips' distance to the frame's border, over the face's width."""

_CHIN_ROOM = 0.08
"""Below the lips so much more is needed: a mouth is shut with skin from under it."""

_JUMP = 0.6
"""A face that moves by so much of its size within a frame, or grows by so much, is another face."""


@dataclass(frozen=True, slots=True)
class Reading:
    """state: what the tracker made of the frame. strength: 0..1, eased. new_face: forget identity and
    references."""

    state: FaceState
    strength: float
    new_face: bool


class Presence:
    """The per-frame state machine. Strength never jumps but where nobody can see it: to 0 at a cut, where the
    old face is gone, and to 1 in the very first picture if its face is awaited.

    awaited: whoever comes first is known already, and nothing was shown before.
    """

    def __init__(self, awaited: bool = False) -> None:
        self._awaited = awaited
        self._state = FaceState.NONE
        self._ramp = 0.0
        self._centre: tuple[float, float] | None = None
        self._size = 0.0

    @property
    def state(self) -> FaceState:
        return self._state

    def drop(self) -> None:
        """Show the source at once; the dub fades in again from the next tracked frame on."""
        self._awaited = False
        self._ramp = 0.0

    def jumped(self, face: TrackedFace) -> bool:
        """Whether this cannot be the face of the frame before. Asked once per frame with a face, before
        update."""
        centre, size = (float(face.centre[0]), float(face.centre[1])), face.size
        last, last_size = self._centre, self._size
        self._centre, self._size = centre, size
        if last is None:
            return False
        distance = float(np.hypot(centre[0] - last[0], centre[1] - last[1]))
        return (
            distance > _JUMP * max(size, last_size)
            or not 1 / (1 + _JUMP) < size / max(last_size, 1e-6) < 1 + _JUMP
        )

    def update(
        self,
        face: TrackedFace | None,
        pose: Pose | None,
        hidden: float,
        frame_size: tuple[int, int],
        elapsed_s: float,
        new_face: bool,
    ) -> Reading:
        """Take in one frame. pose: the face's. hidden: of align.Look. elapsed_s: since the frame before."""
        if new_face:
            self._ramp = 0.0
        if face is None or pose is None:
            self._state = FaceState.NONE
            self._centre = None
        else:
            self._state = self._judge(face, pose, hidden, frame_size)
        if self._awaited and self._state is FaceState.TRACKED:
            self._ramp = 1.0
        self._awaited = False
        step = min(max(elapsed_s, 0.0), FADE_S / 2) / FADE_S
        step = step if self._state is FaceState.TRACKED else -step
        self._ramp = float(np.clip(self._ramp + step, 0.0, 1.0))
        return Reading(self._state, ease(self._ramp), new_face)

    def _judge(self, face: TrackedFace, pose: Pose, hidden: float, frame_size: tuple[int, int]) -> FaceState:
        def over(limits: tuple[float, float], state: FaceState, value: float) -> bool:
            return value > limits[1 if self._state is state else 0]

        width = float(np.linalg.norm(face.points[234, :2] - face.points[454, :2]))
        # Yaw narrows a face; its size is that of the face turned to the front.
        width /= max(0.5, abs(float(np.cos(pose.yaw))))
        if width < _SMALL[1 if self._state is FaceState.SMALL else 0]:
            return FaceState.SMALL
        if over(_PROFILE, FaceState.PROFILE, abs(pose.yaw)) or over(
            _STEEP, FaceState.PROFILE, abs(pose.pitch)
        ):
            return FaceState.PROFILE
        lips = face.points[list(OUTER_LIPS), :2]
        room = min(
            float(lips.min()),
            frame_size[0] - 1 - float(lips[:, 0].max()),
            frame_size[1] - 1 - float(lips[:, 1].max()) - _CHIN_ROOM * width,
        )
        if room < width * _EDGE[1 if self._state is FaceState.EDGE else 0]:
            return FaceState.EDGE
        if over(_HIDDEN, FaceState.OCCLUDED, hidden):
            return FaceState.OCCLUDED
        return FaceState.TRACKED
