"""Learning a person from a film before the first of it is shown.

Who has not opened the mouth yet has no inside of it: live it is drawn, flat and dark, until a real one comes
by. A film is there from its beginning, so its first seconds need not look like that.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
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

logger = logging.getLogger(__name__)

_LONGEST_US, _MOST_PICTURES = 12_000_000, 1500
"""How far into a film is looked, by its own time and where that does not pass."""

_STEP_US = 80_000
"""The least time between two pictures that are looked at."""

_FIRST_S = 0.04
"""What counts as the time before the first picture."""

_LIVE_S = 0.7
"""What looking may take where a session waits to begin."""

_FILMS = 8
"""Of so many films it is remembered what was learnt."""


@dataclass(frozen=True, slots=True, eq=False)
class Learnt:
    """What one person's sessions begin with. One that several begin with is not to be changed: see `copy`.

    whole: whether nothing that is worth it was left out.
    """

    geometry: TargetGeometry
    references: MouthReferences
    views: PersonViews
    whole: bool = True

    def copy(self, basis: ExpressionBasis) -> Learnt:
        """The same to be learnt on. basis: the one it was learnt with, shared by all."""
        geometry = deepcopy(self.geometry, {id(basis): basis})
        return Learnt(geometry, self.references.copy(), self.views.copy(), self.whole)


class Studies:
    """What was learnt of films, by film. Thread-safe."""

    def __init__(self, basis: ExpressionBasis) -> None:
        self._basis = basis
        self._learnt: OrderedDict[Film, Learnt] = OrderedDict()
        self._turn = Lock()

    def of(self, film: Film | None, patient: bool) -> Learnt:
        """What a session begins with. patient: look at all that is worth it, however long that takes."""
        if film is None or patient:
            return self._looked_at(film, None)
        with self._turn:
            learnt = self._learnt.pop(film, None) or self._looked_at(film, _LIVE_S)
            # What a busy moment kept anybody from seeing may be seen by the next.
            if learnt.whole or learnt.references.count:
                self._learnt[film] = learnt
                if len(self._learnt) > _FILMS:
                    self._learnt.popitem(last=False)
        return learnt.copy(self._basis)

    def _looked_at(self, film: Film | None, within_s: float | None) -> Learnt:
        try:
            return study(film, self._basis, within_s)
        except Exception as error:  # what a film does to us costs what it would have taught, not the session
            fault = f"{type(error).__name__}: {error}"
            logger.warning("the film could not be looked at beforehand, and is learnt as it comes: %s", fault)
            return study(None, self._basis)


class _Scene:
    """The geometry of whoever a film begins with: it ends where they would be forgotten."""

    def __init__(self, geometry: TargetGeometry) -> None:
        self._geometry = geometry
        self.over = False

    def observe(self, points: F32, elapsed_s: float) -> ObservedFace:
        if self.over:
            raise ValueError("this is a face of another scene")
        return self._geometry.observe(points, elapsed_s)

    def reset(self) -> None:
        self.over = True


def study(film: Film | None, basis: ExpressionBasis, within_s: float | None = None) -> Learnt:
    """Look at a film's beginning, up to its first cut. within_s: and for no longer than that after its first
    picture, whose look makes everything ready."""
    geometry, references, views = TargetGeometry(basis), MouthReferences(), PersonViews()
    if film is None:
        return Learnt(geometry, references, views)
    scene = _Scene(geometry)
    watch = FaceWatch(scene, lambda: None)
    last_us: int | None = None
    end_s, whole = inf, True
    try:
        for picture, time_us in islice(film.pictures(), _MOST_PICTURES):
            whole = perf_counter() <= end_s
            if time_us > _LONGEST_US or not whole:
                break
            if last_us is not None and time_us - last_us < _STEP_US:
                continue
            elapsed_s = _FIRST_S if last_us is None else (time_us - last_us) / 1e6
            last_us = time_us
            seen = watch.look(picture, elapsed_s)
            if scene.over:
                break
            face, neutral = seen.face, geometry.neutral
            if seen.tracked and face is not None and seen.light is not None and neutral is not None:
                plane = teeth_plane(face, neutral)
                references.observe(picture, face, neutral, plane, seen.light, elapsed_s)
                views.observe(picture, face, neutral, elapsed_s)
            if within_s is not None and end_s == inf:
                end_s = perf_counter() + within_s
    finally:
        watch.close()
    geometry.begin_anew()
    # Copies have seen nothing move yet.
    return Learnt(geometry, references.copy(), views.copy(), whole)
