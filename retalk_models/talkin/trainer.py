"""One training run of the expression net: loss, loop with checkpoints, calibration."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retalk_models.engine import VOICE_RATE
from retalk_models.face.geometry import INNER_LIPS, OUTER_LIPS, POINTS, mirror_index
from retalk_models.hearing import HearingStream
from retalk_models.picture import F32
from retalk_models.speech import LevelTracker, features
from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.batches import Sampler, powers
from retalk_models.talkin.net import (
    LOOK_AHEADS_MS,
    STEP,
    STEPS_PER_RUN,
    SpeechToExpression,
    delay_of,
    step_position,
)
from retalk_models.talkin.pairs import Pair
from retalk_models.talkin.recipe import Material
from retalk_models.talkin.recurrent import RecurrentNet
from retalk_models.talkin.scores import correlation, run
from retalk_models.talkin.synthetic import Utterance

GATE_POINTS = (0.6, 0.95, 0.2, 0.5)
"""Where the closure gate starts and ends to shut, and the speaking gate starts and ends to let through. A
closure gate that shuts sooner knows less of real lips than the opening, learnt with batches.PRESS, does."""

CHECKPOINT_EVERY = 100
"""Steps between checkpoints."""

LINEAR_SHARE = 0.8
"""What the linear member counts beside the nets."""

SNAP, SNAP_S = 0.4, 0.06
"""By how much of its way from its own running mean an opening is carried on; that mean's time constant."""

LEAST_SPREAD = 1e-3
"""An opening that moves less than this (canonical units) was not learnt."""

HEARD_ENOUGH = 0.5
"""From which correlation on, over unseen clips, a coefficient is widened until it spreads as the truth does.
Worse heard ones get as much less; what cannot be heard is not widened into noise."""

MOST_GAIN = 3.0
"""What hardly moves is not heard, whatever its correlation."""


def lip_effect(basis: ExpressionBasis) -> F32:
    """(K,) how far a unit of each coefficient moves a lip point, root mean square in canonical units."""
    lips = basis.vectors[:, list(OUTER_LIPS) + list(INNER_LIPS), :2]
    return np.asarray(np.sqrt((lips**2).sum(2).mean(1)), np.float32)


def mirror_matrix(basis: ExpressionBasis) -> F32:
    """(K, K): coefficients of the mirrored face = matrix @ coefficients."""
    index = mirror_index()
    flipped = basis.vectors[:, index] * np.array([-1, 1, 1], np.float32)
    return np.asarray(basis.project(flipped.reshape(-1, POINTS, 3)).T, np.float32)


class OtherRunError(ValueError):
    """A folder holds the checkpoint of another look-ahead or kind of net; the message names it."""


class NothingLearntError(ValueError):
    """The nets say the same whatever they hear; the message says what would help."""


