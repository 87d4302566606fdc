"""Training batches for the expression net: banks of mel power with targets, and what is drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.ndimage import maximum_filter1d
from scipy.signal import resample_poly

from retalk_models.engine import VOICE_RATE
from retalk_models.phones import step_powers
from retalk_models.picture import F32
from retalk_models.speech import HOP
from retalk_models.talkin import augment
from retalk_models.talkin.net import STEP, step_position
from retalk_models.talkin.pairs import Pair
from retalk_models.talkin.synthetic import CURVES, STEP_S, Utterance, mouth

SPEEDS = (0.84, 0.92, 1.0, 1.09, 1.19)
"""Playing speeds of the real clips: pitch, formants and tempo together, lips along with them."""

FRAMES = 360
"""Mel frames in a training window: 3.6 s."""

_UTTERANCE_TAIL = 32
"""Frames of 10 ms that an utterance is taken to last beyond its last speech."""

_PAUSES = 0.06
"""Share of windows with a pause cut in; more, and the net forgets what lips do in real ones."""

_NOISY = 0.4
"""Share of windows with noise; more, and breath, which parts the lips, cannot be learnt."""

_OPENING_SPREAD = 0.05
"""Every person's opening is brought near this standard deviation (canonical units)."""


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """One recording ready for cutting.

    power: (frames, bands), frames even. targets: (frames / 2, n): n - 3 values, closure, speaking, valid.
    """

    name: str
    person: str
    power: F32
    targets: F32

    @property
    def seconds(self) -> float:
        return len(self.power) * HOP / VOICE_RATE


