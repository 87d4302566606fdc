"""How much each piece of a voice sounds like each phone, whoever speaks: an acoustic model in numpy.

The model is the one that the `pocketsphinx` package carries: Gaussian mixtures, one codebook of 128 for each
of 42 phones, over cepstra and their first and second differences (Alpha Cephei's US English, learnt from
recordings of many people). A net that hears phones beside the spectrum need not learn from five minutes of
lips what one phone has in common in all mouths.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from math import inf
from pathlib import Path

import numpy as np

from retalk_models.picture import F32
from retalk_models.speech import MelSettings, MelStream, band_centres, triangles

CEPSTRA = 13
AHEAD = 3
"""Frames of 10 ms beyond its own that a frame's differences need."""

STATES = 3
_CHUNK = 64
"""Frames scored at once: what comes between stays in the processor's cache."""

_SHARPNESS = 0.3
"""Of the log likelihoods, before they become shares: neighbouring frames say the same thing several times."""

_LEAST_POWER = 1e-9
_LEAST_SHARE = np.float32(1e-30)
_FULL_SCALE = np.float32(32768.0**2 * 0.4)
_LOW_HZ, _HIGH_HZ, _BANDS, _LIFTER, _EMPHASIS = 130.0, 6800.0, 25, 22, 0.97
_WEIGHT_UNIT = 1024 * np.log(1.0001)

_SPEECH_RANGE = 25.0
_PEAK_FALL, _PEAK_FALL_IN_PAUSES = 0.02, 0.001
_LEAST_PEAK = 20.0
"""On the scale of the first cepstrum, where digital silence lies at -10 and speech at 45 to 60."""

_PRIOR_FRAMES, _MOST_FRAMES = 30.0, 500.0
_PRIOR = np.array([57.8, 7.7, -0.4, 8.9, -2.7, -4.4, -7.2, -4.3, -2.4, -1.1, -0.3, -0.5, -0.8], np.float32)
"""Mean cepstra of the training clips' louder four fifths: what a voice is taken to be before it is heard."""


REMEDY = "pip install --force-reinstall --no-deps pocketsphinx==5.1.1"

_KNOWN = "03b917db90e2ac51657d40479d749eeba5be6d3287413d8a56cc556589dfef45"
"""SHA-256 of the four files, one after the other, of the release that the nets learnt with."""


class AcousticModelError(RuntimeError):
    """The acoustic model is missing or of another kind; the message says what would help."""


def _digest(folder: Path) -> str:
    found = sha256()
    for name in ("means", "variances", "mdef", "sendump"):
        found.update((folder / name).read_bytes())
    return found.hexdigest()


def _folder() -> Path:
    # Found, not imported: importing would load a recogniser that nobody uses.
    package = find_spec("pocketsphinx")
    for place in (package.submodule_search_locations or ()) if package is not None else ():
        folder = Path(place) / "model" / "en-us" / "en-us"
        if folder.is_dir():
            return folder
    raise AcousticModelError(
        f"the package pocketsphinx, whose acoustic model tells phones apart, is not installed whole; {REMEDY}"
    )


def _gaussians(path: Path) -> F32:
    """(phones, 3, 128, 13): a file of means or variances in the format of CMU Sphinx 3."""
    data = path.read_bytes()
    head = data.find(b"endhdr\n") + 7
    if not data.startswith(b"s3\n") or struct.unpack_from("<I", data, head)[0] != 0x11223344:
        raise AcousticModelError(f"{path.name}: not an acoustic model's parameters; {REMEDY}")
    books, streams, size = struct.unpack_from("<3i", data, head + 4)
    (count,) = struct.unpack_from("<i", data, head + 16 + 4 * streams)
    values = np.frombuffer(data, "<f4", count, head + 20 + 4 * streams)
    return np.asarray(values.reshape(books, streams, size, -1), np.float32)


def _phones(path: Path) -> tuple[tuple[str, ...], int]:
    """Names of the phones, in order, and how many states there are with context."""
    data = path.read_bytes()
    if not data.startswith(b"BMDF"):
        raise AcousticModelError(f"{path.name}: not a model definition; {REMEDY}")
    (described,) = struct.unpack_from("<i", data, 8)
    head = 12 + described
    sizes = struct.unpack_from("<10i", data, head)
    names = data[head + 40 :].split(b"\0", sizes[0])[: sizes[0]]
    return tuple(name.decode("ascii") for name in names), sizes[4]


