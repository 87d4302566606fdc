"""What the engine costs at full quality, stage by stage, alone on a virtual clock: milliseconds a frame.

    python benchmarks/talkin.py [--video FILE] [--voice FILE] [--sizes WxH ...] [--seconds S] [--json FILE]

Prints a Markdown table: the engine as it is, and without its rendering net. The material is scaled to each
size. Run it on an idle machine, with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from retalk_models.talkin.engine import TalkinEngine
from stream.bench import Cost, measure_cost
from stream.errors import InputError
from stream.material import load_material
from stream.sample import sample_presenter

SPEECH = Path(__file__).resolve().parent.parent / "client_web" / "sample" / "speech.wav"


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; it must be like 640x480")
    return int(width), int(height)


def table(costs: dict[str, Cost], fps: float) -> str:
    """Milliseconds a frame per stage, and seconds of one core per second of video."""
    first = next(iter(costs.values()))
    rows = [("decode", [one.decode for one in costs.values()])]
    rows += [(name, [one.stages[name] for one in costs.values()]) for name in first.stages]
    rows.append(("session", [one.session for one in costs.values()]))
    rows.append(("encode (H.264)", [one.encode for one in costs.values()]))
    lines = ["| ms of one core a frame | " + " | ".join(costs) + " |", "|---" * (len(costs) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(f"{1000 * value / fps:.1f}" for value in values) + " |"
        for name, values in rows
    ]
    lines.append(
        "| core seconds per second of video | " + " | ".join(f"{c.total:.2f}" for c in costs.values()) + " |"
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--video", type=Path, help="what is dubbed (the sample presenter)")
    parser.add_argument("--voice", type=Path, default=SPEECH, help="what it shall speak (the sample speech)")
    parser.add_argument("--sizes", type=_size, nargs="+", default=[(640, 480), (1920, 1080)])
    parser.add_argument("--seconds", type=float, default=6.0, help="of video measured per column (6)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda[:N]")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    engines = {
        "all": TalkinEngine.load(args.device, rendered=True),
        "no net": TalkinEngine.load(args.device, rendered=False),
    }
    costs: dict[str, Cost] = {}
    fps = 25.0
    for width, height in args.sizes:
        try:
            material = load_material(args.video or sample_presenter(), args.voice, width, height)
        except InputError as error:
            parser.error(str(error))
        fps = material.fps
        for name, engine in engines.items():
            costs[f"{width}x{height}, {name}"] = measure_cost(engine, material, args.seconds)
    print(table(costs, fps))
    if args.json is not None:
        args.json.write_text(json.dumps({name: asdict(one) for name, one in costs.items()}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
