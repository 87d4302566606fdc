"""Train the speech-to-expression net on real clips and synthetic speech.

    python -m retalk_models.talkin.train_expression --clips DIR --cache DIR --out DIR

A measured run leaves eight people out, calibrates its spread on them and scores them. The final run, same
recipe, learns from all people and is given the measured run's spread. Interrupted, it goes on from its
checkpoints. The same seed gives the same batches.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.numpy import save_file

from retalk_models.picture import F32
from retalk_models.talkin.arguments import TrainingParser
from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.corpus import read_catalogue
from retalk_models.talkin.net import LOOK_AHEADS_MS, SpeechToExpression, join, weights_file
from retalk_models.talkin.pairs import Pair, read_pairs, seconds_of
from retalk_models.talkin.recipe import Material, Recipe
from retalk_models.talkin.scores import ClipScore, score, table
from retalk_models.talkin.synthetic import utterances
from retalk_models.talkin.trainer import (
    NothingLearntError,
    OtherRunError,
    Trainer,
    calibrate,
    calibrate_like,
)

HELD_OUT = ("a05", "a10", "a14", "a22", "b23", "b28", "b35", "b37")
"""People for validation, by their first clip: four of each set, men and women, several sources."""

MEMBERS = 2
"""Nets whose outputs are averaged."""

_UNSEEN_SECONDS = 60.0
"""Synthetic speech, of sentences shuffled anew, that the spread is carried over on."""


def _report(out: Path, trainer: Trainer, scores: Sequence[ClipScore]) -> None:
    content = {
        "recipe": asdict(trainer.recipe),
        "clips": [pair.name for pair in trainer.pairs if pair.person not in trainer.recipe.held_out],
        "scores": [asdict(one) for one in scores],
        "losses": [round(value, 4) for value in trainer.losses],
    }
    (out / "report.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def _run(
    recipe: Recipe, seeds: Sequence[int], pairs: Sequence[Pair], out: Path, cache: Path
) -> dict[str, F32]:
    """Train one net per seed on the same data and join them, not yet calibrated."""
    said = list(utterances(recipe.synthetic_seconds, recipe.seed))
    material = Material.of(recipe, pairs, said, cache)
    nets = []
    for seed in seeds:
        trainer = Trainer(material, seed, out / f"seed{seed}")
        trainer.train()
        nets.append(trainer.tensors())
        _report(trainer.out, trainer, [])
    return join(nets)


def train(recipe: Recipe, pairs: Sequence[Pair], out: Path, cache: Path) -> list[ClipScore]:
    """A measured run and the final one; returns the measured run's scores on people it never saw.

    cache: where what is said in the clips and the synthetic speech is kept.
    """
    name = weights_file(recipe.look_ahead_ms)
    first, *others = range(recipe.seed, recipe.seed + MEMBERS + 1)
    print(f"measured run, without {' '.join(HELD_OUT)}", flush=True)
    without = replace(recipe, held_out=HELD_OUT)
    # The two runs differ in their data and in one of the starts.
    measured = _run(without, [first, *others[1:]], pairs, out / "measured", cache)
    held_out = [pair for pair in pairs if pair.person in HELD_OUT]
    reference = calibrate(measured, held_out, pairs)
    save_file(reference, str(out / "measured" / name))
    scores = [score(SpeechToExpression(reference), pair) for pair in held_out]
    (out / "scores.md").write_text(table(scores) + "\n", encoding="utf-8")
    print(table(scores), flush=True)
    print("final run, all people", flush=True)
    final = _run(recipe, others, pairs, out / "final", cache)
    unseen = list(utterances(_UNSEEN_SECONDS, recipe.seed + 1000))
    save_file(calibrate_like(final, [reference], unseen), str(out / name))
    return scores


def main() -> None:
    parser = TrainingParser(__doc__)
    parser.add_argument("--clips", type=Path, required=True, help="folder with clips.csv and train/")
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder that keeps the tracked landmarks and what is heard"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, checkpoints and reports")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument(
        "--look-ahead-ms",
        type=int,
        choices=LOOK_AHEADS_MS,
        default=LOOK_AHEADS_MS[0],
        help="how much of the voice beyond a mouth the nets hear",
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        entries = read_catalogue(options.clips, "train")
        options.out.mkdir(parents=True, exist_ok=True)
        pairs = read_pairs(entries, options.cache, ExpressionBasis.load())
    except (OSError, ValueError) as error:
        parser.refuse(error)
    print(f"{len(pairs)} clips, {sum(map(seconds_of, pairs)):.0f} s of speech with lips", flush=True)
    recipe = replace(Recipe(), seed=options.seed, steps=options.steps, look_ahead_ms=options.look_ahead_ms)
    try:
        train(recipe, pairs, options.out, options.cache)
    except (OtherRunError, NothingLearntError) as error:
        parser.refuse(error)
    print(f"wrote {options.out / weights_file(recipe.look_ahead_ms)}")


if __name__ == "__main__":
    main()