def _mixtures(path: Path, phones: int, states: int, size: int) -> F32:
    """(3, phones, size, STATES) weight of every Gaussian in every state without context."""
    data = path.read_bytes()
    packed = np.frombuffer(data, np.uint8, 3 * size * states, len(data) - 3 * size * states)
    kept = packed.reshape(3, size, states)[:, :, : phones * STATES].astype(np.float32)
    weights = np.exp(-kept * _WEIGHT_UNIT).reshape(3, size, phones, STATES)
    return np.ascontiguousarray(weights.transpose(0, 2, 1, 3), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class AcousticModel:
    """Gaussian mixtures over 13 cepstra and their differences.

    names: of the phones. forms: (3, 26, phones * size) and offsets: (3, phones * size) give the log
    density of a Gaussian from a value's squares and the value; mixtures: (3, phones, size, STATES). digest:
    SHA-256 of the files.
    """

    names: tuple[str, ...]
    forms: F32
    offsets: F32
    mixtures: F32
    digest: str

    @property
    def width(self) -> int:
        """Values that `score` gives for a frame."""
        return 2 * len(self.names)

    def score(self, frames: F32) -> F32:
        """(n, 3, 13) cepstra, first and second differences to (n, 2 * phones).

        First each phone's share, softened, 0 to 3; then its log likelihood less all phones' mean, -3 to 3.
        """
        count, phones = len(frames), len(self.names)
        values = np.concatenate([frames * frames, frames], 2)
        total = np.zeros((count, phones, STATES), np.float32)
        for stream in range(3):
            near = values[:, stream] @ self.forms[stream]
            near += self.offsets[stream]
            near = near.reshape(count, phones, -1)
            best = near.max(2, keepdims=True)
            near -= best
            np.exp(near, out=near)
            likely = (near.transpose(1, 0, 2) @ self.mixtures[stream]).transpose(1, 0, 2)
            likely += _LEAST_SHARE
            total += np.log(likely, out=likely)
            total += best
        flat = _SHARPNESS * (total.reshape(count, -1) - total.max((1, 2))[:, None])
        share = np.exp(flat)
        share = 3 * (share / share.sum(1, keepdims=True)).reshape(count, phones, STATES).sum(2)
        most = total.max(2)
        relative = np.clip((most - most.mean(1, keepdims=True)) / 10, -3, 3)
        return np.asarray(np.concatenate([share, relative], 1), np.float32)


@cache
def acoustic_model() -> AcousticModel:
    """The installed model. Raises AcousticModelError where there is none that can be read."""
    folder = _folder()
    try:
        digest = _digest(folder)
        if digest != _KNOWN:
            raise AcousticModelError(
                f"the acoustic model of pocketsphinx is not the one that the nets learnt with; {REMEDY}"
            )
        means, variances = _gaussians(folder / "means"), _gaussians(folder / "variances")
        names, states = _phones(folder / "mdef")
        mixtures = _mixtures(folder / "sendump", len(names), states, means.shape[2])
    except (OSError, struct.error, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise AcousticModelError(f"pocketsphinx's model cannot be read ({reason}); {REMEDY}") from None
    sharp = 1 / np.maximum(variances, 1e-4)
    order = means.transpose(1, 3, 0, 2).reshape(3, CEPSTRA, -1)
    sharp_order = sharp.transpose(1, 3, 0, 2).reshape(3, CEPSTRA, -1)
    forms = np.concatenate([-0.5 * sharp_order, order * sharp_order], 1)
    offsets = 0.5 * (np.log(sharp_order / (2 * np.pi)) - order**2 * sharp_order).sum(1)
    exact = np.ascontiguousarray(forms, np.float32)
    return AcousticModel(names, exact, offsets.astype(np.float32), mixtures, digest)


@cache
def _to_model_bands() -> F32:
    """(bands of MelSettings, 25): our mel powers to those of the model's own filters, emphasis included."""
    centres = band_centres(MelSettings())
    ends = 2595 * np.log10(1 + np.array([_LOW_HZ, _HIGH_HZ]) / 700)
    edges = 700 * (10 ** (np.linspace(ends[0], ends[1], _BANDS + 2) / 2595) - 1)
    hertz = np.arange(100.0, 7000.0, 10.0)
    spread = np.stack([np.interp(hertz, centres, row) for row in np.eye(len(centres))], 1)
    emphasis = np.abs(1 - _EMPHASIS * np.exp(-2j * np.pi * hertz / 16000)) ** 2
    filters = triangles(edges, hertz)
    return np.asarray(((filters / filters.sum(1, keepdims=True) * emphasis) @ spread).T, np.float32)


@cache
def _cosines() -> F32:
    """(25, 13) log bands to liftered cepstra."""
    order = np.arange(CEPSTRA)[:, None]
    waves = np.cos(np.pi * order * (np.arange(_BANDS) + 0.5) / _BANDS) * np.sqrt(2 / _BANDS)
    waves[0] = np.sqrt(1 / _BANDS)
    lift = 1 + _LIFTER / 2 * np.sin(np.arange(CEPSTRA) * np.pi / _LIFTER)
    return np.asarray((waves * lift[:, None]).T, np.float32)


def cepstra(power: F32) -> F32:
    """(..., bands) mel powers as MelStream gives them to (..., 13) cepstra, their mean not yet taken out."""
    bands = np.maximum(power, np.float32(_LEAST_POWER)) @ _to_model_bands()
    return np.asarray(np.log(bands * _FULL_SCALE + np.float32(1e-4)) @ _cosines(), np.float32)


class RunningMean:
    """The mean cepstra of one voice's louder frames so far: takes out voice and room.

    Silence is no voice, however long it lasts and whether it comes first.
    """

    def __init__(self, known: F32 | None = None, frames: float = _PRIOR_FRAMES) -> None:
        """known: (13,) the mean that the voice has begun with, as if over so many frames; the average voice's
        where it is None, until the voice is first heard.
        """
        self.mean: F32 = _PRIOR if known is None else known
        self._count = frames
        # A voice that is known has been loud before: its first loud frame begins nothing.
        self._peak = -inf if known is None else float(known[0])

    def push(self, now: F32) -> F32:
        """(13,) cepstra of one frame to the same less the mean, which they count in."""
        level = float(now[0])
        # A voice that begins after silence or noise is a new one: what they left is no voice's mean.
        if self._peak + _SPEECH_RANGE < level and self._peak > -inf:
            self.mean, self._count = _PRIOR, _PRIOR_FRAMES
        fall = _PEAK_FALL if level > self._peak - _SPEECH_RANGE else _PEAK_FALL_IN_PAUSES
        self._peak = max(self._peak - fall, level, _LEAST_PEAK)
        if level > self._peak - _SPEECH_RANGE:
            self._count = min(self._count + 1, _MOST_FRAMES)
            self.mean = self.mean + (now - self.mean) * np.float32(1 / self._count)
        return now - self.mean


def with_differences(centred: F32) -> F32:
    """(n + 2 * AHEAD, 13) to (n, 3, 13): cepstra, first and second differences of all but the ends."""
    count = len(centred) - 2 * AHEAD

    def at(offset: int) -> F32:
        return centred[AHEAD + offset : AHEAD + offset + count]

    second = (at(3) - at(-1)) - (at(1) - at(-3))
    return np.stack([at(0), at(2) - at(-2), second], 1)


def step_powers(sound: F32) -> F32:
    """(n,) samples at 16 kHz to (frames, bands) mel powers, an even count: phones are scored once for two."""
    power = MelStream().push(sound)
    return power[: len(power) // 2 * 2]


def batch_scores(power: F32, means: Sequence[RunningMean]) -> F32:
    """(rows, frames, bands) mel powers, frames even, to (rows, frames / 2, width), as PhoneStream gives them.

    means: what is known of each row's voice; it learns on.
    """
    model = acoustic_model()
    rows, frames, _ = power.shape
    steps = max(0, frames // 2 - 1)
    scores = np.zeros((rows, frames // 2, model.width), np.float32)
    for row, (heard, mean) in enumerate(zip(cepstra(power), means, strict=True)):
        centred = np.stack([mean.push(now) for now in heard])
        padded = np.concatenate([np.repeat(centred[:1], AHEAD, 0), centred])
        wanted = with_differences(padded)[: 2 * steps : 2]
        for first in range(0, steps, _CHUNK):
            scores[row, 1 + first : 1 + first + _CHUNK] = model.score(wanted[first : first + _CHUNK])
    return scores


class PhoneStream:
    """Phone scores of every second frame of one voice. Bounded; used by one thread at a time."""

    def __init__(self) -> None:
        self._model = acoustic_model()
        self.reset()

    @property
    def width(self) -> int:
        return self._model.width

    def reset(self) -> None:
        self._mean = RunningMean()
        self._kept = np.zeros((2 * AHEAD + 1, CEPSTRA), np.float32)
        self._last = np.zeros(self._model.width, np.float32)
        self._frames = 0

    def push(self, power: F32) -> F32:
        """(bands,) mel powers of the next frame. Gives the scores of the last even frame that is AHEAD old.

        (width,) float32; zero until there is one.
        """
        centred = self._mean.push(cepstra(power))
        if not self._frames:
            self._kept[:] = centred  # before the first frame there is silence like it: nothing rises or falls
        self._kept[:-1] = self._kept[1:]
        self._kept[-1] = centred
        if self._frames >= AHEAD and (self._frames - AHEAD) % 2 == 0:
            self._last = self._model.score(with_differences(self._kept))[0]
        self._frames += 1
        return self._last