def _with_tail(active: F32, length: int) -> F32:
    """Activity (0 or 1) that lasts `length` entries longer."""
    return np.asarray(maximum_filter1d(active, length + 1, origin=length // 2, mode="constant"), np.float32)


def _speech_frames(power: F32) -> tuple[F32, F32]:
    """(frames,) whether speech is within 80 ms, and whether an utterance is under way, 0 or 1 each.

    An utterance lasts 320 ms longer than speech: between phrases lips stay as they are and part for breath.
    Both from a clean recording's own level.
    """
    decibels = 10 * np.log10(power.mean(1) + 1e-9)
    active = decibels > max(np.quantile(decibels, 0.95) - 27, -70)
    near = maximum_filter1d(active.astype(np.float32), 17)
    return near, _with_tail(near, _UTTERANCE_TAIL)


def person_scale(pairs: Sequence[Pair]) -> dict[str, float]:
    """Per person, what brings the opening's spread to the common one, within a factor of 2."""
    people: dict[str, list[F32]] = {}
    for pair in pairs:
        people.setdefault(pair.person, []).append(pair.expression[:, 0])
    return {
        person: float(np.clip(_OPENING_SPREAD / np.concatenate(parts).std(), 0.5, 2.0))
        for person, parts in people.items()
    }


def real_banks(pairs: Sequence[Pair], delay: int, speeds: Sequence[float] = SPEEDS) -> list[Bank]:
    """Banks of real clips; the values are expression coefficients, amplitude evened between people.

    delay: net.delay_of.
    """
    scales = person_scale(pairs)
    # Where a person's mouth shape lies on average is face and landmarker bias; a net that could hear it
    # would only be recognising the speaker. All get the common average, except for the opening.
    means = [pair.expression[:, 1:].mean(0) for pair in pairs]
    common = np.mean(means, axis=0)
    banks = []
    for pair, own in zip(pairs, means, strict=True):
        scale = scales[pair.person]
        opening = pair.expression[:, 0]
        shut = (opening < max(0.008, 0.12 * float(np.quantile(opening, 0.95)))).astype(np.float32)
        for speed in speeds:
            ratio = Fraction(1 / speed).limit_denominator(50)
            sound = resample_poly(pair.sound, ratio.numerator, ratio.denominator).astype(np.float32)
            power = step_powers(sound)
            steps = len(power) // 2
            seconds = np.array([step_position(0, j, delay) for j in range(steps)]) / VOICE_RATE / float(ratio)
            values = pair.at(seconds)
            values[:, 0] *= scale
            values[:, 1:] = common + (values[:, 1:] - own) * np.sqrt(scale)
            # The sound's own place of each step, for what is heard there.
            heard = np.clip((seconds * float(ratio) * VOICE_RATE - 256) / HOP, 0, len(power) - 1)
            near, speaking = (one[heard.astype(np.intp)] for one in _speech_frames(power))
            closure = (np.interp(seconds, pair.times, shut) > 0.5) * near
            valid = (seconds >= pair.times[0]) & (seconds <= pair.times[-1])
            columns = [values, closure[:, None], speaking[:, None], valid[:, None]]
            banks.append(Bank(pair.name, pair.person, power, np.concatenate(columns, 1).astype(np.float32)))
    return banks


def synthetic_banks(said: Sequence[Utterance], delay: int) -> list[Bank]:
    """Banks of synthetic speech; the values are the articulatory curves. delay: net.delay_of."""
    banks = []
    lead = np.zeros(VOICE_RATE // 5, np.float32)
    for index, one in enumerate(said):
        power = step_powers(np.concatenate([lead, one.sound, lead, lead]))
        curves, closed, speaking = mouth(one, len(one.sound) / VOICE_RATE + 0.6)
        rows = np.concatenate([curves, closed[:, None], speaking[:, None]], 1)
        seconds = np.array([step_position(0, j, delay) for j in range(len(power) // 2)]) / VOICE_RATE
        at = (seconds - len(lead) / VOICE_RATE) / STEP_S
        near = np.clip(np.round(at).astype(np.intp), 0, len(rows) - 1)
        targets = rows[near] * (at[:, None] > -6)
        targets[:, -1] = _with_tail(targets[:, -1], _UTTERANCE_TAIL // 2)
        valid = np.ones((len(targets), 1), np.float32)
        banks.append(
            Bank(f"{one.language}-{index}", one.language, power, np.concatenate([targets, valid], 1))
        )
    return banks


def _fit(window: augment.Window) -> augment.Window:
    """Cut or extend with silence and rest to FRAMES."""
    missing = FRAMES - len(window.power)
    if missing <= 0:
        return window
    power = np.pad(window.power, ((0, missing), (0, 0)))
    targets = np.pad(window.targets, ((0, missing // 2), (0, 0)))
    targets[len(window.targets) + 6 :, -1] = 1
    return augment.Window(power, targets)


def _pause(window: augment.Window, delay: int, rng: np.random.Generator) -> augment.Window:
    """Silence a span; the mouth goes to rest within 100 ms of it and wakes 80 ms before its end, if that is
    heard so early."""
    length = int(rng.integers(40, 200))
    start = int(rng.integers(-length // 2, FRAMES - length // 2))
    first, last = max(0, start), min(FRAMES, start + length)
    power = window.power.copy()
    power[first:last] = 0
    # Where each step's own place lies on the frame axis.
    at = (np.arange(FRAMES // 2) * STEP + step_position(0, 0, delay) - 256) / HOP
    rest = np.clip((at - start) / 10, 0, 1) * np.clip((start + length - at) / min(8, delay // HOP), 0, 1)
    targets = window.targets.copy()
    targets[:, :-3] *= (1 - rest)[:, None]
    targets[:, -3:-1] *= (rest < 0.5)[:, None]
    targets[:, -1] = np.maximum(targets[:, -1], rest >= 1)
    return augment.Window(power, targets.astype(np.float32))


class Sampler:
    """Draws augmented windows; the same (seed, step) gives the same batch."""

    def __init__(
        self, real: Sequence[Bank], synthetic: Sequence[Bank], mirror: F32, seed: int, delay: int
    ) -> None:
        """mirror: (K, K) what left-right reflection does to the coefficients. delay: net.delay_of."""
        self._delay = delay
        self.banks, self._synthetic, self._mirror, self._seed = real, synthetic, mirror, seed
        weights = np.array([np.sqrt(bank.seconds) for bank in real])
        self._chance = weights / weights.sum()

    def _draw(self, bank: Bank, rng: np.random.Generator) -> augment.Window:
        room = len(bank.power) - FRAMES
        start = int(rng.integers(0, max(1, room + 20)) // 2 * 2)
        frames = min(FRAMES, (len(bank.power) - start) // 2 * 2)
        return _fit(augment.warp_time(bank.power, bank.targets, start, frames, rng))

    def _vary(self, power: F32, rng: np.random.Generator) -> F32:
        power = augment.warp_formants(power, float(rng.uniform(0.86, 1.17)))
        power = augment.colour(power, rng)
        if rng.random() < 0.4:
            power = augment.reverberate(power, rng)
        if rng.random() < _NOISY:
            babble = None
            if rng.random() < 0.25:
                other = self.banks[int(rng.integers(len(self.banks)))].power
                babble = other[np.arange(FRAMES) % len(other)]
            power = augment.add_noise(power, babble, rng)
        return power

    def batch(self, step: int, real: int, synthetic: int) -> tuple[F32, F32, F32, F32]:
        """Features (real + synthetic, FRAMES, 41), phone scores, real targets, synthetic targets."""
        rng = np.random.default_rng((self._seed, step))
        powers, real_targets, synthetic_targets = [], [], []
        for index in rng.choice(len(self.banks), real, p=self._chance):
            window = self._draw(self.banks[int(index)], rng)
            if rng.random() < _PAUSES:
                window = _pause(window, self._delay, rng)
            targets = window.targets
            if rng.random() < 0.5:
                targets = np.concatenate([targets[:, :-3] @ self._mirror.T, targets[:, -3:]], 1)
            powers.append(self._vary(window.power, rng))
            real_targets.append(targets)
        for _ in range(synthetic):
            window = self._draw(self._synthetic[int(rng.integers(len(self._synthetic)))], rng)
            if rng.random() < _PAUSES:
                window = _pause(window, self._delay, rng)
            powers.append(self._vary(window.power, rng))
            synthetic_targets.append(window.targets)
        found = (
            np.stack(real_targets).astype(np.float32) if real else np.zeros((0, FRAMES // 2, 1), np.float32)
        )
        made = (
            np.stack(synthetic_targets).astype(np.float32)
            if synthetic
            else np.zeros((0, FRAMES // 2, len(CURVES) + 3), np.float32)
        )
        power = np.stack(powers)
        heard = augment.mask(augment.batch_features(power, rng), rng)
        return heard, augment.batch_phones(power, rng), found, made
