"""Training batches for the expression net: what is heard and its targets, and what is drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from os import getpid
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d
from scipy.signal import resample_poly

from retalk_models.engine import VOICE_RATE
from retalk_models.hearing import FORM as HEARING_FORM
from retalk_models.hearing import RUN, HearingStream, speech_encoder
from retalk_models.picture import F32
from retalk_models.speech import HOP, MelStream
from retalk_models.talkin import augment
from retalk_models.talkin.net import STEP, step_position
from retalk_models.talkin.pairs import Pair
from retalk_models.talkin.synthetic import CURVES, STEP_S, Utterance, mouth

F16 = NDArray[np.float16]

SPEEDS = (0.84, 0.92, 1.0, 1.09, 1.19)
"""Playing speeds of the real clips: pitch, formants and tempo together, lips along with them."""

FRAMES = 360
"""Mel frames in a training window: 3.6 s."""

_UTTERANCE_TAIL = 32
"""Frames of 10 ms that an utterance is taken to last beyond its last speech."""

VARIATIONS = 3
"""Takes of every clip at every speed: one as it is, the others in other rooms, noises and devices."""

_PAUSES = 0.15
"""Share of takes with a pause cut in; more, and the net forgets what lips do in real ones."""

_NOISY, _ROOMY = 0.4, 0.4
"""Shares of varied takes with noise (more, and breath, which parts the lips, cannot be learnt) and a room's
tail."""

PRESS = 0.06
"""How far below what was tracked (canonical units) the opening of lips counts that are shut in speech, as if
they pressed on each other. Regression tells the mean of what might be, and a mean of shut and parted lips is
parted: pressing pulls it under. Chosen on five folds over all people (the model card has the comparison)."""

_RUN_FRAMES = RUN // HOP

_OPENING_SPREAD = 0.05
"""Every person's opening is brought near this standard deviation (canonical units)."""


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """One recording ready for cutting.

    power: (frames, bands) at 100 Hz. said: (frames / 4, FRAMES of hearing, WIDTH) float16, what HearingStream
    makes of it. targets: (frames / 2, n) n - 3 values, closure, speaking, valid.
    """

    name: str
    person: str
    power: F32
    said: F16
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


