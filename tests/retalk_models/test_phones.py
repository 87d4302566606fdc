"""Phone scores: the installed model's mixtures, the same in any chunk, deaf to loudness, true of speech."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

import retalk_models.phones as room
from retalk_models.phones import (
    CEPSTRA,
    AcousticModelError,
    PhoneStream,
    RunningMean,
    acoustic_model,
    batch_scores,
    step_powers,
)
from retalk_models.talkin.synthetic import Espeak, Utterance

SENTENCE = "My mother may make many more. Papa bought a big apple pie. See these seats."


@pytest.fixture(scope="module")
def spoken(espeak_ng: None) -> Utterance:
    said = Espeak().say(SENTENCE, "en-us", "", 140, 50, 50)
    assert said is not None
    return said


def test_a_state_is_the_mixture_that_the_files_say() -> None:
    folder = room._folder()
    means = room._gaussians(folder / "means").astype(np.float64)
    spreads = np.sqrt(np.maximum(room._gaussians(folder / "variances"), 1e-4))
    model = acoustic_model()
    frame = np.random.default_rng(0).normal(0, 0.3, (1, 3, CEPSTRA)).astype(np.float32)
    total = np.zeros((len(model.names), 3))
    for phone in range(len(model.names)):
        for stream in range(3):
            density = norm.pdf(frame[0, stream], means[phone, stream], spreads[phone, stream])
            total[phone] += np.log(density.prod(1) @ model.mixtures[stream, phone])
    best = total.max(1)
    expected = np.clip((best - best.mean()) / 10, -3, 3)
    assert np.abs(model.score(frame)[0, len(model.names) :] - expected).max() < 1e-3
    # Quantised as 8 bits each, the weights of a state sum to 1 but for a few hundredths.
    assert np.abs(model.mixtures.sum(2) - 1).max() < 0.2
    assert {"P", "B", "M", "AA", "SIL"} <= set(model.names)


def test_frame_by_frame_equals_the_whole(spoken: Utterance) -> None:
    power = step_powers(spoken.sound)
    whole = batch_scores(np.stack([power, 0.1 * power]), [RunningMean(), RunningMean()])
    stream = PhoneStream()
    single = np.stack([stream.push(row) for row in power])[1::2]
    assert np.abs(whole[0] - single).max() < 1e-3
    stream.reset()
    again = np.stack([stream.push(row) for row in power])[1::2]
    assert np.array_equal(single, again)


def test_a_step_hears_nothing_later_than_itself(spoken: Utterance) -> None:
    power = step_powers(spoken.sound)
    other = power.copy()
    other[200:] = 1.0
    first, second = (batch_scores(one[None], [RunningMean()])[0] for one in (power, other))
    assert np.array_equal(first[:100], second[:100])
    assert not np.array_equal(first[103], second[103])


def test_phones_are_told_apart_where_they_are_spoken(spoken: Utterance) -> None:
    names = acoustic_model().names
    shares = batch_scores(step_powers(spoken.sound)[None], [RunningMean()])[0][:, : len(names)] / 3
    assert np.abs(shares.sum(1)[1:] - 1).max() < 1e-3
    # Step j is the score of frame 2 j - 2, whose middle lies 16 ms behind its beginning.
    middle = (2 * np.arange(len(shares)) - 2) * 0.01 + 0.016

    def mean(group: set[str], ipa: str) -> float:
        said = np.zeros(len(shares), bool)
        for phone in spoken.phones:
            if phone.ipa[:1] and phone.ipa[0] in ipa:
                said |= (middle > phone.start + 0.02) & (middle < phone.end - 0.02)
        assert said.sum() > 5
        return float(shares[:, [names.index(name) for name in group]].sum(1)[said].mean())

    hums, hisses, wide = {"M", "N", "NG"}, {"S", "Z", "SH"}, {"IY", "IH", "EY"}
    assert mean(hums, "m") > 2 * mean(hums, "s")
    assert mean(hisses, "s") > 2 * mean(hisses, "mi")
    assert mean(wide, "i") > 2 * mean(wide, "ms")


def test_loudness_and_room_drop_out_within_seconds(spoken: Utterance) -> None:
    room_noise = np.random.default_rng(0).normal(0, 0.003, 2 * len(spoken.sound)).astype(np.float32)
    power = step_powers(np.tile(spoken.sound, 2) + room_noise)
    duller = power * np.geomspace(0.02, 0.002, power.shape[1]).astype(np.float32)
    first, second = (batch_scores(one[None], [RunningMean()])[0] for one in (power, duller))
    late = len(first) // 2
    assert np.abs(first - second)[late:].mean() < 0.25 * np.abs(first - second)[:20].mean()


@pytest.mark.parametrize("floor", [0.0, 1e-5])
def test_silence_before_the_first_word_is_no_voice_bug_five_seconds_of_it_spoilt_the_next_five(
    spoken: Utterance, floor: float
) -> None:
    noise = np.random.default_rng(0).normal(0, floor, 5 * 16000).astype(np.float32)
    late, alone = step_powers(np.concatenate([noise, spoken.sound])), step_powers(spoken.sound)
    lead = len(noise) // 320
    after, expected = (batch_scores(one[None], [RunningMean()])[0] for one in (late, alone))
    apart = np.abs(after[lead + 25 : lead + len(expected)] - expected[25:]).mean()
    shuffled = np.abs(expected[25:-40] - expected[65:]).mean()
    assert apart < 0.15 * shuffled


def test_a_long_pause_leaves_the_voices_mean_alone() -> None:
    mean, rng = RunningMean(), np.random.default_rng(0)
    voice = np.array([60.0, *rng.normal(0, 5, CEPSTRA - 1)], np.float32)
    quiet = np.array([20.0, *rng.normal(0, 5, CEPSTRA - 1)], np.float32)
    for _ in range(500):
        mean.push(voice)
    known = mean.mean.copy()
    for _ in range(60 * 100):
        mean.push(quiet)
    assert np.array_equal(mean.mean, known)


def test_a_voice_that_is_known_and_begins_quietly_stays_known_bug_it_fell_back_to_the_average() -> None:
    rng = np.random.default_rng(0)
    voice = np.array([60.0, *rng.normal(0, 5, CEPSTRA - 1)], np.float32)
    quiet = np.array([20.0, *rng.normal(0, 5, CEPSTRA - 1)], np.float32)
    mean = RunningMean(voice, 300)
    for _ in range(10):
        mean.push(quiet)
    assert np.array_equal(mean.push(voice), np.zeros(CEPSTRA, np.float32))


def test_digital_silence_gives_finite_scores() -> None:
    scores = batch_scores(np.zeros((1, 100, 40), np.float32), [RunningMean()])
    assert np.isfinite(scores).all()


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_spec", lambda _: None)
    with pytest.raises(AcousticModelError, match=r"pip install .*pocketsphinx=="):
        room._folder()


def test_another_releases_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_digest", lambda _: "0" * 64)
    with pytest.raises(AcousticModelError, match="not the one that the nets learnt with"):
        room.acoustic_model.__wrapped__()


@pytest.mark.parametrize("damaged", ["means", "mdef", "sendump"])
def test_a_damaged_file_is_named(damaged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model" / "en-us" / "en-us"
    folder.mkdir(parents=True)
    for name in ("means", "variances", "mdef", "sendump"):
        (folder / name).symlink_to(room._folder() / name)
    (folder / damaged).unlink()
    (folder / damaged).write_bytes(b"s3\nversion 1.0\nendhdr\n")
    spec = ModuleSpec("pocketsphinx", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(room, "find_spec", lambda _: spec)
    monkeypatch.setattr(room, "_digest", lambda _: room._KNOWN)
    with pytest.raises(AcousticModelError, match="pip install --force-reinstall"):
        room.acoustic_model.__wrapped__()
