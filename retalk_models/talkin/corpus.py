"""Real clips as training pairs: FaceMesh landmarks, their times and the sound, extracted once and cached."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from retalk_models.engine import VOICE_RATE
from retalk_models.picture import F32, Flags

LANDMARKS = 478
COLUMNS = frozenset({"set", "file", "lips_minus_sound_ms", "image_only"})

SAME_PERSON = {"a12": "a02", "a21": "a20", "b33": "b27"}
"""Clips (by catalogue number) that show a person whom an earlier clip shows; seen by looking at them."""


def person_of(name: str) -> str:
    """The person's key for a clip name, so that splits are by person."""
    number = name.split("_")[0]
    return SAME_PERSON.get(number, number)


@dataclass(frozen=True, slots=True)
class ClipEntry:
    """One row of the catalogue.

    lips_minus_sound_s: how much later (+) the lips are than the sound in the file; None where unknown.
    paired: whether the sound belongs to the lips, so that one may be learnt from the other.
    """

    path: Path
    lips_minus_sound_s: float | None
    paired: bool

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def group(self) -> str:
        """The catalogue's set letter (a, b, d, ...) for training clips, the set's name for others."""
        return self.name[0]


@dataclass(frozen=True, slots=True, eq=False)
class ClipTrack:
    """Landmarks and sound of one clip on one time line (seconds in the file).

    points: (n, 478, 3) float32 pixels (x, y, z with z on the scale of x); NaN where no face was found.
    times: (n,) float64 seconds, strictly increasing.
    sound: (m,) float32 mono at 16 kHz; sample 0 is at 0 s. Empty where the clip has none.
    width, height: of the picture, pixels.
    """

    points: F32
    times: NDArray[np.float64]
    sound: F32
    width: int
    height: int

    @property
    def found(self) -> Flags:
        """(n,) whether a face was found."""
        return np.asarray(np.isfinite(self.points[:, 0, 0]), np.bool_)


def read_catalogue(clips: Path, subset: str) -> list[ClipEntry]:
    """The catalogue's rows of one set ("train" or "open"), in its order.

    Raises FileNotFoundError, naming the file, where the catalogue or a clip is missing; ValueError where the
    catalogue has other columns, or no clip of the set.
    """
    catalogue = clips / "clips.csv"
    if not catalogue.is_file():
        raise FileNotFoundError(f"{catalogue}: no catalogue; --clips must name the folder with clips.csv")
    entries = []
    with catalogue.open(newline="", encoding="utf-8") as handle:
        rows = csv.DictReader(handle)
        if missing := COLUMNS - set(rows.fieldnames or ()):
            raise ValueError(f"{catalogue}: lacks the columns {', '.join(sorted(missing))}")
        for row in rows:
            if row["set"] != subset:
                continue
            path = clips / row["file"]
            if not path.is_file():
                raise FileNotFoundError(f"{path}: named in {catalogue} but not there")
            offset = row["lips_minus_sound_ms"].strip()
            entries.append(
                ClipEntry(path, float(offset) / 1000 if offset else None, row["image_only"] == "no")
            )
    if not entries:
        raise ValueError(f"{catalogue}: no clip of the set {subset!r}")
    return entries


def read_sound(path: Path) -> F32:
    """All the sound of a file as (n,) float32 mono at 16 kHz, placed by its time stamps; empty if none."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return np.zeros(0, np.float32)
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="flt", layout="mono", rate=VOICE_RATE)
        pieces: list[F32] = []
        first: float | None = None
        for frame in container.decode(stream):
            if first is None:
                first = float(frame.time or 0.0)
            frame.pts = None
            pieces += [out.to_ndarray()[0].astype(np.float32) for out in resampler.resample(frame)]
        pieces += [out.to_ndarray()[0].astype(np.float32) for out in resampler.resample(None)]
    if not pieces:
        return np.zeros(0, np.float32)
    sound = np.concatenate(pieces)
    lead = round((first or 0.0) * VOICE_RATE)
    return sound[-lead:] if lead < 0 else np.concatenate([np.zeros(lead, np.float32), sound])


def track_clip(path: Path) -> ClipTrack:
    """Run FaceMesh (refined, tracking) over a clip and read its sound."""
    import mediapipe as mp

    points: list[F32] = []
    times: list[float] = []
    width = height = 0
    with (
        av.open(str(path)) as container,
        mp.solutions.face_mesh.FaceMesh(
            static_image_mode=False, max_num_faces=1, refine_landmarks=True
        ) as mesh,
    ):
        for frame in container.decode(video=0):
            rgb = frame.to_ndarray(format="rgb24")
            height, width = rgb.shape[:2]
            found = mesh.process(rgb).multi_face_landmarks
            if found:
                raw = np.array([(p.x, p.y, p.z) for p in found[0].landmark], np.float32)
                points.append(raw * np.array([width, height, width], np.float32))
            else:
                points.append(np.full((LANDMARKS, 3), np.nan, np.float32))
            times.append(float(frame.time or 0.0))
    return ClipTrack(np.stack(points), np.array(times), read_sound(path), width, height)


def cached_track(entry: ClipEntry, cache: Path) -> ClipTrack:
    """The clip's track from the cache, made on first use; keyed by the clip's bytes."""
    digest = hashlib.sha256(entry.path.read_bytes()).hexdigest()[:12]
    kept = cache / f"{entry.name}-{digest}.npz"
    if not kept.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        track = track_clip(entry.path)
        part = kept.with_suffix(".part.npz")
        np.savez_compressed(
            part, points=track.points, times=track.times, sound=track.sound, size=(track.width, track.height)
        )
        part.replace(kept)
    with np.load(kept) as data:
        width, height = (int(v) for v in data["size"])
        return ClipTrack(data["points"], data["times"], data["sound"], width, height)
