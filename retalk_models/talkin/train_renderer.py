"""Train the rendering net on real clips.

    python -m retalk_models.talkin.train_renderer --clips DIR --cache DIR --out DIR [--adapt CLIP]

Crops are cut once into the cache. The people that the expression net's measured run leaves out are left out
here, too, and score the result. Interrupted, it goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from retalk_models.picture import F32
from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.corpus import read_catalogue
from retalk_models.talkin.crop_corpus import CropClip, build, read
from retalk_models.talkin.enhance import RENDERER_FILE
from retalk_models.talkin.render_samples import Sample, SampleSource, inputs, stacked, varied
from retalk_models.talkin.rendernet import RenderNet, compose, placed, save_net
from retalk_models.talkin.train_expression import HELD_OUT

CHECKPOINT_S = 120.0
"""Seconds between checkpoints."""

_POOL = 700
"""Pairs kept drawn: drawing costs a fifth of a step, so a pair is seen a few times, never twice alike."""

_SCORE_EVERY = 250

ADAPT_STEPS = 200


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the result, besides the clips."""

    seed: int = 0
    steps: int = 3000
    pairs: int = 4
    """Pairs of consecutive frames in a batch."""
    fresh: int = 1
    """Pairs drawn anew per step."""
    rate: float = 2e-3
    decay: float = 0.01
    mouth: float = 4.0
    """How much more the lips count than the rest of what is drawn."""
    edges: float = 1.0
    bands: float = 1.0
    steadiness: float = 0.5
    choosing: float = 0.01
    average: float = 0.995
    held_out: tuple[str, ...] = HELD_OUT


def _mean(value: Tensor, weight: Tensor) -> Tensor:
    return (value * weight).sum() / (weight.sum() * value.shape[1] + 1e-6)


def objective(value: Tensor, gates: Tensor, out: Tensor, batch: dict[str, Tensor], recipe: Recipe) -> Tensor:
    """The loss of a batch of pairs: distance, edges, bands, motion within a pair, and choice."""
    truth, reach = batch["truth"], batch["reach"]
    weight = reach * (1 + (recipe.mouth - 1) * batch["lips"])
    fault = out - truth
    loss = _mean(fault.abs(), weight)
    across, down = fault[..., :, 1:] - fault[..., :, :-1], fault[..., 1:, :] - fault[..., :-1, :]
    loss = loss + recipe.edges * (
        _mean(across.abs(), weight[..., :, 1:]) + _mean(down.abs(), weight[..., 1:, :])
    )
    level, scale = fault, weight
    for _ in range(2):
        small = functional.avg_pool2d(level, 2)
        band = level - functional.interpolate(small, scale_factor=2.0, mode="bilinear", align_corners=False)
        loss = loss + recipe.bands * _mean(band.abs(), scale)
        level, scale = small, functional.avg_pool2d(scale, 2)
    moved = fault[1::2] - fault[0::2]
    loss = loss + recipe.steadiness * _mean(moved.abs(), weight[0::2])
    # Two references averaged are a blur: one must win.
    both = gates[:, :1] + gates[:, 1:2] + 1e-4
    share = gates[:, :1] / both
    undecided = share * (1 - share) * both * (value[:, 3:6] - value[:, 6:9]).abs().mean(1, keepdim=True)
    return loss + _mean(recipe.choosing * 10 * undecided + recipe.choosing * gates[:, 2:], reach)


