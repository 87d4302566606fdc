"""Train the speech-to-expression net on real clips and synthetic speech.

    python -m retalk_models.talkin.train_expression --clips DIR --cache DIR --out DIR

Splits the people into folds, trains one net per fold without that fold's people, calibrates its spread on
them and scores them: every person is scored by a net that never saw them. Then one net learns from all
people and from the folds' mean, and is given their spread. Interrupted, it goes on from its checkpoints.
The same seed gives the same batches.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.numpy import save_file

from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.corpus import read_catalogue
from retalk_models.talkin.net import WEIGHTS_FILE, SpeechToExpression
from retalk_models.talkin.pairs import Pair, read_pairs, seconds_of
from retalk_models.talkin.scores import ClipScore, score, table
from retalk_models.talkin.synthetic import utterances
from retalk_models.talkin.trainer import Recipe, Trainer, calibrate, calibrate_like

_UNSEEN_SECONDS = 60.0


def folds(pairs: Sequence[Pair], count: int) -> list[tuple[str, ...]]:
    """People dealt into `count` groups of about equal speaking time, each person in one."""
    people: dict[str, float] = {}
    for pair in pairs:
        people[pair.person] = people.get(pair.person, 0.0) + seconds_of(pair)
    groups: list[list[str]] = [[] for _ in range(count)]
    totals = [0.0] * count
    for person in sorted(people, key=lambda name: (-people[name], name)):
        least = totals.index(min(totals))
        groups[least].append(person)
        totals[least] += people[person]
    return [tuple(sorted(group)) for group in groups]


def _report(out: Path, trainer: Trainer, scores: Sequence[ClipScore]) -> None:
    content = {
        "recipe": asdict(trainer.recipe),
        "clips": [pair.name for pair in trainer.pairs if pair.person not in trainer.recipe.held_out],
        "scores": [asdict(one) for one in scores],
        "losses": [round(value, 4) for value in trainer.losses],
    }
    (out / "report.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def train(recipe: Recipe, pairs: Sequence[Pair], out: Path, count: int) -> list[ClipScore]:
    """Folds, then the final net from all people; returns the scores of every unseen clip."""
    said = list(utterances(recipe.synthetic_seconds, recipe.seed))
    calibrated, checkpoints, scores = [], [], []
    for index, held in enumerate(folds(pairs, count)):
        print(f"fold {index + 1}/{count}, without {' '.join(held)}", flush=True)
        fold = replace(recipe, seed=recipe.seed + index, held_out=held)
        trainer = Trainer(fold, pairs, said, out / f"fold{index}")
        trainer.train()
        tensors = calibrate(trainer.tensors(), trainer.held_out)
        save_file(tensors, str(trainer.out / WEIGHTS_FILE))
        found = [score(SpeechToExpression(tensors), pair) for pair in trainer.held_out]
        _report(trainer.out, trainer, found)
        print(table(found), flush=True)
        calibrated.append(tensors)
        checkpoints.append(trainer.checkpoint)
        scores += found
    print("all people, taught by the folds", flush=True)
    final = replace(recipe, seed=recipe.seed + count, steps=recipe.steps * 3 // 2)
    trainer = Trainer(final, pairs, said, out, checkpoints)
    trainer.train()
    unseen = list(utterances(_UNSEEN_SECONDS, recipe.seed + 1000))
    tensors = calibrate_like(trainer.tensors(), calibrated, unseen)
    save_file(tensors, str(out / WEIGHTS_FILE))
    scores.sort(key=lambda one: one.name)
    _report(out, trainer, scores)
    (out / "scores.md").write_text(table(scores) + "\n", encoding="utf-8")
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder with clips.csv and train/")
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps the tracked landmarks")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, checkpoints and reports")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="per fold; half more for the last")
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        entries = read_catalogue(options.clips, "train")
    except FileNotFoundError as error:
        parser.error(str(error))
    pairs = read_pairs(entries, options.cache, ExpressionBasis.load())
    print(f"{len(pairs)} clips, {sum(map(seconds_of, pairs)):.0f} s of speech with lips", flush=True)
    recipe = replace(Recipe(), seed=options.seed, steps=options.steps)
    print(table(train(recipe, pairs, options.out, options.folds)))
    print(f"wrote {options.out / WEIGHTS_FILE}")


if __name__ == "__main__":
    main()
