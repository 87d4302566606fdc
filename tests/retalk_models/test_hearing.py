"""The speech encoder: as a whole recording's, the same in any chunks, deaf to loudness, true to speech."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import retalk_models.hearing as room
from retalk_models.hearing import (
    FRAMES,
    LAYERS,
    RUN,
    WIDTH,
    HearingStream,
    SpeechEncoderError,
    speech_encoder,
)
from retalk_models.ort_file import OrtFile, OrtFileError
from retalk_models.picture import F32
from retalk_models.talkin.synthetic import Espeak, Utterance

SENTENCE = "My mother may make many more. Papa bought a big apple pie. See these seats."


@pytest.fixture(scope="module")
def voices(espeak_ng: None) -> tuple[Utterance, Utterance]:
    """One sentence by two voices."""
    espeak = Espeak()
    said = [
        espeak.say(SENTENCE, "en-us", variant, 140, pitch, 50) for variant, pitch in (("", 40), ("f2", 70))
    ]
    assert said[0] is not None
    assert said[1] is not None
    return said[0], said[1]


def _sound(seconds: float, seed: int = 0) -> F32:
    rng = np.random.default_rng(seed)
    at = np.arange(round(seconds * 16000)) / 16000
    buzz = sum(np.sin(2 * np.pi * 120 * k * at) / k for k in range(1, 30))
    return np.asarray(0.1 * buzz + rng.normal(0, 0.01, len(at)), np.float32)


def _whole(sound: F32, power: float) -> Tensor:
    """(frames, WIDTH) of a whole recording: written anew, one head at a time. Weights are as unpacked.

    The norm's mean is left out, as in the streaming form: sound has next to none.
    """
    ear = speech_encoder()
    kernels = [
        one.reshape(len(one), size, -1).permute(0, 2, 1)
        for one, size in zip((ear.waves.T, ear.middle.weights, ear.frames.weights), (127, 7, 3), strict=True)
    ]
    flow = torch.tanh(functional.conv1d(torch.tensor(sound)[None, None], kernels[0], stride=64))
    flow = flow / (power + 1e-5) ** 0.5 * ear.gain[:, None] + ear.bias[:, None]
    flow = functional.gelu(functional.conv1d(flow, kernels[1], ear.middle.bias, stride=3))
    flow = functional.gelu(functional.conv1d(flow, kernels[2], ear.frames.bias, stride=2))[0].T
    made = []
    for layer in ear.layers:
        queries, keys, values = (
            functional.layer_norm(flow, (WIDTH // LAYERS,), layer.before) @ part.T
            for part in layer.attention.weights.chunk(3)
        )
        heads = []
        for head in range(8):
            span = slice(36 * head, 36 * head + 36)
            turned = []
            for one in (queries[:, span], keys[:, span]):
                pairs = torch.view_as_complex(one[:, :32].reshape(-1, 16, 2).contiguous())
                angle = torch.arange(len(one))[:, None] * ear.turns
                pairs = pairs * torch.polar(torch.ones_like(angle), angle)
                turned.append(torch.cat([torch.view_as_real(pairs).flatten(1), one[:, 32:]], 1))
            heads.append(torch.softmax(turned[0] @ turned[1].T, 1) @ values[:, span])
        flow = flow + torch.cat(heads, 1) @ layer.joined.weights.T
        inner = functional.layer_norm(flow, (WIDTH // LAYERS,), layer.between)
        inner = functional.gelu(functional.linear(inner, layer.wide.weights, layer.wide.bias))
        flow = flow + functional.linear(inner, layer.narrow.weights, layer.narrow.bias)
        made.append(flow)
    return torch.cat(made, 1)


def test_a_short_recording_is_heard_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its loudness is known to the whole recording from the beginning.
    monkeypatch.setattr(room._Loudness, "push", lambda *_: None)
    sound = _sound(5 * RUN / 16000)
    whole = _whole(sound, room._Loudness().power)
    heard = HearingStream().push(sound)
    assert heard.shape == (5, FRAMES, WIDTH)
    assert len(whole) == 7
    # Eight bits for each factor are all that stands between them.
    away = heard[-1] - whole[1:].numpy()
    assert np.abs(away).mean() < 0.1 * float(whole.std())
    assert np.corrcoef(heard[-1].ravel(), whole[1:].numpy().ravel())[0, 1] > 0.98
    assert (heard[1, : FRAMES - 2] == 0).all()
    assert (heard[0] == 0).all()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 3000), max_size=8))
def test_any_chunking_gives_the_same_bits(sizes: list[int]) -> None:
    sound = _sound(0.6)
    stream, at, answers = HearingStream(), 0, []
    for size in [*sizes, len(sound)]:
        answers.append(stream.push(sound[at : at + size]))
        at = min(len(sound), at + size)
    assert np.array_equal(np.concatenate(answers), HearingStream().push(sound))


def test_a_run_hears_nothing_later_than_its_end() -> None:
    sound = _sound(1.2)
    other = sound.copy()
    other[20 * RUN :] = 0.2
    first, second = HearingStream().push(sound), HearingStream().push(other)
    assert np.array_equal(first[:20], second[:20])
    assert not np.array_equal(first[20], second[20])


def test_after_a_reset_nothing_is_remembered() -> None:
    stream = HearingStream()
    stream.push(_sound(0.9, 1))
    stream.reset()
    assert np.array_equal(stream.push(_sound(0.5)), HearingStream().push(_sound(0.5)))


def test_what_is_kept_is_bounded() -> None:
    stream = HearingStream()
    stream.push(_sound(4.0))
    assert all(len(known) == room._KEPT for known in stream._known)
    assert len(stream._recent) == room._AGAIN
    assert len(stream._sound) < 127 + RUN
    assert len(stream._waves) < room._FIRST_NEED + RUN // 64


def _labelled(said: Utterance) -> tuple[F32, list[str]]:
    """What is heard 80 ms after the middle of every sound, and which it is."""
    heard = HearingStream().push(np.concatenate([said.sound, np.zeros(RUN * 4, np.float32)]))
    groups = {"m": "hum", "s": "hiss", "i": "wide", "ʃ": "hiss", "z": "hiss", "a": "open", "n": "hum"}
    rows, names = [], []
    for phone in said.phones:
        name = groups.get(phone.ipa[:1])
        if name is not None:
            run = round(((phone.start + phone.end) / 2 + 0.08) * 16000 / RUN)
            rows.append(heard[min(run, len(heard) - 1), 1:].reshape(-1))
            names.append(name)
    return np.stack(rows), names


def test_sounds_are_told_apart_in_a_voice_that_was_never_heard(voices: tuple[Utterance, Utterance]) -> None:
    known, names = _labelled(voices[0])
    asked, truth = _labelled(voices[1])
    centre = known.mean(0)
    known, asked = known - centre, asked - asked.mean(0)
    alike = (asked / np.linalg.norm(asked, axis=1)[:, None]) @ (
        known / np.linalg.norm(known, axis=1)[:, None]
    ).T
    right = np.mean([names[int(row.argmax())] == name for row, name in zip(alike, truth, strict=True)])
    most = max(truth.count(name) for name in set(truth)) / len(truth)
    assert right > 0.75 > most + 0.1


def _far(first: F32, second: F32) -> float:
    """Mean distance of two tracks over that between moments 400 ms apart."""
    return float(np.abs(first - second).mean() / np.abs(first[10:] - first[:-10]).mean())


def test_loudness_drops_out(voices: tuple[Utterance, Utterance]) -> None:
    sound = voices[0].sound
    soft = HearingStream().push(0.05 * sound)
    assert _far(HearingStream().push(sound)[10:], soft[10:]) < 0.2


@pytest.mark.parametrize("floor", [0.0, 1e-5])
def test_silence_before_the_first_word_is_no_voice(voices: tuple[Utterance, Utterance], floor: float) -> None:
    # A lead of whole frames, or those of the words would lie elsewhere.
    sound, lead = voices[0].sound, 126
    noise = np.random.default_rng(0).normal(0, floor, lead * RUN).astype(np.float32)
    late = HearingStream().push(np.concatenate([noise, sound]))[lead:]
    assert _far(HearingStream().push(sound)[40:], late[40:]) < 0.25


def test_a_long_pause_leaves_the_voices_loudness_alone() -> None:
    loudness = room._Loudness()
    for _ in range(100):
        loudness.push(0.02)
    for _ in range(60 * 25):
        loudness.push(1e-6)
    assert loudness.power == pytest.approx(0.02)


def test_a_knock_before_a_soft_voice_does_not_deafen_bug_it_did_for_minutes() -> None:
    loudness = room._Loudness()
    for power in [0.5, 0.5, 0.5, *[1e-4] * 50]:
        loudness.push(power)
    assert loudness.power == pytest.approx(1e-4, rel=0.2)


def test_a_voice_of_many_days_is_heard_as_on_the_first_bug_its_places_lost_precision() -> None:
    first, late = HearingStream(), HearingStream()
    late._first = 10**8
    sound = _sound(1.5)
    assert np.abs(first.push(sound) - late.push(sound)).mean() < 0.02


def test_digital_silence_is_heard_as_numbers() -> None:
    assert np.isfinite(HearingStream().push(np.zeros(16000, np.float32))).all()


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_spec", lambda _: None)
    with pytest.raises(SpeechEncoderError, match=r"pip install .*moonshine-voice=="):
        room._file()


def _installed(folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "assets" / "tiny-en" / "encoder_model.ort"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    spec = ModuleSpec("moonshine_voice", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(room, "find_spec", lambda _: spec)


def test_another_releases_encoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(tmp_path, b"another", monkeypatch)
    with pytest.raises(SpeechEncoderError, match="not the one that the nets learnt with"):
        room.speech_encoder.__wrapped__()


def test_an_encoder_that_cannot_be_read_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _installed(tmp_path, room._file().read_bytes(), monkeypatch)

    def damaged(path: Path) -> OrtFile:
        raise OrtFileError(f"{path.name}: a damaged model")

    monkeypatch.setattr(OrtFile, "read", damaged)
    with pytest.raises(SpeechEncoderError, match=r"damaged model.*pip install --force-reinstall"):
        room.speech_encoder.__wrapped__()


def test_a_file_of_another_format_or_cut_short_is_named(tmp_path: Path) -> None:
    junk = tmp_path / "junk.ort"
    junk.write_bytes(b"not a model at all")
    with pytest.raises(OrtFileError, match=r"junk\.ort: not a model in ONNX Runtime's format"):
        OrtFile.read(junk)
    cut = tmp_path / "cut.ort"
    cut.write_bytes(room._file().read_bytes()[:1000])
    with pytest.raises(OrtFileError, match=r"cut\.ort: a damaged model"):
        OrtFile.read(cut)
