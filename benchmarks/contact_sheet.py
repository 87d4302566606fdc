"""Contact sheet of a dub: source and dub, each with its mouth enlarged, over time, as one PNG.

Faces are found in the source by Face Mesh, and the same crop is cut from both files, so what moves between
the rows was moved by the dub. `retalk eval` makes such sheets for every pair.

    python benchmarks/contact_sheet.py SOURCE.mp4 DUBBED.mp4 -o SHEET.png [--from S] [--every N] [--count N]
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path

import cv2

from retalk_models.evaluation.retrack import Retracker
from retalk_models.evaluation.sheet import column, sheet
from retalk_models.picture import U8
from stream.evaluate.material import pictures


def columns(source: Path, dubbed: Path, start: float, every: int, count: int) -> list[U8]:
    out: list[U8] = []
    pairs = zip(pictures(source), pictures(dubbed), strict=False)
    wanted = (pair for pair in pairs if pair[0][0] >= start)
    with Retracker() as tracker:
        for number, ((seconds, own), (_, dub)) in enumerate(islice(wanted, every * count)):
            points = tracker.points(own.rgb())
            if number % every == 0:
                out.append(column(own, dub, points, f"{seconds:.2f}"))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("dubbed", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True, help="PNG to write, outside the repository")
    parser.add_argument("--from", dest="start", type=float, default=0.0, help="seconds (0)")
    parser.add_argument("--every", type=int, default=5, help="frames between columns (5)")
    parser.add_argument("--count", type=int, default=24, help="columns in all (24)")
    args = parser.parse_args()
    for path in (args.source, args.dubbed):
        if not path.is_file():
            parser.error(f"{path}: no such file; it must be a video")
    made = columns(args.source, args.dubbed, args.start, args.every, args.count)
    if not made:
        parser.error(f"no frames from {args.start} s on that both files have")
    if not cv2.imwrite(str(args.out), sheet(made)[:, :, ::-1]):
        parser.error(f"{args.out}: cannot be written; its folder must exist and the name end in .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
