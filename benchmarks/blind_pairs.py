"""Pairs of a true frame and a dubbed frame at the same pose, shuffled, for judging without labels.

Makes one numbered sheet for each pair in FOLDER, left and right by chance, and key.json, which says where the
dub is: look at the key only after writing down every guess. The dubs are those of `retalk eval --keep`. True
frames have been written to a file as dubs have, or a dub could be told by being encoded twice.

    python benchmarks/blind_pairs.py CLIPS DUBS -o FOLDER [--count N] [--seed S]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from itertools import islice, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from retalk_models.engine import EngineOptions, EngineOutput, EngineResult, EngineWindow, FaceState
from retalk_models.evaluation.retrack import Retracker
from retalk_models.evaluation.sheet import FACE_WIDTHS, MOUTH_WIDTHS, cell
from retalk_models.picture import U8
from stream.errors import InputError
from stream.evaluate.manifest import Clip, read_manifest
from stream.evaluate.material import pictures
from stream.evaluate.run import dub_name
from stream.offline import dub

_CELL = 320
_WARM_UP_S = 1.0


class _Untouched:
    """An engine, and its session, that gives every frame back as it came."""

    name, device, look_ahead_us = "untouched", "cpu", 0
    weights: Mapping[str, str] = {}

    def open_session(self, options: EngineOptions) -> _Untouched:
        return self

    def process(self, window: EngineWindow) -> EngineResult:
        frames = window.frames
        return EngineResult(tuple(EngineOutput(one.picture, FaceState.NONE, None, 0.0) for one in frames))

    def close(self) -> None:
        pass


def candidates(
    source: Path, dubbed: Path, wanted: int, rng: np.random.Generator
) -> list[tuple[float, U8, U8]]:
    """Seconds, true and dubbed cells (face above mouth) of frames that a face was found in, by chance."""
    both = zip(pictures(source), pictures(dubbed), strict=False)
    count = sum(1 for _ in zip(pictures(source), pictures(dubbed), strict=False))
    chosen = set(rng.choice(count, min(count, 3 * wanted), replace=False).tolist())
    out = []
    with Retracker() as tracker, Retracker() as others:
        for index, ((seconds, own), (_, dub)) in enumerate(both):
            points, drawn = tracker.points(own.rgb()), others.points(dub.rgb())
            if index not in chosen or seconds < _WARM_UP_S or not np.isfinite([points[0], drawn[0]]).all():
                continue
            # Centred on neither: a judge found dubs out by which mouth was in the middle.
            middle = (points + drawn) / 2
            true, false = (
                np.vstack([cell(one, middle, widths, _CELL) for widths in (FACE_WIDTHS, MOUTH_WIDTHS)])
                for one in (own, dub)
            )
            out.append((seconds, true, false))
    kept = rng.permutation(len(out))[:wanted]
    return [out[index] for index in kept]


def _written(clip: Clip, folder: Path) -> Path:
    """The clip as `retalk dub` writes it when nothing is dubbed."""
    path = folder / f"{clip.label}.mp4"
    dub(clip.path, clip.path, path, engine=_Untouched(), mark=False)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path, help="folder or manifest, as `retalk eval` takes it")
    parser.add_argument("dubs", type=Path, help="folder of SOURCE__VOICE.mp4")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="folder to write, outside the repository"
    )
    parser.add_argument("--count", type=int, default=20, help="pairs in all (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice and of left and right (0)")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    try:
        clips = read_manifest(args.clips)
        dubs = [(a, args.dubs / dub_name(a.label, b.label)) for a in clips for b in clips if a is not b]
        missing = next((path for _, path in dubs if not path.is_file()), None)
        if missing is not None or not dubs:
            raise InputError(missing or args.clips, "no such dub", "make them by `retalk eval --keep`")
        each = -(-args.count // len(dubs))
        with TemporaryDirectory() as folder:
            own = {one.label: _written(one, Path(folder)) for one in clips}
            found = [
                [(path.stem, *one) for one in candidates(own[a.label], path, each, rng)] for a, path in dubs
            ]
    except InputError as error:
        parser.error(str(error))
    # One of every dub in turn, so that a count that does not divide evenly still has all of them.
    pairs = [one for row in zip_longest(*found) for one in row if one is not None]
    args.out.mkdir(parents=True, exist_ok=True)
    key = {}
    for number, (name, seconds, true, false) in enumerate(islice(pairs, args.count), 1):
        left = bool(rng.integers(2))
        sides = [false, true] if left else [true, false]
        picture = np.hstack([sides[0], np.full((2 * _CELL, 24, 3), 255, np.uint8), sides[1]])
        if not cv2.imwrite(str(args.out / f"{number:02}.png"), picture[:, :, ::-1]):
            parser.error(f"{args.out}: cannot be written; name another folder")
        key[f"{number:02}"] = {"dub": "left" if left else "right", "of": name, "seconds": round(seconds, 2)}
    (args.out / "key.json").write_text(json.dumps(key, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
