"""Clips as upright crops of faces in one memory-mapped file, cut once, for training the rendering net."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from retalk_models.face.geometry import (
    STABLE,
    IdentityEstimator,
    Pose,
    aperture,
    fit_pose,
    lip_width,
    to_canonical,
)
from retalk_models.picture import F32, U8, Picture
from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.corpus import ClipEntry, ClipTrack, cached_track, person_of
from retalk_models.talkin.mouth_crop import crop_of, cut_plane, halved

CROP_SIDE = 192
"""Samples along a kept crop's side."""

CROP_SPAN = 2.4
"""What it shows along its side, canonical units: twice the net's crop, so that warps have room."""

_FRAMES_PER_CLIP = 260
"""A long clip gives so many frames at most, in one run from its start: pairs need neighbours."""

_WIDEST_TURN = 0.7
"""Radians of yaw beyond which a face is not drawn, so not learnt from."""


@dataclass(frozen=True, slots=True, eq=False)
class CropClip:
    """One clip's crops.

    points: (n, 478, 3) in crop pixels, and poses likewise. neutral: (478, 3) canonical.
    numbers: (n,) the clip's frame numbers, increasing. openings: (n,) aperture, canonical units, at least 0.
    mouth_px: median width of the lips in the clip's own pixels.
    """

    name: str
    person: str
    planes: NDArray[np.uint8]
    points: F32
    poses: tuple[Pose, ...]
    numbers: NDArray[np.int64]
    openings: F32
    neutral: F32
    mouth_px: float

    def picture(self, index: int) -> Picture:
        return Picture(np.ascontiguousarray(self.planes[index]), CROP_SIDE, CROP_SIDE)


