# ruff: noqa: RUF001 - phonetic and non-Latin letters are meant
"""Speech from espeak-ng with exact phoneme times, and the mouth that Cohen and Massaro's dominance gives it.

Used in training only. Needs the shared library of espeak-ng (Debian: libespeak-ng1).
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

import numpy as np
from scipy.signal import resample_poly

from retalk_models.engine import VOICE_RATE
from retalk_models.picture import F32
from retalk_models.talkin.sentences import SENTENCES, VARIANTS

CURVES = ("aperture", "jaw", "round", "wide", "tuck")
"""The articulatory curves, each 0..1."""

STEP_S = 0.02


@dataclass(frozen=True, slots=True)
class Phone:
    """One phoneme as espeak-ng timed it: IPA text, start and end in seconds."""

    ipa: str
    start: float
    end: float


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """sound: (n,) float32 at 16 kHz; phones in order of time."""

    sound: F32
    phones: tuple[Phone, ...]
    language: str


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("string", ctypes.c_char * 8),
    )


_SYNTH_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_RETRIEVAL, _SYNCHRONOUS, _PHONEME_EVENTS_IPA, _PHONEME, _UTF8 = 1, 2, 3, 7, 1
_RATE, _PITCH, _RANGE = 1, 3, 4


class Espeak:
    """One espeak-ng in this process (the library keeps global state; make only one)."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise OSError("libespeak-ng is not installed; on Debian: apt-get install libespeak-ng1")
        self._library = ctypes.CDLL(name)
        self.rate = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS_IPA))
        if self.rate <= 0:
            raise OSError("espeak-ng found no voice data; on Debian: apt-get install espeak-ng-data")
        self._sound: list[F32] = []
        self._events: list[tuple[float, str]] = []
        self._callback = _SYNTH_CALLBACK(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(
        self, wav: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]
    ) -> int:
        if count > 0:
            self._sound.append(np.ctypeslib.as_array(wav, (count,)).astype(np.float32) / 32768)
        index = 0
        while events[index].type != 0:
            if events[index].type == _PHONEME:
                text = bytes(events[index].string).decode("utf-8", "ignore")
                self._events.append((events[index].sample / self.rate, text))
            index += 1
        return 0

    def say(
        self, text: str, language: str, variant: str, speed: int, pitch: int, span: int
    ) -> Utterance | None:
        """Speak; None where the voice is not installed. speed in words per minute, pitch and span 0..99."""
        voice = f"{language}+{variant}" if variant else language
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            return None
        for parameter, value in ((_RATE, speed), (_PITCH, pitch), (_RANGE, span)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._sound, self._events = [], []
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        if not self._sound:
            return None
        sound = np.concatenate(self._sound)
        total = len(sound) / self.rate
        events = [(time, ipa) for time, ipa in self._events if not ipa.startswith("(")]
        ends = [time for time, _ in events[1:]] + [total]
        phones = tuple(
            Phone(ipa, start, end) for (start, ipa), end in zip(events, ends, strict=True) if end > start
        )
        common = gcd(VOICE_RATE, self.rate)
        sound = resample_poly(sound, VOICE_RATE // common, self.rate // common).astype(np.float32)
        return Utterance(sound, phones, language)


def utterances(seconds: float, seed: int) -> Iterator[Utterance]:
    """Shuffled sentences of all languages in random voices, until their sum passes `seconds`."""
    rng = np.random.default_rng(seed)
    espeak = Espeak()
    languages = sorted(SENTENCES)
    total = 0.0
    while total < seconds:
        language = languages[int(rng.integers(len(languages)))]
        words = " ".join(SENTENCES[language][int(i)] for i in rng.integers(len(SENTENCES[language]), size=2))
        if rng.random() < 0.5:
            parts = words.replace(",", "").replace(".", "").split()
            words = " ".join(parts[int(i)] for i in rng.permutation(len(parts)))
        said = espeak.say(
            words,
            language,
            VARIANTS[int(rng.integers(len(VARIANTS)))],
            int(rng.integers(120, 250)),
            int(rng.integers(5, 95)),
            int(rng.integers(10, 90)),
        )
        if said is not None and said.phones:
            total += len(said.sound) / VOICE_RATE
            yield said


# aperture, jaw, round, wide, tuck; then how strongly each phone insists on them.
_TARGETS: dict[str, tuple[tuple[float, float, float, float, float], float]] = {
    "aɑæɐʌɒ": ((0.95, 0.95, 0.1, 0.35, 0.0), 1.0),
    "ɛeœɜɚəɤɘ": ((0.55, 0.5, 0.1, 0.55, 0.0), 0.7),
    "ɔo": ((0.55, 0.6, 0.75, 0.0, 0.0), 1.0),
    "iɪɨᵻ": ((0.3, 0.2, 0.0, 0.95, 0.0), 0.8),
    "uʊɯyʏøʉ": ((0.2, 0.25, 1.0, 0.0, 0.0), 1.0),
    "pbmɓ": ((0.0, 0.1, 0.2, 0.3, 0.0), 3.0),
    "fvʋɱβ": ((0.1, 0.1, 0.1, 0.4, 1.0), 2.0),
    "wʍ": ((0.12, 0.2, 1.0, 0.0, 0.0), 1.5),
    "ʃʒɕʑʂʐ": ((0.25, 0.05, 0.6, 0.2, 0.0), 1.2),
    "szʦ": ((0.2, 0.03, 0.0, 0.6, 0.0), 1.2),
    "tdnlɾrɹɻɭʎɲθðʈɖɳ": ((0.3, 0.2, 0.15, 0.4, 0.0), 0.5),
    "kgɡŋxɣhɦqʁχħcɟçʔ": ((0.4, 0.35, 0.1, 0.4, 0.0), 0.3),
    "jɥ": ((0.25, 0.15, 0.0, 0.8, 0.0), 0.7),
}
_BILABIAL, _VOICELESS_STOP = frozenset("pbmɓ"), frozenset("ptkqcʈ")
_BURST_LEAD_S = 0.055
"""espeak-ng's voiceless stop events mark the burst; the closure is the silence before it."""


def _symbols(phone: Phone) -> list[Phone]:
    """Diphthongs and affricates hold several symbols; split their time evenly."""
    known = [c for c in phone.ipa if any(c in group for group in _TARGETS)]
    span = (phone.end - phone.start) / max(1, len(known))
    return [Phone(c, phone.start + i * span, phone.start + (i + 1) * span) for i, c in enumerate(known)]


def mouth(utterance: Utterance, seconds: float) -> tuple[F32, F32, F32]:
    """Curves (n, 5), closure (n,) and speaking (n,), each 0..1, every STEP_S for `seconds`."""
    times = np.arange(round(seconds / STEP_S)) * STEP_S
    closed, speaking = np.zeros(len(times), np.float32), np.zeros(len(times), np.float32)
    weights = np.full(len(times), 0.02)
    total = np.zeros((len(times), len(CURVES)))
    for whole in utterance.phones:
        for phone in _symbols(whole):
            target, strength = next(v for k, v in _TARGETS.items() if phone.ipa in k)
            start, end = phone.start, phone.end
            if phone.ipa in _VOICELESS_STOP:
                start, end = start - _BURST_LEAD_S, min(end, start + 0.02)
            # Lips prepare a sound faster than they leave it.
            before, after = np.maximum(start - times, 0), np.maximum(times - end, 0)
            pull = strength * np.exp(-before / 0.055 - after / 0.04)
            weights += pull
            total += pull[:, None] * np.array(target)
            if phone.ipa in _BILABIAL:
                until = phone.start if phone.ipa == "p" else max(phone.end - 0.015, start + 0.04)
                closed[(times >= start - 0.01) & (times <= until)] = 1
            speaking[(times >= start - 0.1) & (times <= end + 0.08)] = 1
    curves = (total / weights[:, None]).astype(np.float32)
    soft = np.convolve(np.pad(closed, 1, mode="edge"), np.array([0.25, 0.5, 0.25]), "valid")
    curves[:, 0] *= 1 - np.maximum(soft, closed)
    return curves, closed, speaking