def tensors(batch: dict[str, F32], device: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(one)).to(device) for name, one in batch.items()}


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over samples, of what the net draws and of the first warp alone.

    PSNR in dB, on luma, on the lips and on all that is drawn; SSIM on luma; sharpness and flicker over
    the truth's.
    """

    lips_psnr: float
    lips_psnr_warp: float
    reach_psnr: float
    reach_psnr_warp: float
    ssim: float
    ssim_warp: float
    sharpness: float
    sharpness_warp: float
    flicker: float
    flicker_warp: float


def _psnr(fault: Tensor, mask: Tensor) -> Tensor:
    luma = fault[:, :1] * 127.5
    error = (luma**2 * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(1)
    return 10 * torch.log10(255**2 / error.clamp_min(0.1))


def _ssim(left: Tensor, right: Tensor, mask: Tensor) -> Tensor:
    def soft(value: Tensor) -> Tensor:
        return functional.avg_pool2d(value, 7, 1, 3)

    a, b = left[:, :1] * 127.5, right[:, :1] * 127.5
    mean_a, mean_b = soft(a), soft(b)
    var_a, var_b = soft(a * a) - mean_a**2, soft(b * b) - mean_b**2
    cov = soft(a * b) - mean_a * mean_b
    mean_a, mean_b = mean_a + 127.5, mean_b + 127.5
    like = ((2 * mean_a * mean_b + 6.5) * (2 * cov + 58.5)) / (
        (mean_a**2 + mean_b**2 + 6.5) * (var_a + var_b + 58.5)
    )
    return (like * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(1)


def _detail(value: Tensor, mask: Tensor) -> Tensor:
    luma = value[:, :1]
    fine = luma - functional.avg_pool2d(luma, 3, 1, 1)
    return (fine.abs() * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(1)


@torch.no_grad()
def evaluate(net: RenderNet, pairs: Sequence[tuple[Sample, Sample]], device: str = "cpu") -> Scores:
    """Score a net on pairs it has not learnt from."""
    net.eval()
    rows: list[list[Tensor]] = []
    for start in range(0, len(pairs), 8):
        some = [one for pair in pairs[start : start + 8] for one in pair]
        raw = stacked(some)
        batch = tensors(raw, device)
        value = torch.from_numpy(inputs(raw)).to(device)
        gates, synthesis = net(value)
        out = compose(value, gates, synthesis)
        truth, reach = batch["context"], batch["reach"]
        lips = batch["lips"] * (reach > 0.5)
        row = []
        for measured in (out, batch["first"]):
            shown = truth + reach * (measured - truth)
            fault = shown - truth
            row += [_psnr(fault, lips), _psnr(fault, (reach > 0.5).float()), _ssim(shown, truth, lips)]
            row.append(_detail(shown, lips) / _detail(truth, lips).clamp_min(1e-4))
            true_motion = ((truth[1::2] - truth[::2])[:, :1].abs() * lips[::2]).sum((1, 2, 3)) + 1e-3
            motion = ((shown[1::2] - shown[::2])[:, :1].abs() * lips[::2]).sum((1, 2, 3))
            row.append((motion / true_motion).repeat_interleave(2))
        rows.append(row)
    net.train()
    columns = [float(torch.cat(column).mean()) for column in zip(*rows, strict=True)]
    own, warp = columns[:5], columns[5:]
    return Scores(*(value for both in zip(own, warp, strict=True) for value in both))


class Trainer:
    """One run: a pool of drawn pairs, the loop, checkpoints, scores on held-out people."""

    def __init__(
        self,
        recipe: Recipe,
        clips: Sequence[CropClip],
        out: Path,
        device: str = "cpu",
        start: RenderNet | None = None,
        tests_per_clip: int = 8,
    ) -> None:
        self.recipe, self.out, self.device = recipe, out, device
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(recipe.seed)
        self.source = SampleSource([one for one in clips if one.person not in recipe.held_out])
        held_out = [one for one in clips if one.person in recipe.held_out]
        self.test = SampleSource(held_out).fixed(tests_per_clip, 1) if held_out else []
        self.net = placed(start or RenderNet(), device).train()
        self.average = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
        self.optimizer = torch.optim.AdamW(self.net.parameters(), recipe.rate, weight_decay=recipe.decay)
        self.step = 0
        self.losses: list[float] = []
        self.scores: list[tuple[int, Scores]] = []

    def train(self) -> None:
        """Run to the recipe's end, from the checkpoint where there is one."""
        self._resume()
        rng = np.random.default_rng([self.recipe.seed, self.step])
        pool = [self.source.pair(rng) for _ in range(min(_POOL, 60))]
        saved = began = time.monotonic()
        first = self.step
        while self.step < self.recipe.steps:
            for _ in range(self.recipe.fresh):
                fresh = self.source.pair(rng)
                if len(pool) < _POOL:
                    pool.append(fresh)
                else:
                    pool[int(rng.integers(len(pool)))] = fresh
            chosen = rng.choice(len(pool), self.recipe.pairs, replace=False)
            self.losses.append(self._learn([one for i in chosen for one in pool[i]], rng))
            self.step += 1
            if self.step % 50 == 0:
                pace = (time.monotonic() - began) / (self.step - first)
                recent = float(np.mean(self.losses[-50:]))
                print(
                    f"step {self.step}/{self.recipe.steps} loss {recent:.4f} {pace:.2f} s a step", flush=True
                )
            if self.step % _SCORE_EVERY == 0 and self.test:
                self._score()
            if time.monotonic() - saved > CHECKPOINT_S:
                self._keep()
                saved = time.monotonic()
        self._keep()

    def averaged(self) -> RenderNet:
        """The net with its weights averaged over the last steps."""
        net = RenderNet(self.net.widths)
        net.load_state_dict(self.average)
        return placed(net, self.device).eval()

    def _score(self) -> None:
        scores = evaluate(self.averaged(), self.test, self.device)
        self.scores.append((self.step, scores))
        print(
            f"  held-out people: lips {scores.lips_psnr:.2f} dB (warp {scores.lips_psnr_warp:.2f}), "
            f"all {scores.reach_psnr:.2f} ({scores.reach_psnr_warp:.2f}), ssim {scores.ssim:.3f} "
            f"({scores.ssim_warp:.3f}), sharpness {scores.sharpness:.2f} ({scores.sharpness_warp:.2f}), "
            f"flicker {scores.flicker:.2f} ({scores.flicker_warp:.2f})",
            flush=True,
        )

    def _learn(self, samples: Sequence[Sample], rng: np.random.Generator) -> float:
        recipe = self.recipe
        share = self.step / max(1, recipe.steps)
        warm = min(1.0, (self.step + 1) / 100)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate * warm * (0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * share))))
        raw = varied(stacked(samples), rng)
        batch = tensors(raw, self.device)
        value = torch.from_numpy(inputs(raw)).to(self.device, memory_format=torch.channels_last)
        gates, synthesis = self.net(value)
        loss = objective(value, gates, compose(value, gates, synthesis), batch, recipe)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        keep = min(recipe.average, (self.step + 1) / (self.step + 10))
        for name, now in self.net.state_dict().items():
            self.average[name].lerp_(now.detach(), 1 - keep)
        return float(loss.detach())

    @property
    def _checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def _keep(self) -> None:
        part = self._checkpoint.with_suffix(".part")
        torch.save(
            {
                "net": self.net.state_dict(),
                "average": self.average,
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "losses": self.losses,
                "scores": [(step, asdict(one)) for step, one in self.scores],
            },
            part,
        )
        part.replace(self._checkpoint)
        save_net(self.averaged(), self.out / RENDERER_FILE)

    def _resume(self) -> None:
        if not self._checkpoint.is_file():
            return
        kept = torch.load(self._checkpoint, map_location=self.device, weights_only=True)
        self.net.load_state_dict(kept["net"])
        self.average = kept["average"]
        self.optimizer.load_state_dict(kept["optimizer"])
        self.step, self.losses = kept["step"], kept["losses"]
        self.scores = [(step, Scores(**one)) for step, one in kept["scores"]]
        print(f"going on from step {self.step}", flush=True)


