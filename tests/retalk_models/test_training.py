"""The training pieces: dominance mouths, augmentation, batches, scores, and a run that can be resumed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from retalk_models.hearing import FRAMES as SAID_FRAMES
from retalk_models.hearing import WIDTH
from retalk_models.picture import F32
from retalk_models.talkin import (
    batches,
    fits,
    train_basis,
    train_expression,
    train_renderer,
    trainer,
)
from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.batches import FRAMES, Sampler, real_banks, synthetic_banks
from retalk_models.talkin.corpus import person_of, read_catalogue
from retalk_models.talkin.net import LOOK_AHEADS_MS, STEP, SpeechToExpression, delay_of, step_position
from retalk_models.talkin.pairs import Pair
from retalk_models.talkin.recipe import Material, Recipe
from retalk_models.talkin.scores import correlation, run, score, table
from retalk_models.talkin.synthetic import Phone, Utterance, mouth, utterances
from retalk_models.talkin.trainer import (
    NothingLearntError,
    Trainer,
    calibrate,
    calibrate_like,
    mirror_matrix,
)

BASIS = ExpressionBasis.load()
DELAY = delay_of(LOOK_AHEADS_MS[0])


def _trainer(recipe: Recipe, pairs: list[Pair], said: list[Utterance], out: Path) -> Trainer:
    return Trainer(Material.of(recipe, pairs, said), recipe.seed, out)


def _sound(seconds: float, seed: int) -> F32:
    rng = np.random.default_rng(seed)
    at = np.arange(round(seconds * 16000)) / 16000
    buzz = np.sin(2 * np.pi * 150 * at) + 0.6 * np.sin(2 * np.pi * 900 * at)
    return np.asarray(
        0.2 * np.clip(np.sin(2 * np.pi * 1.9 * at), 0, 1) * buzz + rng.normal(0, 0.001, len(at)), np.float32
    )


def _pair(name: str, seconds: float, seed: int) -> Pair:
    """Lips that open with the loudness."""
    times = np.arange(0, seconds, 0.04)
    opening = 0.1 * np.clip(np.sin(2 * np.pi * 1.9 * times), 0, 1)
    expression = np.zeros((len(times), BASIS.size), np.float32)
    expression[:, 0] = opening
    expression[:, 1] = 10 * opening + seed
    expression[:, 2:] = np.random.default_rng(seed).normal(0, 0.3, (len(times), BASIS.size - 2))
    return Pair(name, person_of(name), _sound(seconds, seed), times, expression, opening.astype(np.float32))


def _spoken(seconds: float = 4.0) -> Utterance:
    phones = (Phone("a", 0.5, 0.8), Phone("m", 0.8, 0.9), Phone("u", 0.9, 1.2), Phone("p", 1.3, 1.35))
    return Utterance(_sound(seconds, 9), (*phones, Phone("i", 1.35, 1.6)), "xx")


def test_the_dominance_mouth_opens_rounds_and_shuts() -> None:
    curves, closed, speaking = mouth(_spoken(), 4.0)

    def at(seconds: float) -> int:
        return round(seconds / 0.02)

    assert curves[at(0.65), 0] > 0.6
    assert curves[at(0.85), 0] == 0
    assert closed[at(0.85)] == 1
    assert curves[at(1.1), 2] > 0.6 > 0.3 > curves[at(0.65), 2]
    assert curves[at(1.5), 3] > curves[at(1.1), 3]
    assert closed[at(1.27)] == 1, "a voiceless stop shuts before the burst that its event marks"
    assert closed[at(1.34)] == 0
    assert speaking[at(0.65)] == 1
    assert speaking[at(2.5)] == 0
    assert curves.min() >= 0
    assert curves.max() <= 1


@pytest.mark.usefixtures("espeak_ng")
def test_espeak_gives_sound_with_ordered_phones() -> None:
    said = list(utterances(12.0, 3))
    assert sum(len(one.sound) for one in said) >= 12 * 16000
    for one in said:
        starts = [phone.start for phone in one.phones]
        assert starts == sorted(starts)
        assert one.phones[-1].end <= len(one.sound) / 16000 + 0.01
        assert one.sound.std() > 1e-3


@pytest.mark.parametrize("seed", range(8))
def test_a_varied_take_stays_within_full_scale_and_in_time(seed: int) -> None:
    sound = _sound(3.0, 1)
    rng = np.random.default_rng(seed)
    varied = batches._take(sound, [_pair("x2", 1.0, 2)], rng)
    assert len(varied) == len(sound)
    assert np.abs(varied).max() <= 1
    assert not np.array_equal(varied, sound)
    loud, other = ((one[: 300 * 160].reshape(-1, 160) ** 2).mean(1) for one in (sound, varied))
    lags = range(-10, 11)
    fits = [correlation(loud[20:-20], np.roll(other, -lag)[20:-20]) for lag in lags]
    assert abs(lags[int(np.argmax(fits))]) <= 3
    assert max(fits) > 0.6


def test_a_pause_is_silent_and_the_mouth_rests_in_it() -> None:
    pair = _pair("x1", 5.0, 1)
    (bank,) = real_banks([pair], DELAY, speeds=(1.0,), variations=1)
    for seed in range(5):
        quiet, still = batches._pause(pair.sound, bank.targets, DELAY, np.random.default_rng(seed))
        gone = np.flatnonzero((quiet == 0) & (pair.sound != 0))
        seconds = gone[[0, -1]] / 16000
        at = np.array([step_position(0, j, DELAY) for j in range(len(still))]) / 16000
        resting = (at > seconds[0] + 0.12) & (at < seconds[1] - 0.12)
        assert np.abs(still[resting, :-3]).max(initial=0) < 1e-6
        away = (at < seconds[0] - 0.1) | (at > seconds[1] + 0.1)
        assert np.array_equal(still[away, :-2], bank.targets[away, :-2])


def test_takes_differ_and_the_first_is_the_clip_itself() -> None:
    pairs = [_pair("x1", 3.0, 1), _pair("x2", 3.0, 2)]
    takes = real_banks(pairs, DELAY, speeds=(1.0,), variations=3)
    assert [bank.name for bank in takes] == ["x1"] * 3 + ["x2"] * 3
    assert np.array_equal(takes[0].power, batches.powers(pairs[0].sound))
    assert not np.array_equal(takes[0].power, takes[1].power)
    assert all(len(bank.said) == len(bank.power) // 4 for bank in takes)
    again = real_banks(pairs, DELAY, speeds=(1.0,), variations=3)
    assert all(np.array_equal(a.said, b.said) for a, b in zip(takes, again, strict=True))


def test_what_is_said_is_kept_between_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = _pair("x1", 2.0, 1)
    (first,) = real_banks([pair], DELAY, speeds=(1.0,), variations=1, cache=tmp_path / "kept")

    def heard_again() -> None:
        raise AssertionError("it was kept")

    monkeypatch.setattr(batches, "HearingStream", heard_again)
    (second,) = real_banks([pair], DELAY, speeds=(1.0,), variations=1, cache=tmp_path / "kept")
    assert np.array_equal(first.said, second.said)


def test_the_linear_member_finds_what_one_frame_says() -> None:
    rng = np.random.default_rng(0)
    banks = []
    for name in ("x1", "x2"):
        said = rng.normal(0, 1, (400, SAID_FRAMES, WIDTH)).astype(np.float16)
        targets = np.ones((800, 5), np.float32)
        targets[:, 0] = np.repeat(said[:, -1, 7], 2)
        targets[1::2, 1] = 3 * said[:, -2, 9]
        targets[:40] = 100
        targets[:40, -1] = 0
        # A run of which one step is unknown does not count either.
        targets[101:140:2, :2] = -100
        targets[101:140:2, -1] = 0
        banks.append(batches.Bank(name, name, np.zeros((1600, 40), np.float32), said, targets))
    mean, spread = np.zeros(2, np.float32), np.array([1.0, 3.0], np.float32)
    weight, bias = fits.linear(banks, mean, spread)
    assert weight.shape == (4, SAID_FRAMES * WIDTH)
    seen = banks[0].said.reshape(400, -1).astype(np.float32)
    found = (seen @ weight.T + bias).reshape(800, 2)
    assert correlation(found[140:, 0], banks[0].targets[140:, 0]) > 0.6
    assert correlation(found[141::2, 1], banks[0].targets[141::2, 1]) > 0.6
    strongest = np.abs(weight[0]).argmax()
    assert strongest == (SAID_FRAMES - 1) * WIDTH + 7


def test_components_are_of_mean_zero_and_spread_one() -> None:
    (bank,) = real_banks([_pair("x1", 5.0, 1)], DELAY, speeds=(1.0,), variations=1)
    weight, bias = fits.gist([bank], 20)
    found = bank.said[:, SAID_FRAMES // 2].astype(np.float32) @ weight.T + bias
    assert weight.shape == (20, WIDTH)
    assert np.abs(found.mean(0)).max() < 0.05
    assert (found**2).mean() == pytest.approx(1.0, rel=0.1)
    assert np.abs(np.corrcoef(found.T) - np.eye(20)).max() < 0.1


def test_targets_carry_the_nets_delay_and_the_speed() -> None:
    pair = _pair("x1", 5.0, 1)
    slow, plain = real_banks([pair], DELAY, speeds=(0.84, 1.0), variations=1)
    assert len(slow.power) > 1.15 * len(plain.power)
    loud = plain.power.mean(1)
    opening = plain.targets[:, 0]
    # Step j hears up to frame 2 j + 1 and speaks of 100 ms before, so the opening trails the loudness.
    lags = range(-5, 20)
    fits = [correlation(opening[20:-20], np.roll(loud[::2], lag)[20:-20]) for lag in lags]
    assert 2 <= lags[int(np.argmax(fits))] <= 8
    assert slow.targets[:, -1].mean() > 0.9


def test_lips_shut_in_speech_count_as_pressed_and_others_as_they_are() -> None:
    pair = _pair("x1", 4.0, 1)
    (bank,) = real_banks([pair], DELAY, speeds=(1.0,), variations=1)
    at = np.array([step_position(0, j, DELAY) for j in range(len(bank.targets))]) / 16000
    scale = batches.person_scale([pair])["x1"]
    inside = bank.targets[:, -1] > 0.5
    own = scale * np.interp(at, pair.times, pair.opening)[inside]
    told, closure = bank.targets[inside, 0], bank.targets[inside, -3] > 0.5
    assert 0.1 < closure.mean() < 0.6
    assert told[closure] == pytest.approx(own[closure] - batches.PRESS, abs=1e-6)
    assert told[~closure] == pytest.approx(own[~closure], abs=1e-6)


def test_a_net_that_hears_less_ahead_speaks_of_later_lips() -> None:
    pair = _pair("x1", 5.0, 1)
    (usual,), (sooner,) = (
        real_banks([pair], delay, speeds=(1.0,), variations=1) for delay in (DELAY, delay_of(80))
    )
    steps = (DELAY - delay_of(80)) // STEP
    assert steps == 2
    assert np.abs(usual.targets[20 + steps : 200, 0] - sooner.targets[20 : 200 - steps, 0]).max() < 1e-6


def test_the_checkpoint_of_another_look_ahead_is_not_gone_on_from(tmp_path: Path) -> None:
    pairs = [_pair("x1", 3.0, 1)]
    _trainer(Recipe(listening=0, steps=1, real=2, hidden=16), pairs, [], tmp_path).train()
    with pytest.raises(ValueError, match="hears 120 ms ahead, not 80; give --out another folder"):
        _trainer(Recipe(listening=0, steps=1, real=2, hidden=16, look_ahead_ms=80), pairs, [], tmp_path)


def test_the_checkpoint_of_another_net_is_named(tmp_path: Path) -> None:
    pairs, recipe = [_pair("x1", 3.0, 1)], Recipe(listening=0, steps=1, real=2, hidden=16)
    run = _trainer(recipe, pairs, [], tmp_path)
    run.train()
    kept = torch.load(run.checkpoint, weights_only=True)
    kept["net"]["phones.weight"] = kept["net"].pop("said.weight")
    torch.save(kept, run.checkpoint)
    with pytest.raises(ValueError, match="another kind of net; give --out another folder"):
        _trainer(recipe, pairs, [], tmp_path)


def test_the_checkpoint_of_a_net_that_heard_other_layers_is_named(tmp_path: Path) -> None:
    """Bug: its tensors have the same names, and torch's own error came up."""
    pairs, recipe = [_pair("x1", 3.0, 1)], Recipe(listening=0, steps=1, real=2, hidden=16)
    run = _trainer(recipe, pairs, [], tmp_path)
    run.train()
    kept = torch.load(run.checkpoint, weights_only=True)
    kept["net"]["gist_weight"] = kept["net"]["gist_weight"][:, : WIDTH // 3].clone()
    torch.save(kept, run.checkpoint)
    with pytest.raises(ValueError, match="another kind of net; give --out another folder"):
        _trainer(recipe, pairs, [], tmp_path)


def test_batches_repeat_and_have_the_documented_shapes() -> None:
    real = real_banks([_pair("x1", 5.0, 1), _pair("x2", 3.0, 2)], DELAY, speeds=(1.0,))
    sampler = Sampler(real, synthetic_banks([_spoken()], DELAY), mirror_matrix(BASIS), 7)
    first, second = sampler.batch(3, 4, 2), sampler.batch(3, 4, 2)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], sampler.batch(4, 4, 2)[0])
    assert first[0].shape == (6, FRAMES, 41)
    assert first[1].shape == (6, FRAMES // 4, SAID_FRAMES, WIDTH)
    assert first[2].shape == (4, FRAMES // 2, BASIS.size + 3)
    assert np.isfinite(first[0]).all()
    assert np.isfinite(first[1]).all()


def test_mirroring_twice_is_nothing() -> None:
    matrix = mirror_matrix(BASIS)
    assert np.abs(matrix @ matrix - np.eye(BASIS.size)).max() < 0.05
    assert matrix[0, 0] == pytest.approx(1.0, abs=0.01)


def test_the_held_out_people_are_never_learnt_from(tmp_path: Path) -> None:
    pairs = [_pair("a02_x", 3, 1), _pair("a12_x", 3, 2), _pair("x1", 3, 3)]
    run = _trainer(Recipe(steps=1, held_out=("a02",)), pairs, [], tmp_path)
    assert {bank.person for bank in run.sampler.banks} == {"x1"}
    assert [pair.name for pair in run.held_out] == ["a02_x", "a12_x"], "one person, two clips"


def test_nets_of_one_material_differ_by_their_seed_alone(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    material = Material.of(Recipe(steps=1, real=2, hidden=16), [_pair("x1", 4.0, 1)], [])
    assert (material.recipe.listening, material.recipe.synthetic) == (0, 0)
    one, again, other = (
        Trainer(material, seed, tmp_path / name) for seed, name in ((3, "one"), (3, "again"), (4, "other"))
    )
    assert other.recipe.seed == 4
    assert np.array_equal(one.sampler.batch(0, 2, 0)[0], again.sampler.batch(0, 2, 0)[0])
    assert not np.array_equal(one.sampler.batch(0, 2, 0)[0], other.sampler.batch(0, 2, 0)[0])
    tensors = [run.tensors() for run in (one, again, other)]
    assert np.array_equal(tensors[0]["head.weight"], tensors[1]["head.weight"])
    assert not np.array_equal(tensors[0]["head.weight"], tensors[2]["head.weight"])
    assert np.array_equal(tensors[0]["linear_weight"], tensors[2]["linear_weight"])


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 2)
    recipe = Recipe(steps=5, real=2, synthetic=1, hidden=16, held_out=("x2",))
    pairs, said = [_pair("x1", 5.0, 1), _pair("x2", 4.0, 2)], [_spoken()]

    through = _trainer(recipe, pairs, said, tmp_path / "through")
    through.train()

    stopped = _trainer(recipe, pairs, said, tmp_path / "stopped")
    draw = stopped.sampler.batch

    def until_three(step: int, real: int, synthetic: int) -> tuple[F32, F32, F32, F32]:
        if step == 3:
            raise KeyboardInterrupt
        return draw(step, real, synthetic)

    monkeypatch.setattr(stopped.sampler, "batch", until_three)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = _trainer(recipe, pairs, said, tmp_path / "stopped")
    assert resumed.step == 2
    resumed.train()
    for name, tensor in through.tensors().items():
        assert np.allclose(tensor, resumed.tensors()[name], atol=1e-6), name


def test_a_short_run_learns_and_its_spread_is_matched(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    recipe = Recipe(steps=60, real=6, synthetic=0, hidden=24, dropout=0.0, rate=8e-3, held_out=("x3",))
    pairs = [_pair("x1", 6.0, 1), _pair("x2", 6.0, 2), _pair("x3", 6.0, 3)]
    run = _trainer(recipe, pairs, [], tmp_path)
    run.train()
    assert np.mean(run.losses[-10:]) < 0.8 * np.mean(run.losses[:5])
    tensors = calibrate(run.tensors(), run.held_out, pairs)
    found = score(SpeechToExpression(tensors), pairs[2])
    assert found.opening_r > 0.6
    assert 0.8 < found.spread < 1.25
    assert abs(found.best_lag_ms) <= 60
    assert "| x3 |" in table([found])


def test_calibration_widens_the_opening_from_shut(tmp_path: Path) -> None:
    """Bug: outputs were widened round their mean, and lips that had been told shut parted."""
    torch.set_num_threads(1)
    pairs = [_pair("x1", 3.0, 1), _pair("x2", 3.0, 2)]
    before = _trainer(Recipe(steps=1, hidden=16, held_out=("x2",)), pairs, [], tmp_path).tensors()
    # Gates out of reach, so that the gain is the opening's alone.
    before["gate_points"] = np.array([2, 3, -2, -1], np.float32)
    after = calibrate(before, pairs[1:], pairs)

    def shut(tensors: dict[str, F32]) -> list[bool]:
        values, _ = run(SpeechToExpression(tensors), pairs[1].sound, pairs[1].times)
        return [bool(value == 0) for value in values[:, 0]]

    assert 0 < np.mean(shut(before)) < 1
    for other in (after, calibrate_like(before, [after], [_spoken()])):
        gain = other["spread"][0] / before["spread"][0]
        assert abs(gain - 1) > 0.05
        assert other["mean"][0] == pytest.approx(gain * before["mean"][0], rel=1e-4)
        assert shut(other) == shut(before)


def test_calibration_widens_what_is_heard_and_leaves_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: rounding, which is heard well, was told half as far as lips go, like what can hardly be heard."""
    pairs = [_pair("x1", 9.0, 1), _pair("x2", 9.0, 2)]
    tensors = _trainer(Recipe(steps=1, hidden=16, held_out=("x2",)), pairs, [], tmp_path).tensors()
    tensors["mean"], tensors["spread"] = np.zeros_like(tensors["mean"]), np.full_like(tensors["spread"], 0.02)
    noise = np.random.default_rng(7).normal(0, 0.3, pairs[1].expression.shape).astype(np.float32)

    def told(net: SpeechToExpression, sound: F32, seconds: NDArray[np.float64]) -> tuple[F32, F32]:
        one = next(pair for pair in pairs if pair.sound is sound)
        truth, other = one.at(seconds), noise[: len(seconds)]
        # The opening is hardly heard, the next well, the third of one of two people.
        heard = np.concatenate([0.1 * truth[:, :1] + other[:, :1], truth[:, 1:2], other[:, 2:]], 1)
        if one is pairs[1]:
            heard[:, 2] = truth[:, 2]
        weights = net._weights
        return weights.mean + weights.spread * heard / heard.std(0), np.ones((len(seconds), 2), np.float32)

    monkeypatch.setattr(trainer, "run", told)
    monkeypatch.setattr(trainer, "MOST_GAIN", 100.0)
    after = calibrate(tensors, pairs, pairs)
    goal = np.sqrt(np.mean([pair.expression.var(0) for pair in pairs], axis=0))
    assert after["spread"][:2] == pytest.approx(goal[:2], rel=1e-3)
    assert 0.8 < after["spread"][2] / goal[2] <= 1.001
    assert (after["spread"][3:] / goal[3:] < 0.3).all()
    assert (after["spread"] >= 0.02 * (1 - 1e-4)).all()
    monkeypatch.setattr(trainer, "HEARD_ENOUGH", 1.0)
    assert 0.4 < calibrate(tensors, pairs, pairs)["spread"][2] / goal[2] < 0.6
    monkeypatch.setattr(trainer, "MOST_GAIN", 3.0)
    assert calibrate(tensors, pairs, pairs)["spread"][2] == pytest.approx(0.06, rel=1e-3)


def test_what_stands_still_has_no_correlation() -> None:
    """Bug: three hundred times the same number, in single precision, had a spread, and r was no number."""
    moving = np.sin(np.arange(301, dtype=np.float32))
    for value in np.linspace(0.01, 3, 50, dtype=np.float32):
        assert correlation(np.full(301, value, np.float32), moving) == 0
    assert correlation(moving, moving) == pytest.approx(1)


def test_nets_that_learnt_nothing_are_named(tmp_path: Path) -> None:
    pairs = [_pair("x1", 3.0, 1), _pair("x2", 3.0, 2)]
    tensors = _trainer(Recipe(steps=1, hidden=16, held_out=("x2",)), pairs, [], tmp_path).tensors()
    tensors["spread"] = np.zeros_like(tensors["spread"])
    tensors["gate_points"] = np.array([2, 3, -2, -1], np.float32)
    with pytest.raises(NothingLearntError, match="lips that hardly move"):
        calibrate(tensors, pairs[1:], pairs)


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"clips\.csv: no catalogue"):
        read_catalogue(tmp_path, "train")


def test_a_catalogue_of_other_columns_or_without_a_clip_is_named(tmp_path: Path) -> None:
    catalogue = tmp_path / "clips.csv"
    catalogue.write_text("name,set\nanna,train\n")
    with pytest.raises(ValueError, match=r"clips\.csv: lacks the columns file, image_only, lips"):
        read_catalogue(tmp_path, "train")
    catalogue.write_text("set,file,lips_minus_sound_ms,image_only\nopen,a.mp4,,no\n")
    with pytest.raises(ValueError, match=r"clips\.csv: no clip of the set 'train'"):
        read_catalogue(tmp_path, "train")


@pytest.mark.parametrize("command", [train_basis, train_expression, train_renderer])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--clips", "nodir", "--cache", "x", "--out", "y"], "nodir/clips.csv: no catalogue"),
        (["--nope", "--clips", "nodir", "--cache", "x", "--out", "y"], "--nope"),
    ],
)
def test_a_training_command_says_what_is_wrong_in_one_line(
    command: ModuleType,
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["retalk train", *arguments])
    with pytest.raises(SystemExit) as exited:
        command.main()
    said = capsys.readouterr()
    assert exited.value.code == 2
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("retalk train: ")
    assert named in said.err


@pytest.mark.parametrize(("command", "out"), [(train_basis, "folder"), (train_expression, "file")])
def test_training_looks_where_it_writes_before_it_tracks(
    command: ModuleType,
    out: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "clips.csv").write_text("set,file,lips_minus_sound_ms,image_only\ntrain,file,,no\n")
    arguments = ["--clips", tmp_path, "--cache", tmp_path / "cache", "--out", tmp_path / out]
    monkeypatch.setattr(sys, "argv", ["retalk train", *map(str, arguments)])
    with pytest.raises(SystemExit) as exited:
        command.main()
    said = capsys.readouterr().err
    assert (exited.value.code, said.count("\n")) == (2, 1)
    assert str(tmp_path / out) in said
    assert not (tmp_path / "cache").exists()


def test_the_catalogue_gives_lags_in_seconds(clips: Path) -> None:
    entries = {entry.name: entry for entry in read_catalogue(clips, "train")}
    assert len(entries) == 53
    assert entries["a01_620900105"].lips_minus_sound_s == pytest.approx(0.12)
    assert not entries["d41_d6"].paired
