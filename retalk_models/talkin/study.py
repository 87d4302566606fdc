"""Learning a person from a film before the first of it is shown.

Who has not opened the mouth yet has no inside of it: live it is drawn, flat and dark, until a real one comes
by. A film is there from its beginning, so its first seconds need not look like that.
"""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass
from math import inf
from threading import Lock
from time import perf_counter

from retalk_models.engine import Film
from retalk_models.face.geometry import ObservedFace
from retalk_models.face.watch import FaceWatch
from retalk_models.picture import F32
from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.references import MouthReferences
from retalk_models.talkin.render import teeth_plane
from retalk_models.talkin.target import TargetGeometry
from retalk_models.talkin.views import PersonViews

_LONGEST_US = 12_000_000
"""How far into a film is looked."""

_STEP_US = 80_000
"""The least time between two pictures that are looked at."""

_LIVE_S = 1.0
"""What looking may take where a session waits to begin, and others perhaps for their turn."""

_FILMS = 8
"""Of so many films it is remembered what was learnt."""


@dataclass(frozen=True, slots=True, eq=False)
class Learnt:
    """What one person's sessions begin with. Not to be changed: `copy` gives what may be."""

    geometry: TargetGeometry
    references: MouthReferences
    views: PersonViews

    def copy(self, basis: ExpressionBasis) -> Learnt:
        """The same to be learnt on. basis: the one it was learnt with, shared by all."""
        return Learnt(deepcopy(self.geometry, {id(basis): basis}), self.references.copy(), self.views.copy())


class Studies:
    """What was learnt of films, by film. Thread-safe."""

    def __init__(self, basis: ExpressionBasis) -> None:
        self._basis = basis
        self._learnt: OrderedDict[Film, Learnt] = OrderedDict()
        self._turn = Lock()

    def of(self, film: Film | None, patient: bool) -> Learnt:
        """What a session begins with. patient: look at all that is worth it, however long that takes."""
        if film is None or patient:
            return study(film, self._basis)
        with self._turn:
            learnt = self._learnt.get(film)
            if learnt is None:
                learnt = self._learnt[film] = study(film, self._basis, _LIVE_S)
                if len(self._learnt) > _FILMS:
                    self._learnt.popitem(last=False)
        return learnt.copy(self._basis)


class _Scene:
    """The geometry of whoever a film begins with: it ends where they would be forgotten."""

    def __init__(self, geometry: TargetGeometry) -> None:
        self.geometry = geometry
        self.over = False

    def observe(self, points: F32, elapsed_s: float) -> ObservedFace:
        return self.geometry.observe(points, elapsed_s)

    def reset(self) -> None:
        self.over = self.geometry.neutral is not None


def study(film: Film | None, basis: ExpressionBasis, within_s: float | None = None) -> Learnt:
    """Look at a film's beginning, up to its first cut. within_s: and for no longer than that after its first
    picture, whose look makes everything ready."""
    learnt = Learnt(TargetGeometry(basis), MouthReferences(), PersonViews())
    if film is None:
        return learnt
    scene = _Scene(learnt.geometry)
    watch = FaceWatch(scene, lambda: None)
    last_us: int | None = None
    end_s = inf
    try:
        for picture, time_us in film.pictures():
            if time_us > _LONGEST_US or perf_counter() > end_s:
                break
            if last_us is not None and time_us - last_us < _STEP_US:
                continue
            elapsed_s = 0.04 if last_us is None else (time_us - last_us) / 1e6
            last_us = time_us
            seen = watch.look(picture, elapsed_s)
            face, neutral = seen.face, learnt.geometry.neutral
            if scene.over:
                break
            if seen.tracked and face is not None and seen.light is not None and neutral is not None:
                plane = teeth_plane(face, neutral)
                learnt.references.observe(picture, face, neutral, plane, seen.light, elapsed_s)
                learnt.views.observe(picture, face, neutral, elapsed_s)
            if within_s is not None and end_s == inf:
                end_s = perf_counter() + within_s
    finally:
        watch.close()
    learnt.geometry.begin_anew()
    return learnt
