"""Train the rendering net: what is learnt and how; see train_renderer for the command."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from retalk_models.talkin.adversary import deceived, judged, patches, seeded
from retalk_models.talkin.crop_corpus import CropClip
from retalk_models.talkin.enhance import RENDERER_FILE
from retalk_models.talkin.render_samples import Sample, SampleSource, inputs, stacked, varied
from retalk_models.talkin.render_scores import Scores, evaluate, tensors
from retalk_models.talkin.rendernet import RenderNet, compose, placed, save_net
from retalk_models.talkin.train_expression import HELD_OUT

CHECKPOINT_S = 30.0
"""Seconds between checkpoints."""

_POOL = 700
"""Pairs kept drawn: drawing costs a fifth of a step, so a pair is seen a few times, never twice alike."""

_SCORE_EVERY = 250


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the result, besides the clips."""

    seed: int = 0
    steps: int = 2000
    pairs: int = 4
    """Pairs of consecutive frames in a batch."""
    fresh: int = 1
    """Pairs drawn anew per step."""
    rate: float = 8e-4
    decay: float = 0.01
    mouth: float = 4.0
    """How much more the lips count than the rest of what is drawn."""
    edges: float = 1.0
    bands: float = 1.0
    steadiness: float = 0.5
    choosing: float = 8.0
    """The price of averaging the two warps, which are never quite in line: it takes the skin's grain away."""
    choosing_by: float = 0.6
    """The share of the steps at which that is the whole price. It begins at nothing: a net that must choose
    before it has seen what either is worth stays with the first. 0: whole from the first step on."""
    painting: float = 0.01
    """The price of showing neither of them."""
    inside: float = 0.6
    """How much less the truth counts between the lips, where it cannot be known, than on them."""
    own: float = 0.02
    """The price of drawing between the lips what neither warp shows."""
    texture: float = 1.0
    """How much it counts that there is as much detail between the lips as in truth."""
    adversary: float = 0.25
    """The adversary's pull over that of all else; 0: there is none."""
    adversary_from: float = 0.55
    """The share of the steps after which it learns; it pulls from a twentieth later on."""
    adversary_rate: float = 4e-4
    average: float = 0.995
    held_out: tuple[str, ...] = HELD_OUT


def _mean(value: Tensor, weight: Tensor) -> Tensor:
    return (value * weight).sum() / (weight.sum() * value.shape[1] + 1e-6)


def objective(
    value: Tensor,
    gates: Tensor,
    out: Tensor,
    batch: dict[str, Tensor],
    recipe: Recipe,
    done: float = 1.0,
) -> Tensor:
    """The loss of a batch of pairs: distance, edges, bands, motion within a pair, and choice.

    done: the share of the run's steps that is behind.
    """
    truth, reach = batch["truth"], batch["reach"]
    inside = _inside(batch)
    weight = reach * (1 + (recipe.mouth - 1) * batch["lips"]) * (1 - (1 - recipe.inside) * inside)
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
    choosing = recipe.choosing * min(1.0, (done + 1e-9) / max(1e-9, recipe.choosing_by)) ** 3
    loss = loss + _mean(choosing * undecided + recipe.painting * gates[:, 2:], reach)
    loss = loss + recipe.own * _mean(gates[:, 2:], reach * inside)
    # A mean of all mouths that could be there is a fog: it has less detail than any of them.
    return loss + recipe.texture * _mean((_detail(out) - _detail(truth)).abs(), reach * inside)


def _inside(batch: dict[str, Tensor]) -> Tensor:
    """(n, 1, SIDE, SIDE) 0..1, what lies between the lips."""
    return (batch["drawn"][:, 1:2] + 1) / 2


def _detail(picture: Tensor) -> Tensor:
    """(n, 1, SIDE, SIDE) how much detail the luma has round each sample."""
    luma = picture[:, :1]
    fine = luma - functional.avg_pool2d(luma, 3, 1, 1)
    return functional.avg_pool2d(fine.abs(), 7, 1, 3)


def _key(recipe: Recipe, clips: Sequence[CropClip]) -> str:
    """What a checkpoint must have been made by to be gone on from."""
    digest = hashlib.sha256(json.dumps(asdict(recipe)).encode())
    for clip in clips:
        digest.update(f"{clip.name} {clip.person} {len(clip.numbers)}".encode())
        digest.update(np.ascontiguousarray(clip.points).tobytes())
    return digest.hexdigest()


class CheckpointError(ValueError):
    """A folder holds the checkpoint of another run."""


