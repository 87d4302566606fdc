"""Train the rendering net on real clips.

    python -m retalk_models.talkin.train_renderer --clips DIR --cache DIR --out DIR
    python -m retalk_models.talkin.train_renderer --adapt CLIP

Crops are cut once into the cache. The people that the expression net's measured run leaves out are left out
here, too, and score the result. Interrupted, it goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import torch

from retalk_models.talkin.arguments import TrainingParser
from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.corpus import read_catalogue
from retalk_models.talkin.crop_corpus import CropClip, build, read
from retalk_models.talkin.enhance import RENDERER_FILE
from retalk_models.talkin.render_scores import Scores
from retalk_models.talkin.render_trainer import Recipe, Trainer

ADAPT_STEPS = 200


def report(trainer: Trainer, clips: Sequence[CropClip]) -> None:
    """Write what the run was and came to: report.json, card.md, and curves.png where matplotlib is there."""
    recipe, out = trainer.recipe, trainer.out
    learnt = [one.name for one in clips if one.person not in recipe.held_out]
    scores = [{"step": step, **asdict(one)} for step, one in trainer.scores]
    content: dict[str, object] = {
        "recipe": asdict(recipe),
        "clips": learnt,
        "losses": trainer.losses,
        "scores": scores,
    }
    strange = trainer.score_strange()
    content["scores_on_other_mouths"] = asdict(strange) if strange is not None else None
    (out / "report.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    lines = [
        f"Seed {recipe.seed}, {recipe.steps} steps of {2 * recipe.pairs} crops, {len(learnt)} clips.",
        f"Never learnt from, and measured on: {', '.join(recipe.held_out)}.",
        "Licence: the weights saw these clips, identifiable people among them; see the catalogue.",
        "",
        "| step | " + " | ".join(one.name for one in fields(Scores)) + " |",
        "|---" * (len(fields(Scores)) + 1) + "|",
    ]
    rows: list[tuple[str, Scores]] = [(str(step), one) for step, one in trainer.scores]
    if strange is not None:
        rows.append(("last, other mouths", strange))
    for name, one in rows:
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in asdict(one).values()) + " |")
    (out / "card.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _draw_curves(trainer)


def _draw_curves(trainer: Trainer) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print("no curves.png: matplotlib is not installed (it comes with retalk[train])", flush=True)
        return
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    losses = np.array(trainer.losses)
    wide = min(50, max(1, len(losses)))
    left.plot(np.convolve(losses, np.ones(wide) / wide, "valid"))
    left.set(xlabel="step", ylabel=f"loss, mean of {wide}")
    steps = [step for step, _ in trainer.scores]
    right.plot(steps, [one.lips_psnr for _, one in trainer.scores], label="net")
    right.plot(steps, [one.lips_psnr_warp for _, one in trainer.scores], label="warp")
    right.set(xlabel="step", ylabel="dB on the lips, held-out people")
    right.legend()
    figure.savefig(trainer.out / "curves.png", dpi=100)


def _adapt(options: argparse.Namespace) -> None:
    from retalk_models.talkin.adapt_renderer import adapt, working_folder

    folder = working_folder(options.adapt)
    gain = adapt(
        options.adapt,
        options.cache or folder,
        options.out or folder,
        options.steps or ADAPT_STEPS,
        options.seed,
        options.device,
    )
    before, after = gain.before, gain.after
    print(f"held-back frames: lips {before.lips_psnr:.2f} -> {after.lips_psnr:.2f} dB, ", end="")
    print(f"ssim {before.ssim:.3f} -> {after.ssim:.3f}")
    print(f"wrote {gain.kept}" if gain.kept is not None else "not better on them: nothing was kept")


def _train(options: argparse.Namespace) -> None:
    for name, what in (("clips", "the folder with clips.csv"), ("cache", "a folder"), ("out", "a folder")):
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is missing; it must name {what} (or give --adapt CLIP)")
    entries = read_catalogue(options.clips, "train")
    build(entries, options.cache / "tracks", options.cache / "renderer" / "crops", ExpressionBasis.load())
    clips = read(options.cache / "renderer" / "crops")
    print(f"{len(clips)} clips, {sum(len(one.numbers) for one in clips)} crops", flush=True)
    recipe = replace(Recipe(), seed=options.seed, steps=options.steps or Recipe().steps)
    trainer = Trainer(recipe, clips, options.out, options.device)
    trainer.train()
    report(trainer, clips)
    print(f"wrote {options.out / RENDERER_FILE}")


def _whole(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise ValueError(text)
        return value

    number.__name__ = f"whole number from {least} on"
    return number


def _device(text: str) -> str:
    kind, _, number = text.partition(":")
    if kind == "cpu" and text == "cpu":
        return text
    if kind == "cuda" and (number or "0").isdecimal() and int(number or 0) < torch.cuda.device_count():
        return text
    raise argparse.ArgumentTypeError(f"there is no device {text!r}; it must be cpu or cuda[:N]")


def main() -> None:
    parser = TrainingParser(__doc__)
    parser.add_argument("--clips", type=Path, help="folder with clips.csv and train/")
    parser.add_argument("--cache", type=Path, help="folder that keeps tracked landmarks and crops")
    parser.add_argument("--out", type=Path, help="folder for weights, checkpoints and reports")
    parser.add_argument("--steps", type=_whole(1), help=f"{Recipe().steps}, or {ADAPT_STEPS} with --adapt")
    parser.add_argument("--seed", type=_whole(0), default=Recipe().seed)
    parser.add_argument("--threads", type=_whole(1), default=1)
    parser.add_argument("--device", type=_device, default="cpu", help="cpu or cuda[:N]")
    parser.add_argument(
        "--adapt",
        type=Path,
        metavar="CLIP",
        help="fine-tune on a presenter's clip instead, and keep the weights beside it where they are\n"
        "better; --cache and --out are then a folder in the user's cache, if not given",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        (_train if options.adapt is None else _adapt)(options)
    except (OSError, ValueError) as error:
        parser.refuse(error)


if __name__ == "__main__":
    main()
