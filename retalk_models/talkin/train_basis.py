"""Learn the face template and the lip-and-jaw basis from tracked clips.

    python -m retalk_models.talkin.train_basis --clips DIR --cache DIR --out FILE

Deterministic: least squares and principal components, no random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.optimize import linear_sum_assignment

from retalk_models.easing import ease_each
from retalk_models.face.geometry import (
    CHIN,
    CLOSED_GAP,
    INNER_LIPS,
    INNER_PAIRS,
    OUTER_LIPS,
    POINTS,
    STABLE,
    fit_similarity,
)
from retalk_models.picture import F32
from retalk_models.talkin.arguments import TrainingParser
from retalk_models.talkin.corpus import cached_track, person_of, read_catalogue

SIZE = 10
_EYES = (33, 263)
_PAIRS = ((33, 263), (133, 362), (61, 291), (127, 356), (54, 284), (58, 288), (234, 454))
"""Mirror pairs (picture left, picture right) spread over the face, enough to find its plane of symmetry."""
_UPPER = [pair[0] for pair in INNER_PAIRS]
_LOWER = [pair[1] for pair in INNER_PAIRS]
_DEPTH_WEIGHT = 0.35
"""Face Mesh guesses depth from one view, so it counts for less in every fit."""


@dataclass(frozen=True, slots=True, eq=False)
class _Person:
    shapes: F32
    rotations: F32


def _stable_weights() -> F32:
    return np.full(len(STABLE), 1.0 / len(STABLE), np.float32)


def _align(points: F32, reference: F32) -> tuple[F32, F32]:
    """Canonical shapes (n, 478, 3) and rotations (n, 3, 3) of pixel points against a reference shape."""
    stable, weights = list(STABLE), _stable_weights()
    shapes, rotations = np.empty_like(points), np.empty((len(points), 3, 3), np.float32)
    for index, one in enumerate(points):
        pose = fit_similarity(reference[stable], one[stable], weights)
        shapes[index] = ((one - pose.translation) @ pose.rotation) / pose.scale
        rotations[index] = pose.rotation
    return shapes, rotations


def _normalise(shape: F32) -> F32:
    """Turn to the front, centre on the stable points, outer eye corners 1 apart."""
    across = sum((shape[right] - shape[left] for left, right in _PAIRS), np.zeros(3, np.float32))
    across /= np.linalg.norm(across)
    down = shape[152] - shape[10]
    down -= across * (down @ across)
    down /= np.linalg.norm(down)
    frontal = shape @ np.stack([across, down, np.cross(across, down)], 1)
    span = np.linalg.norm(frontal[_EYES[0]] - frontal[_EYES[1]])
    return np.asarray((frontal - frontal[list(STABLE)].mean(0)) / span, np.float32)


def _mirror_index(shape: F32) -> NDArray[np.intp]:
    """The permutation that swaps left and right, by optimal assignment on a nearly symmetric shape."""
    flipped = shape * np.array([-1, 1, 1], np.float32)
    cost = np.linalg.norm(shape[:, None] - flipped[None], axis=2) ** 2
    _, match = linear_sum_assignment(cost + cost.T)
    index = np.asarray(match, np.intp)
    if not (index[index] == np.arange(POINTS)).all():
        raise ValueError("the mean face is not symmetric enough to pair its points")
    return index


def _lower_face(shape: F32) -> F32:
    """1 at lips and chin, falling smoothly to 0; (478,)."""
    core = shape[list(OUTER_LIPS) + list(INNER_LIPS) + list(CHIN)]
    distance = np.linalg.norm(shape[:, None, :2] - core[None, :, :2], axis=2).min(1)
    weight = ease_each((0.42 - distance) / (0.42 - 0.06))
    # The nose tip (4) and all above its base stay with the skull.
    base, tip = shape[2, 1], shape[4, 1]
    return weight * ease_each((shape[:, 1] - tip) / (base + 0.08 - tip))


def _aperture_rows(shapes: F32) -> F32:
    return np.asarray((shapes[:, _LOWER, 1] - shapes[:, _UPPER, 1]).mean(1), np.float32)


def learn(people: list[F32], size: int = SIZE) -> dict[str, NDArray[np.float32]]:
    """Template, mirror index, lower-face weights, vectors and projector from every person's pixel points.

    people: one (n, 478, 3) float32 array of pixel points per person.
    """
    reference = _normalise(people[0][0])
    for _ in range(3):
        means = [_align(points[::3], reference)[0].mean(0) for points in people]
        reference = _normalise(np.mean(means, axis=0).astype(np.float32))
    mirror = _mirror_index(reference)
    flip = np.array([-1, 1, 1], np.float32)
    reference = _normalise((reference + reference[mirror] * flip) / 2)
    aligned = [_Person(*_align(points, reference)) for points in people]

    lower = _lower_face(reference)
    vertex = np.repeat(lower[:, None], 3, 1)
    vertex[list(OUTER_LIPS) + list(INNER_LIPS)] *= 2.0
    vertex[:, 2] *= _DEPTH_WEIGHT
    weight = vertex.reshape(-1)

    rows, openings, shares = [], [], []
    for person in aligned:
        shapes = person.shapes.reshape(len(person.shapes), -1)
        # What follows head rotation is the landmarker's bias, not speech.
        turn = np.stack([person.rotations[:, 0, 2], person.rotations[:, 1, 2]], 1)
        design = np.concatenate([turn, turn**2, np.ones((len(turn), 1))], 1)
        residual = shapes - design @ np.linalg.lstsq(design, shapes, rcond=None)[0]
        residual = residual.astype(np.float32)
        both = np.concatenate(
            [residual, (residual.reshape(-1, POINTS, 3)[:, mirror] * flip).reshape(residual.shape)]
        )
        rows.append(both)
        openings.append(_aperture_rows(both.reshape(-1, POINTS, 3)))
        shares.append(np.full(len(both), 1.0 / np.sqrt(len(both))))
    data, opening, share = np.concatenate(rows), np.concatenate(openings), np.concatenate(shares)
    share /= share.sum()

    first = (share * opening) @ data / (share @ opening**2)
    remainder = (data - opening[:, None] * first) * np.sqrt(share)[:, None]
    _, _, right = np.linalg.svd(remainder * weight, full_matrices=False)
    # Least squares from the weighted scores back to all vertices gives the unweighted directions.
    directions = []
    for axis in right[: size - 1]:
        score = ((data - opening[:, None] * first) * weight) @ axis
        score /= np.sqrt(share @ score**2)
        directions.append((share * score) @ data - (share @ (score * opening)) * first)
    vectors = np.concatenate([first[None], np.stack(directions)])
    taper = np.repeat(lower[:, None], 3, 1).reshape(-1)
    vectors = vectors * taper
    gain = _aperture_rows(vectors.reshape(-1, POINTS, 3).astype(np.float32))
    vectors[1:] -= (gain[1:, None] / gain[0]) * vectors[0]
    vectors[0] /= gain[0]
    weighted = vectors * weight
    projector = np.linalg.solve(weighted @ weighted.T + 1e-9 * np.eye(size), weighted) * weight
    scores = (data - opening[:, None] * vectors[0]) @ projector.T
    spread = np.sqrt(share @ scores**2)
    spread[0] = 1.0
    vectors, projector = vectors * spread[:, None], projector / spread[:, None]

    explained = (
        1
        - (
            share
            @ (
                ((data - opening[:, None] * vectors[0] - (scores / spread)[:, 1:] @ vectors[1:]) * weight)
                ** 2
            )
        ).sum()
        / (share @ ((data * weight) ** 2)).sum()
    )
    print(f"{len(people)} people, {len(data) // 2} frames: {size} vectors keep {explained:.1%} of lip motion")

    shut = _aperture_rows(reference[None])[0] - CLOSED_GAP
    template = reference - shut * vectors[0].reshape(POINTS, 3)
    return {
        "template": template.astype(np.float32),
        "mirror": mirror.astype(np.float32),
        "lower_face": lower,
        "vectors": vectors.reshape(size, POINTS, 3).astype(np.float32),
        "projector": projector.astype(np.float32),
    }


def _people(clips: Path, cache: Path) -> list[F32]:
    people: dict[str, list[F32]] = {}
    for entry in read_catalogue(clips, "train"):
        track = cached_track(entry, cache)
        if track.found.any():
            people.setdefault(person_of(entry.name), []).append(track.points[track.found])
    if not people:
        raise ValueError(f"{clips}: no clip of the set 'train' shows a face")
    return [np.concatenate(parts) for parts in people.values()]


def main() -> None:
    parser = TrainingParser(__doc__)
    parser.add_argument("--clips", type=Path, required=True, help="folder with clips.csv and train/")
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps the tracked landmarks")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    options = parser.parse_args()
    if options.out.is_dir():
        parser.refuse(f"{options.out}: it is a folder; --out must name a file in it")
    try:
        tensors = learn(_people(options.clips, options.cache))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(options.out))
    except (OSError, ValueError) as error:
        parser.refuse(error)
    print(f"wrote {options.out} ({options.out.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