def _cut(planes: U8, width: int, height: int, matrix: F32) -> U8:
    whole = Picture(planes, width, height)
    out: U8 = np.empty((CROP_SIDE * 3 // 2, CROP_SIDE), np.uint8)
    small = Picture(out, CROP_SIDE, CROP_SIDE)
    # A chroma sample lies between four luma samples, in the frame as in the crop.
    chroma = halved(matrix)
    chroma = np.asarray(
        np.concatenate([chroma[:, :2] * 2, chroma[:, 2:] + chroma[:, :2] @ [[0.5], [0.5]]], 1), np.float32
    )
    small.y[...] = cut_plane(whole.y, matrix, CROP_SIDE)
    small.u[...] = cut_plane(whole.u, chroma, CROP_SIDE // 2)
    small.v[...] = cut_plane(whole.v, chroma, CROP_SIDE // 2)
    return out


def _neutral(track: ClipTrack, basis: ExpressionBasis) -> F32:
    shapes = [to_canonical(p, fit_pose(p)) for p in track.points[track.found]]
    identity = IdentityEstimator(basis, memory=len(shapes), history=len(shapes))
    for shape in shapes:
        identity.update(shape)
    return identity.neutral


def _crops_of(
    entry: ClipEntry, track: ClipTrack, neutral: F32, most: int
) -> tuple[list[U8], list[F32], list[int]]:
    planes: list[U8] = []
    points: list[F32] = []
    numbers: list[int] = []
    with av.open(str(entry.path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number >= min(len(track.points), most):
                break
            found = track.points[number]
            if not np.isfinite(found[0, 0]):
                continue
            # MediaPipe counts from the corner of the first pixel, this code from its middle.
            found = found - np.array([0.5, 0.5, 0], np.float32)
            pose = fit_pose(found, neutral)
            if abs(pose.yaw) > _WIDEST_TURN or abs(pose.pitch) > _WIDEST_TURN:
                continue
            crop = crop_of(pose, neutral, CROP_SIDE, CROP_SPAN)
            raw = np.ascontiguousarray(frame.to_ndarray(format="yuv420p"), np.uint8)
            planes.append(_cut(raw, frame.width, frame.height, crop.matrix))
            depth = found[:, 2:] / np.float32(crop.scale)
            points.append(np.concatenate([crop.to_crop(found[:, :2]), depth], axis=1).astype(np.float32))
            numbers.append(number)
    return planes, points, numbers


def _even(width: int, height: int) -> bool:
    return width % 2 == 0 and height % 2 == 0


def build(
    entries: Sequence[ClipEntry],
    tracks: Path,
    out: Path,
    basis: ExpressionBasis,
    most: int = _FRAMES_PER_CLIP,
) -> None:
    """Cut all clips' crops into out/crops.u8 and describe them in out/crops.json and out/points.npz.

    most: frames of a clip. Does nothing where they are there and were made of these clips.
    """
    made_of = [(one.name, hashlib.sha256(one.path.read_bytes()).hexdigest()) for one in entries]
    key = hashlib.sha256(json.dumps([CROP_SIDE, CROP_SPAN, most, made_of]).encode()).hexdigest()
    described = out / "crops.json"
    if described.is_file() and json.loads(described.read_text(encoding="utf-8"))["key"] == key:
        return
    out.mkdir(parents=True, exist_ok=True)
    # Interrupted, the old description must not go with half of the new crops.
    described.unlink(missing_ok=True)
    clips: list[dict[str, object]] = []
    arrays: dict[str, NDArray[np.generic]] = {}
    start = 0
    with (out / "crops.u8").open("wb") as handle:
        for entry in entries:
            track = cached_track(entry, tracks)
            if not track.found.any() or not _even(track.width, track.height):
                continue
            neutral = _neutral(track, basis)
            planes, points, numbers = _crops_of(entry, track, neutral, most)
            if len(planes) < 30:
                continue
            for one in planes:
                handle.write(one.tobytes())
            widths = [
                lip_width(p) * np.linalg.norm(p[10, :2] - p[152, :2]) for p in track.points[track.found]
            ]
            clips.append(
                {
                    "name": entry.name,
                    "person": person_of(entry.name),
                    "start": start,
                    "count": len(planes),
                    "mouth_px": float(np.median(widths)),
                }
            )
            arrays[f"points.{entry.name}"] = np.stack(points)
            arrays[f"numbers.{entry.name}"] = np.array(numbers, np.int64)
            arrays[f"neutral.{entry.name}"] = neutral
            start += len(planes)
            print(f"{entry.name}: {len(planes)} crops", flush=True)
    np.savez(out / "points.npz", **arrays)
    described.write_text(json.dumps({"key": key, "total": start, "clips": clips}), encoding="utf-8")


def read(out: Path) -> list[CropClip]:
    """The clips that `build` cut."""
    described = json.loads((out / "crops.json").read_text(encoding="utf-8"))
    if not described["clips"]:
        return []
    shape = (described["total"], CROP_SIDE * 3 // 2, CROP_SIDE)
    planes = np.memmap(out / "crops.u8", np.uint8, "r", shape=shape)
    clips = []
    with np.load(out / "points.npz") as arrays:
        for one in described["clips"]:
            name, start = one["name"], one["start"]
            points, neutral = arrays[f"points.{name}"], arrays[f"neutral.{name}"]
            poses = tuple(fit_pose(p, neutral) for p in points)
            openings = [max(0.0, aperture(to_canonical(p, q))) for p, q in zip(points, poses, strict=True)]
            clips.append(
                CropClip(
                    name,
                    one["person"],
                    planes[start : start + one["count"]],
                    points,
                    poses,
                    arrays[f"numbers.{name}"],
                    np.array(openings, np.float32),
                    neutral,
                    one["mouth_px"],
                )
            )
    return clips


def jittered(points: F32, amount: float, rng: np.random.Generator) -> F32:
    """Points that tremble as live ones do: mostly together, a little each for itself. amount: pixels."""
    moved = points.copy()
    together = rng.normal(0, amount, 2)
    moved[:, :2] += together + rng.normal(0, 0.3 * amount, (len(points), 2))
    moved[list(STABLE), :2] = points[list(STABLE), :2]
    return np.asarray(moved, np.float32)


def shifted_pose(pose: Pose, shift: F32, grown: float) -> Pose:
    """A pose a little elsewhere, so that the crop it gives is too."""
    move = np.array([shift[0], shift[1], 0], np.float32)
    return replace(pose, translation=pose.translation + move, scale=pose.scale * grown)