class Trainer:
    """One run: a pool of drawn pairs, the loop, checkpoints, scores on held-out people.

    Uninterrupted, recipe and clips decide the result. A run that goes on from its checkpoint keeps weights,
    optimizer, losses and scores, but draws its pairs anew.
    """

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
        self._key = _key(recipe, clips)
        self.source = SampleSource([one for one in clips if one.person not in recipe.held_out])
        held_out = [one for one in clips if one.person in recipe.held_out]
        self._tests, self._tests_per_clip = SampleSource(held_out), tests_per_clip
        self.test = self._tests.fixed(tests_per_clip, 1) if held_out else []
        self.net = placed(start or RenderNet(), device).train()
        self.average = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
        self.optimizer = torch.optim.AdamW(self.net.parameters(), recipe.rate, weight_decay=recipe.decay)
        self.adversary = seeded(recipe.seed + 1, device)
        self._adversary_optimizer = torch.optim.Adam(
            self.adversary.parameters(), recipe.adversary_rate, betas=(0.5, 0.9)
        )
        self.step = 0
        self.losses: list[float] = []
        self.scores: list[tuple[int, Scores]] = []

    def train(self) -> None:
        """Run to the recipe's end, from the checkpoint where there is one.

        Raises CheckpointError for another run's checkpoint.
        """
        self._resume()
        if self.step < self.recipe.steps:
            self._run()
        if self.test and (not self.scores or self.scores[-1][0] != self.step):
            self._score()
        self._keep()

    def _run(self) -> None:
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

    def averaged(self) -> RenderNet:
        """The net with its weights averaged over the last steps."""
        net = RenderNet(self.net.widths)
        net.load_state_dict(self.average)
        return placed(net, self.device).eval()

    def score_strange(self) -> Scores | None:
        """Scores where another mouth stands in for the frame's; None where no held-out clip has one."""
        pairs = self._tests.fixed(self._tests_per_clip, 1, strange=1.0)
        return evaluate(self.averaged(), pairs, self.device) if pairs else None

    def _score(self) -> None:
        scores = evaluate(self.averaged(), self.test, self.device)
        self.scores.append((self.step, scores))
        print(
            f"  held out: lips {scores.lips_psnr:.2f} dB (warp {scores.lips_psnr_warp:.2f}), "
            f"all {scores.reach_psnr:.2f} ({scores.reach_psnr_warp:.2f}), ssim {scores.ssim:.3f} "
            f"({scores.ssim_warp:.3f}), sharpness {scores.sharpness:.2f} ({scores.sharpness_warp:.2f}), "
            f"flicker {scores.flicker:.2f} ({scores.flicker_warp:.2f}), "
            f"inside {scores.inside_psnr:.2f} dB ({scores.inside_psnr_warp:.2f}), "
            f"sharpness {scores.inside_sharpness:.2f} ({scores.inside_sharpness_warp:.2f})",
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
        out = compose(value, gates, synthesis)
        loss = objective(value, gates, out, batch, recipe, share)
        told = float(loss.detach())
        if recipe.adversary and share >= recipe.adversary_from:
            loss = loss + self._contested(loss, out, batch, share)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        keep = min(recipe.average, (self.step + 1) / (self.step + 10))
        for name, now in self.net.state_dict().items():
            self.average[name].lerp_(now.detach(), 1 - keep)
        return told

    def _contested(self, loss: Tensor, out: Tensor, batch: dict[str, Tensor], share: float) -> Tensor:
        """Let the adversary learn from what was drawn; its pull on the net."""
        recipe, truth, drawn = self.recipe, batch["truth"], batch["drawn"]
        # Outside the lips it sees the truth, and judges nothing.
        made = truth + batch["lips"] * batch["reach"] * (out - truth)
        weight = patches(_inside(batch) + 0.1 * batch["lips"])
        own = judged(self.adversary, truth, made, drawn, weight)
        self._adversary_optimizer.zero_grad(set_to_none=True)
        own.backward()  # type: ignore[no-untyped-call]
        self._adversary_optimizer.step()
        if share < recipe.adversary_from + 0.05:
            return loss.new_zeros(())
        self.adversary.requires_grad_(False)
        pull = deceived(self.adversary, made, drawn, weight)
        (ours,) = torch.autograd.grad(loss, out, retain_graph=True)
        (its,) = torch.autograd.grad(pull, out, retain_graph=True)
        self.adversary.requires_grad_(True)
        scale = (recipe.adversary * ours.norm() / its.norm().clamp_min(1e-6)).clamp_max(10.0)
        pulled: Tensor = pull * scale.detach()
        return pulled

    @property
    def _checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def _keep(self) -> None:
        part = self._checkpoint.with_suffix(".part")
        torch.save(
            {
                "run": self._key,
                "net": self.net.state_dict(),
                "average": self.average,
                "optimizer": self.optimizer.state_dict(),
                "adversary": self.adversary.state_dict(),
                "adversary_optimizer": self._adversary_optimizer.state_dict(),
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
        if kept.get("run") != self._key:
            raise CheckpointError(
                f"{self._checkpoint} is of another recipe or of other clips; give --out another folder, "
                "or delete it"
            )
        self.net.load_state_dict(kept["net"])
        self.average = kept["average"]
        self.optimizer.load_state_dict(kept["optimizer"])
        self.adversary.load_state_dict(kept["adversary"])
        self._adversary_optimizer.load_state_dict(kept["adversary_optimizer"])
        self.step, self.losses = kept["step"], kept["losses"]
        self.scores = [(step, Scores(**one)) for step, one in kept["scores"]]
        print(f"going on from step {self.step}", flush=True)