def powers(sound: F32) -> F32:
    """(n,) samples at 16 kHz to (frames, bands) mel powers of whole runs."""
    power = MelStream().push(sound)
    return power[: len(power) // _RUN_FRAMES * _RUN_FRAMES]


def _heard(sound: F32, cache: Path | None) -> tuple[F32, F16]:
    """(frames, bands) mel powers and (frames / 4, FRAMES of hearing, WIDTH) what is said, of whole runs.

    cache: a folder that keeps what is said, keyed by the sound and by what hears it.
    """
    power = powers(sound)
    runs = len(power) // _RUN_FRAMES
    key = sha256(sound.tobytes() + speech_encoder().digest.encode() + HEARING_FORM.encode())
    kept = None if cache is None else cache / f"said-{key.hexdigest()[:16]}.npy"
    if kept is not None and kept.is_file():
        known: F16 = np.load(kept)
        return power, known[:runs]
    found = HearingStream().push(sound).astype(np.float16)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{getpid()}.part.npy")
        np.save(part, found)
        part.replace(kept)
    return power, found[:runs]


def _take(sound: F32, others: Sequence[Pair], rng: np.random.Generator) -> F32:
    """The sound from another device, perhaps in another room and with other sounds beside it."""
    sound = augment.colour(sound, rng)
    if rng.random() < _ROOMY:
        sound = augment.reverberate(sound, rng)
    if rng.random() < _NOISY:
        babble = others[int(rng.integers(len(others)))].sound if rng.random() < 0.25 else None
        sound = augment.add_noise(sound, babble, rng)
    return np.clip(sound, -1, 1)


def real_banks(
    pairs: Sequence[Pair],
    delay: int,
    speeds: Sequence[float] = SPEEDS,
    variations: int = VARIATIONS,
    cache: Path | None = None,
) -> list[Bank]:
    """Banks of real clips; the values are expression coefficients, amplitude evened between people. Lips that
    are shut in speech have an opening PRESS below what they have.

    delay: net.delay_of. cache: where what is said in each take is kept.
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
            power = powers(sound)
            steps = len(power) // 2
            seconds = np.array([step_position(0, j, delay) for j in range(steps)]) / VOICE_RATE / float(ratio)
            values = pair.at(seconds)
            values[:, 0] *= scale
            values[:, 1:] = common + (values[:, 1:] - own) * np.sqrt(scale)
            # The sound's own place of each step, for what is heard there.
            heard = np.clip((seconds * float(ratio) * VOICE_RATE - 256) / HOP, 0, len(power) - 1)
            near, speaking = (one[heard.astype(np.intp)] for one in _speech_frames(power))
            closure = (np.interp(seconds, pair.times, shut) > 0.5) * near
            values[:, 0] -= PRESS * closure
            valid = (seconds >= pair.times[0]) & (seconds <= pair.times[-1])
            columns = [values, closure[:, None], speaking[:, None], valid[:, None]]
            targets = np.concatenate(columns, 1).astype(np.float32)
            for take in range(variations):
                name = f"{pair.name} {speed} {take}"
                rng = np.random.default_rng(list(sha256(name.encode()).digest()[:8]))
                varied, wanted = sound, targets
                if take and rng.random() < _PAUSES:
                    varied, wanted = _pause(sound, targets, delay, rng)
                if take:
                    others = [other for other in pairs if other.person != pair.person] or pairs
                    varied = _take(varied, others, rng)
                banks.append(Bank(pair.name, pair.person, *_heard(varied, cache), wanted))
    return banks


def synthetic_banks(said: Sequence[Utterance], delay: int, cache: Path | None = None) -> list[Bank]:
    """Banks of synthetic speech; the values are the articulatory curves. delay, cache: as for real_banks."""
    banks = []
    lead = np.zeros(VOICE_RATE // 5, np.float32)
    for index, one in enumerate(said):
        sound = np.concatenate([lead, one.sound, lead, lead])
        power, heard = _heard(sound, cache)
        curves, closed, speaking = mouth(one, len(one.sound) / VOICE_RATE + 0.6)
        rows = np.concatenate([curves, closed[:, None], speaking[:, None]], 1)
        seconds = np.array([step_position(0, j, delay) for j in range(len(power) // 2)]) / VOICE_RATE
        at = (seconds - len(lead) / VOICE_RATE) / STEP_S
        near = np.clip(np.round(at).astype(np.intp), 0, len(rows) - 1)
        targets = rows[near] * (at[:, None] > -6)
        targets[:, -1] = _with_tail(targets[:, -1], _UTTERANCE_TAIL // 2)
        valid = np.ones((len(targets), 1), np.float32)
        rows = np.concatenate([targets, valid], 1)
        banks.append(Bank(f"{one.language}-{index}", one.language, power, heard, rows))
    return banks


def _pause(sound: F32, targets: F32, delay: int, rng: np.random.Generator) -> tuple[F32, F32]:
    """Silence a span; the mouth goes to rest within 100 ms of it and wakes 80 ms before its end, if that is
    heard so early."""
    length = int(rng.integers(40, 200)) * HOP
    start = int(rng.integers(-length // 2, max(1, len(sound) - length // 2)))
    quiet = sound.copy()
    quiet[max(0, start) : start + length] = 0
    at = np.arange(len(targets)) * STEP + step_position(0, 0, delay)
    wake = min(8 * HOP, delay)
    rest = np.clip((at - start) / (10 * HOP), 0, 1) * np.clip((start + length - at) / wake, 0, 1)
    still = targets.copy()
    still[:, :-3] *= (1 - rest)[:, None]
    still[:, -3:-1] *= (rest < 0.5)[:, None]
    still[:, -1] = np.maximum(still[:, -1], rest >= 1)
    return quiet, still.astype(np.float32)


class Sampler:
    """Draws windows; the same (seed, step) gives the same batch."""

    def __init__(self, real: Sequence[Bank], synthetic: Sequence[Bank], mirror: F32, seed: int) -> None:
        """mirror: (K, K) what left-right reflection does to the coefficients."""
        self.banks, self._synthetic, self._mirror, self._seed = real, synthetic, mirror, seed
        weights = np.array([np.sqrt(bank.seconds) for bank in real])
        self._chance = weights / weights.sum()

    @staticmethod
    def _draw(bank: Bank, rng: np.random.Generator) -> tuple[F32, F16, F32]:
        """Power, what is said and targets of FRAMES frames; a short bank goes on with silence, not valid."""
        room = len(bank.power) - FRAMES
        start = int(rng.integers(0, max(1, room + 20))) // _RUN_FRAMES * _RUN_FRAMES
        frames = min(FRAMES, len(bank.power) - start)
        missing = FRAMES - frames
        power = np.pad(bank.power[start : start + frames], ((0, missing), (0, 0)))
        runs = slice(start // _RUN_FRAMES, (start + frames) // _RUN_FRAMES)
        said = np.pad(bank.said[runs], ((0, missing // _RUN_FRAMES), (0, 0), (0, 0)), mode="edge")
        targets = np.pad(bank.targets[start // 2 : (start + frames) // 2], ((0, missing // 2), (0, 0)))
        return power, said, targets

    def batch(self, step: int, real: int, synthetic: int) -> tuple[F32, F32, F32, F32]:
        """Features (real + synthetic, FRAMES, 41), what is said (same, runs, its frames, WIDTH), real and
        synthetic targets."""
        rng = np.random.default_rng((self._seed, step))
        heard, said, real_targets, synthetic_targets = [], [], [], []
        for index in rng.choice(len(self.banks), real, p=self._chance):
            power, frames, targets = self._draw(self.banks[int(index)], rng)
            if rng.random() < 0.5:
                targets = np.concatenate([targets[:, :-3] @ self._mirror.T, targets[:, -3:]], 1)
            heard.append(power)
            said.append(frames)
            real_targets.append(targets)
        for _ in range(synthetic):
            bank = self._synthetic[int(rng.integers(len(self._synthetic)))]
            power, frames, targets = self._draw(bank, rng)
            heard.append(power)
            said.append(frames)
            synthetic_targets.append(targets)
        found = (
            np.stack(real_targets).astype(np.float32) if real else np.zeros((0, FRAMES // 2, 1), np.float32)
        )
        made = (
            np.stack(synthetic_targets).astype(np.float32)
            if synthetic
            else np.zeros((0, FRAMES // 2, len(CURVES) + 3), np.float32)
        )
        features = augment.mask(augment.batch_features(np.stack(heard), rng), rng)
        return features, augment.blank(np.stack(said).astype(np.float32), rng), found, made
