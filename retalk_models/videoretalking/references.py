"""References of a session by pose: canonical ones made on a miss only, off the path of the frames."""

from __future__ import annotations

import logging
from concurrent.futures import Executor, Future

import torch

from retalk_models.face.geometry import Pose
from retalk_models.pose_cache import PoseCache, Reference
from retalk_models.videoretalking.scenes import Made, MakesReferences, SceneSource, make, within_reach
from retalk_models.videoretalking.stages import FaceReference

logger = logging.getLogger(__name__)

CELL, ROLL_CELL = 0.21, 0.14
"""Size in radians (12 and 8 degrees) of the cells of pose that get a reference each: in yaw and pitch, and in
roll, which turns a reference's features most and is not turned back."""

CAPACITY = 48
"""References of one session: 0.3 MB each in float32."""

_CANONICAL, _OWN, _CLARITY = 0.92, 0.82, 0.08
"""Quality of a reference with a canonical expression, of one that is the frame itself, and what a clear
picture adds. So far apart that a canonical one takes the place of a frame's own, never the other way round;
no farther, for in the end one that fits the pose is better than a canonical one of another."""

AGEING = 0.004
"""Quality that a reference loses a second: its like takes its place after 20 s, a clearer one sooner."""

_CROSS_S = 0.12
"""A change of reference takes three frames at 25 a second."""

_WAIT, _LONGEST_WAIT = 8, 1024
"""Frames that pass after a failure before the next attempt, doubled with each further one up to so many."""


class _Patience:
    """How long to leave alone what has failed."""

    def __init__(self) -> None:
        self._next, self._left = _WAIT, 0

    def pass_frame(self) -> None:
        self._left = max(0, self._left - 1)

    @property
    def over(self) -> bool:
        return self._left == 0

    def note(self, worked: bool) -> None:
        """Say how an attempt went."""
        if worked:
            self._next = _WAIT
        else:
            self._left, self._next = self._next, min(2 * self._next, _LONGEST_WAIT)


class FaceReferences:
    """One session's references. Used by the session's thread alone.

    worker: where references are made while frames go on without them; None makes each at once. What cannot be
    made is counted, left alone for a while and tried again; it is never the frames' fault.
    """

    def __init__(self, maker: MakesReferences, worker: Executor | None) -> None:
        self._maker, self._worker = maker, worker
        self._cache: PoseCache[FaceReference] = PoseCache(CAPACITY, CELL, AGEING, ROLL_CELL)
        self._pending: tuple[Future[Made], Pose, float, int] | None = None
        self._orders, self._makeshifts = _Patience(), _Patience()
        self._person = 0
        self._made = self._failed = 0
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
        if self._pending is not None and self._pending[0].cancel():
            self._pending = None
        self._forget()

    def _forget(self) -> None:
        self._current: Reference[FaceReference] | None = None
        self._makeshift: Reference[FaceReference] | None = None
        self._shown: FaceReference | None = None
        self._before: FaceReference | None = None
        self._crossed = 1.0

    def close(self) -> None:
        """Ask that nothing more be made."""
        self.reset()
        self._pending = None

    def take_counts(self) -> dict[str, int]:
        """Hits and misses, references made and attempts that failed, since this was last asked."""
        counts = self._cache.take_use().counts()
        counts |= {"references_made": self._made, "references_failed": self._failed}
        self._made = self._failed = 0
        return counts

    def seek(self, source: SceneSource, elapsed_s: float = 0.0) -> None:
        """Look the frame's pose up and have a reference made where there is none; once per tracked frame.

        elapsed_s: since the frame before.
        """
        self._cache.age(elapsed_s)
        self._orders.pass_frame()
        self._makeshifts.pass_frame()
        self._take_in()
        pose = source.pose
        found = self._cache.seek(pose.yaw, pose.pitch, self._current, pose.roll)
        if self._pending is None and self._orders.over and self._order(source):
            found = self._cache.nearest(pose.yaw, pose.pitch, self._current, pose.roll)
        if found is None:
            if self._makeshift is None and self._makeshifts.over:
                self._makeshift = self._own_picture(source)
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

    def _order(self, source: SceneSource) -> bool:
        """Have a reference made of this frame if one would be taken in; whether it was."""
        pose, canonical = source.pose, within_reach(source.pose)
        try:
            # Its clarity is measured only where it matters.
            best = _quality(canonical, 1.0)
            if not self._cache.wants(pose.yaw, pose.pitch, best, pose.roll):
                return False
            clarity = source.clarity()
            if not self._cache.wants(pose.yaw, pose.pitch, _quality(canonical, clarity), pose.roll):
                return False
            scene = source.cut()
            if self._worker is not None:
                job = self._worker.submit(make, self._maker, scene, canonical)
                self._pending = (job, pose, clarity, self._person)
                return True
        except Exception as error:
            self._blame(error, self._orders)
            return False
        self._adopt(make(self._maker, scene, canonical), pose, clarity)
        return True

    def _take_in(self) -> None:
        if self._pending is None or not self._pending[0].done():
            return
        future, pose, clarity, person = self._pending
        self._pending = None
        try:
            made = future.result()
        except Exception as error:
            self._blame(error, self._orders)
            return
        self._adopt(made, pose, clarity, person == self._person)

    def _adopt(self, made: Made, pose: Pose, clarity: float, wanted: bool = True) -> None:
        self._failed += made.failed
        self._orders.note(made.failed == 0)
        if made.reference is not None and wanted:
            self._made += 1
            quality = _quality(made.canonical, clarity)
            # Where D-Net failed, an old canonical one is still better than the frame itself.
            if self._cache.wants(pose.yaw, pose.pitch, quality, pose.roll):
                self._cache.add(_reference(made.reference, pose, quality))

    def _own_picture(self, source: SceneSource) -> Reference[FaceReference] | None:
        """The first frames of a person do not wait either: their own picture is a reference."""
        try:
            made = make(self._maker, source.cut(), wanted=False)
        except Exception as error:
            self._blame(error, self._makeshifts)
            return None
        self._failed += made.failed
        self._makeshifts.note(made.failed == 0)
        return None if made.reference is None else _reference(made.reference, source.pose, _OWN)

    def _blame(self, error: Exception, patience: _Patience) -> None:
        """Note an attempt that failed before or beside its maker."""
        logger.warning("a reference could not be made: %s: %s", type(error).__name__, error)
        self._failed += 1
        patience.note(False)


def _quality(canonical: bool, clarity: float) -> float:
    return (_CANONICAL if canonical else _OWN) + _CLARITY * clarity


def _reference(made: FaceReference, pose: Pose, quality: float) -> Reference[FaceReference]:
    for tensor in (made.features, made.style):
        if tensor.is_cuda:
            # Made on another stream: its memory must not be reused there while this one reads it.
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return Reference(made, pose.yaw, pose.pitch, quality, pose.roll)