class Objective:
    """The loss: lip motion, its velocity and its correlation, closure, speaking, and synthetic curves."""

    def __init__(self, mean: F32, spread: F32, effect: F32, unlikeness: float) -> None:
        self.unlikeness = unlikeness
        self.mean, self.spread = torch.tensor(mean), torch.tensor(spread)
        weight = (effect * spread) ** 2
        weight = weight / weight.sum()
        weight[0] += 0.4
        self.weight = torch.tensor((weight / weight.sum()).astype(np.float32))
        self.smooth = nn.functional.smooth_l1_loss

    def real(self, value: Tensor, gates: Tensor, targets: Tensor) -> Tensor:
        truth = (targets[..., :-3] - self.mean) / self.spread
        valid = targets[..., -1:]
        fault = self.smooth(value, truth, reduction="none", beta=1.0) * 2
        loss = (fault * self.weight * valid).sum() / valid.sum()
        both = valid[:, 2:] * valid[:, :-2]
        speed, true_speed = value[:, 2:] - value[:, :-2], truth[:, 2:] - truth[:, :-2]
        loss = loss + 0.4 * ((speed - true_speed) ** 2 * self.weight * both).sum() / both.sum()
        loss = loss + self.unlikeness * (self._unlikeness(value, truth, valid) * self.weight).sum()
        # The mouth learns from telling shut from open, too: with a fifth of the weight it shuts less often.
        return loss + self._gates(gates, targets, 0.8, 0.6)

    @staticmethod
    def _unlikeness(value: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """1 - Pearson r over each window, per coefficient; offsets and gains do not count here."""
        count = valid.sum(1, keepdim=True) + 1e-6
        left = (value - (value * valid).sum(1, keepdim=True) / count) * valid
        right = (truth - (truth * valid).sum(1, keepdim=True) / count) * valid
        norm = torch.sqrt((left**2).sum(1) * (right**2).sum(1) + 1e-3)
        return 1 - ((left * right).sum(1) / norm).mean(0)

    @staticmethod
    def _gates(gates: Tensor, targets: Tensor, closure: float, speaking: float) -> Tensor:
        fault = nn.functional.binary_cross_entropy_with_logits(gates, targets[..., -3:-1], reduction="none")
        valid = targets[..., -1:]
        share = fault * torch.tensor([closure, speaking]) * valid
        return share.sum() / valid.sum()

    def synthetic(self, curves: Tensor, gates: Tensor, targets: Tensor) -> Tensor:
        fault = ((curves - targets[..., :-3]) ** 2).mean() * 4
        return 0.5 * fault + self._gates(gates, targets, 0.2, 0.6)


def export(net: RecurrentNet, mean: F32, spread: F32, delay: int, member: tuple[F32, F32]) -> dict[str, F32]:
    """The tensors that `net.SpeechToExpression` takes. member: weight and bias of the linear one."""
    kept = {k: v.numpy().astype(np.float32) for k, v in net.state_dict().items() if "synthetic" not in k}
    kept["mean"], kept["spread"] = mean, spread
    kept["gate_points"] = np.array(GATE_POINTS, np.float32)
    kept["linear_weight"], kept["linear_bias"] = member
    kept["linear_share"] = np.array([LINEAR_SHARE], np.float32)
    kept["snap"] = np.array([SNAP, 1 - np.exp(-STEP / VOICE_RATE / SNAP_S)], np.float32)
    kept["delay"] = np.array([delay], np.float32)
    return kept


def _told(net: SpeechToExpression, sound: F32, seconds: NDArray[np.float64]) -> tuple[F32, F32]:
    """(n, K) the expression, and (K,) mean of it while speaking."""
    values, gates = run(net, sound, seconds)
    speaking = gates[:, 1] > 0.5
    return values, values[speaking if speaking.any() else slice(None)].mean(0)


def _heard(values: F32, truth: F32) -> F32:
    """(K,) correlation of (n, K) coefficients with the true ones."""
    return np.array(
        [correlation(told, true) for told, true in zip(values.T, truth.T, strict=True)], np.float32
    )


def _gain(goal: NDArray[np.float64] | F32, spread: NDArray[np.float64] | F32) -> F32:
    if spread[0] < LEAST_SPREAD:
        raise NothingLearntError(
            "the nets tell lips that hardly move; check the clips' sound and lags, or train on"
        )
    return np.asarray(goal / np.maximum(spread, 1e-6), np.float32)


def _widen(tensors: dict[str, F32], gain: F32, centre: F32) -> dict[str, F32]:
    """Outputs `gain` times as far from `centre`; the opening, from shut."""
    centre = centre.copy()
    centre[0] = 0
    wider = dict(tensors)
    wider["mean"] = (centre + gain * (tensors["mean"] - centre)).astype(np.float32)
    wider["spread"] = (gain * tensors["spread"]).astype(np.float32)
    return wider


def calibrate(tensors: dict[str, F32], pairs: Sequence[Pair], population: Sequence[Pair]) -> dict[str, F32]:
    """Widen the outputs on unseen clips until they spread as the truth of the whole population does.

    pairs: clips that the net never saw. population: clips whose truth alone is used; a few people's own
    spread differs from the average person's by more than a quarter either way.

    The opening is matched fully, from shut on; the other coefficients round their mean, as far as they are
    heard in `pairs`, see HEARD_ENOUGH. None but the opening is narrowed.
    """
    total = np.ones(len(tensors["mean"]), np.float32)
    # The root mean square over clips, as spreads of parts add up: rather a little too lively than mumbling.
    goal = np.sqrt(np.mean([pair.expression.var(0) for pair in population], axis=0))
    # The gates bend the opening, so one gain does not hit at once.
    for _ in range(3):
        net = SpeechToExpression(tensors)
        spreads, centres, heard = [], [], []
        for pair in pairs:
            seconds = pair.times[(pair.times > 0) & (pair.times < len(pair.sound) / VOICE_RATE)]
            values, centre = _told(net, pair.sound, seconds)
            spreads.append(values.std(0))
            centres.append(centre)
            heard.append(_heard(values, pair.at(seconds)))
        share = np.clip(np.mean(heard, axis=0) / HEARD_ENOUGH, 0, 1)
        share[0] = 1
        gain = _gain(goal * share, np.mean(spreads, axis=0))
        gain[1:] = np.clip(total[1:] * gain[1:], 1, MOST_GAIN) / total[1:]
        total *= gain
        tensors = _widen(tensors, gain, np.mean(centres, axis=0))
    return tensors


def calibrate_like(
    tensors: dict[str, F32], others: Sequence[dict[str, F32]], said: Sequence[Utterance]
) -> dict[str, F32]:
    """Widen the outputs until they spread as calibrated nets' do, on speech that none has seen lips of."""
    references = [SpeechToExpression(other) for other in others]
    seconds = [np.arange(0, len(one.sound) / VOICE_RATE, 0.04) for one in said]
    goal = np.mean(
        [
            [_told(net, one.sound, at)[0].std(0) for one, at in zip(said, seconds, strict=True)]
            for net in references
        ],
        axis=(0, 1),
    )
    for _ in range(3):
        net = SpeechToExpression(tensors)
        mine = [_told(net, one.sound, at) for one, at in zip(said, seconds, strict=True)]
        gain = _gain(goal, np.mean([values.std(0) for values, _ in mine], axis=0))
        tensors = _widen(tensors, gain, np.mean([centre for _, centre in mine], axis=0))
    return tensors


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


class Trainer:
    """One run: net, optimiser, checkpoint."""

    def __init__(self, material: Material, seed: int, out: Path) -> None:
        """seed: in place of the recipe's.

        Raises OtherRunError where `out` has the checkpoint of another look-ahead or kind of net.
        """
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        self.out = out
        basis = ExpressionBasis.load()
        self.recipe = recipe = replace(material.recipe, seed=seed)
        self.pairs = material.pairs
        self.delay = delay_of(recipe.look_ahead_ms)
        self.mean, self.spread = material.mean, material.spread
        self.sampler = Sampler(material.banks, material.made, mirror_matrix(basis), recipe.seed)
        self.objective = Objective(self.mean, self.spread, lip_effect(basis), recipe.unlikeness)
        self.jaw = basis.vectors[:, 152, 1]
        self.net = RecurrentNet(basis.size, recipe.hidden, recipe.dropout)
        weight, bias = material.components
        self.net.gist_weight.copy_(torch.from_numpy(weight))
        self.net.gist_bias.copy_(torch.from_numpy(bias))
        self.linear = material.member
        self.optimiser = self._optimiser()
        self.average = {k: v.clone() for k, v in self.net.state_dict().items()}
        self.step, self.losses = 0, list[float]()
        self.checkpoint = out / "checkpoint.pt"
        if self.checkpoint.is_file():
            kept = torch.load(self.checkpoint, weights_only=True)
            heard_ms = kept.get("look_ahead_ms", LOOK_AHEADS_MS[0])
            if heard_ms != recipe.look_ahead_ms:
                raise OtherRunError(
                    f"{self.checkpoint} is of a net that hears {heard_ms} ms ahead, not "
                    f"{recipe.look_ahead_ms}; give --out another folder, or delete it"
                )
            if _shapes(kept["net"]) != _shapes(self.net.state_dict()):
                raise OtherRunError(
                    f"{self.checkpoint} is of another kind of net; give --out another folder, or delete it"
                )
            self.net.load_state_dict(kept["net"])
            self.optimiser.load_state_dict(kept["optimiser"])
            self.average, self.step, self.losses = kept["average"], kept["step"], kept["losses"]
            print(f"going on from step {self.step}")

    def _watch(self) -> str:
        """How the averaged net does on the held-out people: mean r of opening, coefficient 1 and jaw."""
        net = RecurrentNet(len(self.mean), self.recipe.hidden).eval()
        net.load_state_dict(self.average)
        results = []
        for pair in self.held_out:
            heard = features(powers(pair.sound), LevelTracker())
            said = HearingStream().push(pair.sound)[: len(heard) // (2 * STEPS_PER_RUN)]
            with torch.no_grad():
                value = net(torch.from_numpy(heard[None]), torch.from_numpy(said[None]))[0][0].numpy()
            value = value * self.spread + self.mean
            value[:, 0] = np.maximum(value[:, 0], 0)
            seconds = np.array([step_position(0, j, self.delay) for j in range(len(value))]) / VOICE_RATE
            inside = (seconds > max(0.0, pair.times[0])) & (seconds < pair.times[-1])
            truth, value = pair.at(seconds[inside]), value[inside]
            both = [
                (value[:, 0], truth[:, 0]),
                (value[:, 1], truth[:, 1]),
                (value @ self.jaw, truth @ self.jaw),
            ]
            results.append([correlation(left, right) for left, right in both])
        return " ".join(f"{value:.3f}" for value in np.mean(results, axis=0)) if results else "-"

    def _save(self) -> None:
        state = {
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "step": self.step,
            "losses": self.losses,
            "mean": torch.tensor(self.mean),
            "spread": torch.tensor(self.spread),
            "look_ahead_ms": self.recipe.look_ahead_ms,
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)

    def _optimiser(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        return torch.optim.AdamW(
            self.net.parameters(), lr=recipe.rate, weight_decay=recipe.decay, betas=(0.9, 0.98)
        )

    def train(self) -> None:
        recipe = self.recipe
        began = time.monotonic()
        last = recipe.listening + recipe.steps
        while self.step < last:
            torch.manual_seed(recipe.seed * 1_000_003 + self.step)
            listening = self.step < recipe.listening
            if self.step == recipe.listening:
                # What the optimiser remembers of another task's gradients would only mislead it.
                self.optimiser = self._optimiser()
            done, all_steps = (
                (self.step, recipe.listening) if listening else (self.step - recipe.listening, recipe.steps)
            )
            rate = (recipe.listening_rate if listening else recipe.rate) * min(1.0, (done + 1) / 50)
            rate *= 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * done / all_steps))
            for group in self.optimiser.param_groups:
                group["lr"] = float(rate)
            self.net.train()
            loss = self._loss(0 if listening else recipe.real)
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimiser.step()
            self.step += 1
            keep = min(0.95, self.step / (self.step + 20))
            for name, tensor in self.net.state_dict().items():
                self.average[name].lerp_(tensor, 1 - keep)
            self.losses.append(float(loss.detach()))
            if self.step % 50 == 0:
                recent = np.mean(self.losses[-50:])
                watched = "listening" if listening else f"held-out r {self._watch()}"
                print(
                    f"step {self.step}/{last} loss {recent:.4f} {watched} {time.monotonic() - began:.0f} s",
                    flush=True,
                )
            if self.step % CHECKPOINT_EVERY == 0:
                self._save()
        self._save()

    def _loss(self, real: int) -> Tensor:
        """The loss of this step's batch, `real` windows of it with lips."""
        recipe = self.recipe
        made = recipe.synthetic if real else recipe.real + recipe.synthetic
        batch = self.sampler.batch(self.step, real, made)
        heard, said, seen, curves_true = (torch.from_numpy(x) for x in batch)
        value, gates, curves = self.net(heard, said)
        loss = torch.zeros(())
        if real:
            loss = self.objective.real(value[:real], gates[:real], seen)
        if made:
            loss = loss + self.objective.synthetic(curves[real:], gates[real:], curves_true)
        return loss

    def tensors(self) -> dict[str, F32]:
        """The averaged net, not yet calibrated."""
        net = RecurrentNet(len(self.mean), self.recipe.hidden)
        net.load_state_dict(self.average)
        return export(net, self.mean, self.spread, self.delay, self.linear)

    @property
    def held_out(self) -> list[Pair]:
        """The clips that this run does not learn from."""
        return [pair for pair in self.pairs if pair.person in self.recipe.held_out]
