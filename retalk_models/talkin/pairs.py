"""Real clips as (sound, expression) pairs on the sound's own time line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retalk_models.engine import VOICE_RATE
from retalk_models.face.geometry import IdentityEstimator, fit_pose, lip_opening, to_canonical
from retalk_models.picture import F32
from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.corpus import ClipEntry, ClipTrack, cached_track, person_of


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One clip's sound with the expression that goes with it.

    sound: (m,) float32 at 16 kHz. times: (n,) float64 seconds on the sound's time line, lips' lag removed.
    expression: (n, K) float32 relative to the person's own closed mouth. opening: (n,) lip_opening.
    """

    name: str
    person: str
    sound: F32
    times: NDArray[np.float64]
    expression: F32
    opening: F32

    def at(self, seconds: NDArray[np.float64]) -> F32:
        """(len(seconds), K) expression by linear interpolation; the ends are held."""
        columns = [np.interp(seconds, self.times, column) for column in self.expression.T]
        return np.stack(columns, 1).astype(np.float32)


def read_pairs(
    entries: Sequence[ClipEntry], cache: Path, basis: ExpressionBasis, need_sound: bool = True
) -> list[Pair]:
    """Pairs of all clips whose sound belongs to the lips; a person's clips share one neutral shape."""
    tracks: dict[str, list[tuple[ClipEntry, ClipTrack]]] = {}
    for entry in entries:
        track = cached_track(entry, cache)
        if entry.paired and entry.lips_minus_sound_s is not None and (len(track.sound) or not need_sound):
            tracks.setdefault(person_of(entry.name), []).append((entry, track))
    pairs = []
    for person, clips in tracks.items():
        shapes = [[to_canonical(p, fit_pose(p)) for p in track.points[track.found]] for _, track in clips]
        total = sum(len(one) for one in shapes)
        identity = IdentityEstimator(basis, memory=total, history=total)
        for clip_shapes in shapes:
            for shape in clip_shapes:
                identity.update(shape)
        neutral = identity.neutral
        for (entry, track), clip_shapes in zip(clips, shapes, strict=True):
            expression = basis.project(np.stack(clip_shapes) - neutral)
            lag = entry.lips_minus_sound_s or 0.0
            pairs.append(
                Pair(
                    entry.name,
                    person,
                    track.sound,
                    track.times[track.found] - lag,
                    expression,
                    np.array([lip_opening(p) for p in track.points[track.found]], np.float32),
                )
            )
    return pairs


def seconds_of(pair: Pair) -> float:
    """Length of the sound, seconds."""
    return len(pair.sound) / VOICE_RATE
