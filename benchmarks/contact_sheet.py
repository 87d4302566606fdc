"""Contact sheet of a dub: source face, dubbed face and the dubbed mouth enlarged, over time, as one PNG.

Faces are found in the source by Face Mesh, and the same crop is cut from both files, so what moves between
the
rows was moved by the dub.

    python benchmarks/contact_sheet.py SOURCE.mp4 DUBBED.mp4 -o SHEET.png [--from S] [--every N] [--count N]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np

from retalk_models.face.tracker import FaceTracker
from retalk_models.picture import F32, U8, Picture

_CELL = 200
_ACROSS = 8


def read(path: Path) -> Iterator[tuple[float, Picture]]:
    """Seconds and picture of every frame."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            planes = np.ascontiguousarray(frame.to_ndarray(format="yuv420p"), np.uint8)
            yield float(frame.time or 0.0), Picture(planes, frame.width, frame.height)


def cut(picture: Picture, points: F32, widths: float) -> U8:
    """A square of so many face widths round the mouth, BGR."""
    centre = points[[61, 291, 0, 17], :2].mean(axis=0)
    half = max(4.0, float(np.linalg.norm(points[234, :2] - points[454, :2])) * widths / 2)
    scale = _CELL / 2 / half
    move = np.array(
        [[scale, 0, _CELL / 2 - centre[0] * scale], [0, scale, _CELL / 2 - centre[1] * scale]], np.float32
    )
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.warpAffine(picture.rgb()[:, :, ::-1], move, (_CELL, _CELL), flags=how), np.uint8)


def columns(source: Path, dubbed: Path, start: float, every: int, count: int) -> list[U8]:
    tracker = FaceTracker()
    out: list[U8] = []
    pairs = zip(read(source), read(dubbed), strict=False)
    wanted = ((number, pair) for number, pair in enumerate(pairs) if pair[0][0] >= start)
    for number, ((seconds, own), (_, dub)) in islice(wanted, every * count):
        face = tracker.track(own)
        if number % every:
            continue
        if face is None:
            column = np.zeros((3 * _CELL, _CELL, 3), np.uint8)
        else:
            parts = [cut(own, face.points, 1.5), cut(dub, face.points, 1.5), cut(dub, face.points, 0.6)]
            column = np.vstack(parts).astype(np.uint8)
        cv2.putText(column, f"{seconds:.2f}", (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 255, 255), 1)
        out.append(column)
    tracker.close()
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
    made += [np.zeros_like(made[0])] * (-len(made) % _ACROSS)
    rows = [np.hstack(made[i : i + _ACROSS]) for i in range(0, len(made), _ACROSS)]
    if not cv2.imwrite(str(args.out), np.vstack(rows)):
        parser.error(f"{args.out}: cannot be written; its folder must exist and the name end in .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