def report(trainer: Trainer, clips: Sequence[CropClip]) -> None:
    """Write what the run was and came to: report.json, card.md, and curves.png where matplotlib is there."""
    recipe, out = trainer.recipe, trainer.out
    learnt = [one.name for one in clips if one.person not in recipe.held_out]
    scores = [{"step": step, **asdict(one)} for step, one in trainer.scores]
    content = {"recipe": asdict(recipe), "clips": learnt, "losses": trainer.losses, "scores": scores}
    (out / "report.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    lines = [
        f"Seed {recipe.seed}, {recipe.steps} steps of {2 * recipe.pairs} crops, {len(learnt)} clips.",
        f"Never learnt from, and measured on: {', '.join(recipe.held_out)}.",
        "Licence: the weights saw these clips, identifiable people among them; see the catalogue.",
        "",
        "| step | " + " | ".join(one.name for one in fields(Scores)) + " |",
        "|---" * (len(fields(Scores)) + 1) + "|",
    ]
    for step, one in trainer.scores:
        lines.append(f"| {step} | " + " | ".join(f"{value:.3f}" for value in asdict(one).values()) + " |")
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


def _adapt(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    from retalk_models.talkin.adapt_renderer import adapt

    try:
        gain = adapt(
            options.adapt,
            options.cache,
            options.out,
            options.steps or ADAPT_STEPS,
            options.seed,
            options.device,
        )
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    before, after = gain.before, gain.after
    print(f"held-back frames: lips {before.lips_psnr:.2f} -> {after.lips_psnr:.2f} dB, ", end="")
    print(f"ssim {before.ssim:.3f} -> {after.ssim:.3f}")
    print(f"wrote {gain.kept}" if gain.kept is not None else "not better on them: nothing was kept")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder with clips.csv and train/")
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder that keeps tracked landmarks and crops"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, checkpoints and reports")
    parser.add_argument("--steps", type=int, help=f"{Recipe().steps}, or {ADAPT_STEPS} with --adapt")
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda[:N]")
    parser.add_argument("--adapt", type=Path, metavar="CLIP", help="fine-tune on a presenter's clip instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.adapt is not None:
        _adapt(parser, options)
        return
    if options.clips is None:
        parser.error("--clips is missing; it must name the folder with clips.csv, or give --adapt CLIP")
    try:
        entries = read_catalogue(options.clips, "train")
    except FileNotFoundError as error:
        parser.error(str(error))
    build(entries, options.cache / "tracks", options.cache / "renderer" / "crops", ExpressionBasis.load())
    clips = read(options.cache / "renderer" / "crops")
    print(f"{len(clips)} clips, {sum(len(one.numbers) for one in clips)} crops", flush=True)
    recipe = replace(Recipe(), seed=options.seed, steps=options.steps or Recipe().steps)
    trainer = Trainer(recipe, clips, options.out, options.device)
    trainer.train()
    report(trainer, clips)
    print(f"wrote {options.out / RENDERER_FILE}")


if __name__ == "__main__":
    main()
