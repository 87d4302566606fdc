"""Train the sync meter on clips whose sound belongs to their lips, and show what it separates.

    python -m retalk_models.evaluation.train_sync --clips DIR --cache DIR --out FILE

Prints, for people held out in six folds and for the clips that are for measuring: the score of true sound and
of other people's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from retalk_models.engine import VOICE_RATE
from retalk_models.evaluation.lips import Lips
from retalk_models.evaluation.series import F64
from retalk_models.evaluation.sync import RATE, SyncMeter, lip_values, listen, mel_levels
from retalk_models.picture import F32, Flags
from retalk_models.talkin.corpus import cached_track, person_of, read_catalogue

_FOLDS = 6
_RIDGE = 1.0
_COMPONENTS = 10
_SHRINK = 0.1
_DIRECTIONS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """A clip: lips on the sound's own time line, its 16 kHz sound, and both as the regression takes them."""

    name: str
    person: str
    lips: Lips
    sound: F32
    heard: F64
    seen: F64


def read(clips: Path, cache: Path, subset: str) -> Iterator[Spoken]:
    """The catalogue's clips of a set whose sound belongs to the lips."""
    for entry in read_catalogue(clips, subset):
        track = cached_track(entry, cache)
        if not entry.paired or entry.lips_minus_sound_s is None or not len(track.sound):
            continue
        lips = Lips.of(track.points, track.times).shifted(-entry.lips_minus_sound_s)
        at = np.arange(0.1, min(float(lips.seconds[-1]), len(track.sound) / VOICE_RATE) - 0.1, 1 / RATE)
        seen = lip_values(lips, at)
        known = np.isfinite(seen).all(1)
        heard = listen(mel_levels(track.sound), at[known])
        yield Spoken(entry.name, person_of(entry.name), lips, track.sound, heard, seen[known])


def train(clips: Sequence[Spoken]) -> SyncMeter:
    """Ridge regression to the lips' principal components, then their directions that it predicts best."""
    # A large mouth must not count for more than a small one.
    seen = np.concatenate([one.seen / np.sqrt((one.seen**2).mean()) for one in clips])
    heard = np.concatenate([one.heard for one in clips])
    _, spread, axes = np.linalg.svd(seen, full_matrices=False)
    components = axes[:_COMPONENTS].T * (np.sqrt(len(seen)) / spread[:_COMPONENTS])
    values = seen @ components
    mean, scale = heard.mean(0), heard.std(0) + 1e-3
    given = (heard - mean) / scale
    ridge = given.T @ given + _RIDGE * len(given) * np.eye(given.shape[1])
    weights = np.linalg.solve(ridge, given.T @ values)
    shared = (given @ weights).T @ values / len(values)
    own = values.T @ values / len(values) + _SHRINK * np.eye(_COMPONENTS)
    strength, found = np.linalg.eig(np.linalg.solve(own, (shared + shared.T) / 2))
    best = found[:, np.argsort(-strength.real)[:_DIRECTIONS]].real
    return SyncMeter(mean, scale, weights @ best, components @ best)


def separation(meter: SyncMeter, clips: Sequence[Spoken]) -> tuple[F64, F64]:
    """Scores of every clip with its own sound, and with that of every other person's clip."""
    true = [meter.score(one.lips, one.sound) for one in clips]
    other = [meter.score(one.lips, two.sound) for one in clips for two in clips if one.person != two.person]
    return np.array(true), np.array(other)


def _say(title: str, true: F64, other: F64) -> None:
    other = other[np.isfinite(other)]
    ranks: Flags = true[:, None] > other[None]
    print(
        f"{title}: own sound mean {true.mean():.2f}, 10th percentile {np.quantile(true, 0.1):.2f}, least "
        f"{true.min():.2f} ({len(true)}); other people's mean {other.mean():.2f}, 90th percentile "
        f"{np.quantile(other, 0.9):.2f}, most {other.max():.2f} ({len(other)}); told apart {ranks.mean():.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder with clips.csv, train/ and open/")
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps the tracked landmarks")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    options = parser.parse_args()
    spoken = list(read(options.clips, options.cache, "train"))
    people = sorted({one.person for one in spoken})
    scores = []
    for fold in range(_FOLDS):
        held_out = set(people[fold::_FOLDS])
        meter = train([one for one in spoken if one.person not in held_out])
        scores.append(separation(meter, [one for one in spoken if one.person in held_out]))
    _say("people held out", np.concatenate([a for a, _ in scores]), np.concatenate([b for _, b in scores]))
    meter = train(spoken)
    measuring = list(read(options.clips, options.cache, "open"))
    for one in measuring:
        found = {two.name: round(meter.score(one.lips, two.sound), 2) for two in measuring}
        print(f"lips of {one.name} with the sound of {found}")
    tensors = {
        "mean": meter.mean.astype(np.float32),
        "scale": meter.scale.astype(np.float32),
        "heard": np.ascontiguousarray(meter.heard, np.float32),
        "seen": np.ascontiguousarray(meter.seen, np.float32),
    }
    save_file(tensors, str(options.out))
    print(
        f"{len(people)} people, {len(spoken)} clips; wrote {options.out} ({options.out.stat().st_size} bytes)"
    )


if __name__ == "__main__":
    main()
