"""Training of the rendering net: what it learns from, that it learns, goes on, and says what it did."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retalk_models.talkin import crop_corpus, render_trainer, train_renderer
from retalk_models.talkin.adversary import seeded
from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.corpus import LANDMARKS, ClipEntry, ClipTrack
from retalk_models.talkin.crop_corpus import CROP_SIDE, CropClip
from retalk_models.talkin.enhance import RENDERER_FILE
from retalk_models.talkin.mouth_crop import SIDE
from retalk_models.talkin.render_samples import ClipSampler, Sample, SampleSource, inputs, stacked, varied
from retalk_models.talkin.render_scores import evaluate, tensors
from retalk_models.talkin.render_trainer import CheckpointError, Recipe, Trainer, objective
from retalk_models.talkin.rendernet import RenderNet, load_net
from retalk_models.talkin.views import kind_of, served_by
from tests.retalk_models import crops, faces
from tests.stream.media_files import write_video

RECIPE = Recipe(steps=4, pairs=1, held_out=("x2",))
SMALL = (4, 6, 8, 8)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(render_trainer, "_POOL", 6)


def trainer(out: Path, recipe: Recipe = RECIPE) -> Trainer:
    torch.manual_seed(0)
    clips = [crops.clip("x1"), crops.clip("x2", seed=1)]
    return Trainer(recipe, clips, out, start=RenderNet(SMALL), tests_per_clip=2)


def frame_of(picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> float:
    """The number of a flat clip's frame, from the luma of a crop's corner."""
    return (float(picture[0, 0, 0]) - crops.LEVEL) / crops.STEP


def test_pairs_are_consecutive_frames_drawn_from_neighbours_at_one_distance() -> None:
    sampler, rng = ClipSampler(crops.clip(flat=True)), np.random.default_rng(0)
    found = [pair for pair in (sampler.pair(rng, strange=0) for _ in range(30)) if pair is not None]
    assert len(found) > 10
    for one, other in found:
        assert frame_of(other.context) - frame_of(one.context) == 1
        away = frame_of(one.first) - frame_of(one.context)
        assert 2 <= abs(away) <= 10
        assert frame_of(other.first) - frame_of(other.context) == away


def test_a_stranger_that_stands_in_is_far_and_has_another_mouth() -> None:
    clip = crops.clip(flat=True)
    sampler, rng = ClipSampler(clip), np.random.default_rng(0)
    found = [pair for pair in (sampler.pair(rng, strange=1) for _ in range(30)) if pair is not None]
    assert len(found) > 10
    for one, _ in found:
        drawn, stand_in = round(frame_of(one.context)), round(frame_of(one.first))
        assert abs(stand_in - drawn) > 10
        assert abs(clip.openings[stand_in] - clip.openings[drawn]) > 0.03


def test_frames_without_a_face_between_them_make_no_pair() -> None:
    every_third = crops.clip(flat=True, numbers=range(0, 180, 3))
    with pytest.raises(ValueError, match="follow each other"):
        SampleSource([every_third]).pair(np.random.default_rng(0))
    with pytest.raises(ValueError, match="follow each other"):
        SampleSource([]).pair(np.random.default_rng(0))


def test_a_sample_is_the_frame_two_warps_and_masks() -> None:
    one, _ = SampleSource([crops.clip()]).fixed(1, 0)[0]
    for picture in (one.context, one.first, one.second, one.drawn):
        assert picture.shape == (SIDE, SIDE, 3)
    assert one.truth is one.context
    outside = one.reach == 0
    assert 0.2 < outside.mean() < 0.95
    assert ((one.lips > 0) & (one.reach > 100)).any()
    fault = np.abs(one.first.astype(int) - one.context)[outside, 0]
    assert np.median(fault) <= 2


def test_what_is_measured_by_is_the_same_every_time() -> None:
    source = SampleSource([crops.clip()])
    for one, other in zip(source.fixed(3, 5), source.fixed(3, 5), strict=True):
        for a, b in zip(one, other, strict=True):
            assert np.array_equal(a.context, b.context)
            assert np.array_equal(a.first, b.first)
            assert np.array_equal(a.second, b.second)


def test_variation_treats_both_frames_of_a_pair_and_all_its_pictures_alike() -> None:
    shade: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = np.tile(
        np.linspace(40, 200, SIDE).astype(np.uint8)[None, :, None], (SIDE, 1, 3)
    )
    mask = np.full((SIDE, SIDE), 255, np.uint8)
    same = Sample(shade, shade, shade, shade, mask, mask)
    raw = stacked([same] * 8)
    mirrored = 0
    for seed in range(4):
        batch = varied(raw, np.random.default_rng(seed))
        assert all(
            value.shape == raw["context" if name == "truth" else name].shape for name, value in batch.items()
        )
        for index in range(0, 8, 2):
            assert np.array_equal(batch["context"][index], batch["context"][index + 1])
            rises = [
                batch[name][index, 0, 50, -1] > batch[name][index, 0, 50, 0]
                for name in ("truth", "first", "drawn")
            ]
            assert len(set(rises)) == 1
            mirrored += not rises[0]
    assert 2 < mirrored < 14
    assert raw["context"][0, 0, 0, 0] == pytest.approx(40 / 127.5 - 1)


def test_held_out_people_are_never_learnt_from(tmp_path: Path) -> None:
    clips = [crops.clip("x1"), crops.clip("x2", flat=True)]
    run = Trainer(RECIPE, clips, tmp_path, start=RenderNet(SMALL), tests_per_clip=2)
    assert [one.clip.name for one in run.source.samplers] == ["x1"]
    assert len(run.test) == 2
    for one, _ in run.test:
        assert frame_of(one.context) in range(60), "the flat clip is the one left out"


def test_the_loss_is_least_for_the_truth_and_tells_flicker_and_blur() -> None:
    samples = [one for pair in SampleSource([crops.clip()]).fixed(2, 0) for one in pair]
    raw = stacked(samples)
    raw["truth"] = raw["context"]
    batch, value = tensors(raw, "cpu"), torch.from_numpy(inputs(raw))
    gates = torch.zeros(4, 3, SIDE, SIDE)
    gates[:, 0] = 1

    def loss(out: torch.Tensor) -> float:
        return float(objective(value, gates, out, batch, RECIPE))

    truth = batch["truth"]
    assert loss(truth) < 1e-5
    trembling = truth.clone()
    trembling[::2] += 0.05
    trembling[1::2] -= 0.05
    assert loss(trembling) > loss(truth + 0.05) > 0.04
    assert loss(torch.nn.functional.avg_pool2d(truth, 5, 1, 2)) > loss(truth)


def test_averaging_the_warps_costs_ever_more_and_choosing_nothing() -> None:
    samples = [one for pair in SampleSource([crops.clip()]).fixed(2, 0) for one in pair]
    raw = stacked(samples)
    raw["truth"] = raw["context"]
    batch, value = tensors(raw, "cpu"), torch.from_numpy(inputs(raw))
    half, chosen = torch.zeros(4, 3, SIDE, SIDE), torch.zeros(4, 3, SIDE, SIDE)
    half[:, :2], chosen[:, 1] = 0.5, 1.0

    def price(gates: torch.Tensor, done: float) -> float:
        return float(objective(value, gates, batch["truth"], batch, RECIPE, done))

    assert price(half, 0.0) < price(half, 0.3) < price(half, 0.6) == price(half, 1.0)
    assert price(chosen, 1.0) < 0.01 * price(half, 1.0)


def test_a_fog_between_the_lips_costs_more_than_elsewhere() -> None:
    samples = [one for pair in SampleSource([crops.clip()]).fixed(2, 0) for one in pair]
    raw = stacked(samples)
    raw["truth"] = raw["context"]
    batch, value = tensors(raw, "cpu"), torch.from_numpy(inputs(raw))
    gates = torch.full((4, 3, SIDE, SIDE), 1 / 3)
    inside = (batch["drawn"][:, 1:2] > 0).float()
    fog = torch.nn.functional.avg_pool2d(batch["truth"], 5, 1, 2)
    out = batch["truth"] + inside * (fog - batch["truth"])
    with_texture, without = (
        float(objective(value, gates, out, batch, replace(RECIPE, texture=texture))) for texture in (1.0, 0.0)
    )
    assert with_texture > without
    sharp, unsharp = (
        float(objective(value, gates, one, batch, replace(RECIPE, texture=1.0)))
        - float(objective(value, gates, one, batch, replace(RECIPE, texture=0.0)))
        for one in (batch["truth"], out)
    )
    assert sharp < 1e-6 < unsharp


def test_the_adversary_learns_late_and_pulls_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPE, steps=40, adversary_from=0.5)
    run = trainer(tmp_path, recipe)
    before = {name: value.clone() for name, value in run.adversary.state_dict().items()}

    def same() -> bool:
        return all(torch.equal(before[name], value) for name, value in run.adversary.state_dict().items())

    pulled: list[float] = []
    contested = run._contested

    def noted(*given: Any) -> torch.Tensor:
        found = contested(*given)
        pulled.append(float(found.detach()))
        return found

    monkeypatch.setattr(run, "_contested", noted)
    rng = np.random.default_rng(0)
    pair = run.source.pair(rng)
    for step in (10, 20, 22):
        run.step = step
        run._learn(pair, rng)
        assert same() == (step < 20)
    assert pulled[0] == 0
    assert pulled[1] != 0
    assert all(one.requires_grad for one in run.adversary.parameters())


def test_the_adversary_takes_no_random_number_from_the_net() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one = seeded(1, "cpu")
    assert torch.equal(torch.rand(4), expected)
    other = seeded(1, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_second_view_is_of_the_targets_kind_and_far_off() -> None:
    sampler, rng = ClipSampler(crops.clip()), np.random.default_rng(0)
    clip = sampler.clip
    found = 0
    for index in range(len(clip.numbers)):
        view = sampler._view(index, rng)
        if view < 0:
            continue
        found += 1
        assert abs(int(clip.numbers[view] - clip.numbers[index])) > 10
        assert kind_of(float(clip.openings[view])) in served_by(float(clip.openings[index]))
    assert found


def test_scores_name_a_copy_of_the_first_warp_as_good_as_the_warp() -> None:
    found = evaluate(RenderNet(SMALL), SampleSource([crops.clip()]).fixed(4, 0))
    # Untrained, the gates still let a tenth of the second warp through.
    assert found.lips_psnr == pytest.approx(found.lips_psnr_warp, abs=1.5)
    assert 0 < found.ssim <= 1
    with pytest.raises(ValueError, match="no pairs"):
        evaluate(RenderNet(SMALL), [])


def test_a_run_learns(tmp_path: Path) -> None:
    recipe = Recipe(steps=60, pairs=2, rate=4e-3, average=0.9, choosing=0.0, held_out=("x2",))
    run = trainer(tmp_path, recipe)
    before = evaluate(run.averaged(), run.test)
    run.train()
    after = evaluate(run.averaged(), run.test)
    assert after.lips_psnr > before.lips_psnr + 0.5
    assert after.reach_psnr > before.reach_psnr + 0.5
    assert after.ssim > before.ssim


def test_a_run_is_decided_by_recipe_and_clips(tmp_path: Path) -> None:
    nets = []
    for name in ("one", "other"):
        run = trainer(tmp_path / name)
        run.train()
        nets.append(run.averaged().state_dict())
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


def test_a_stopped_run_goes_on_and_a_finished_one_only_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(render_trainer, "CHECKPOINT_S", -1.0)
    stopped = trainer(tmp_path)
    learn = stopped._learn

    def until_two(samples: list[Sample], rng: np.random.Generator) -> float:
        if stopped.step == 2:
            raise KeyboardInterrupt
        return learn(samples, rng)

    monkeypatch.setattr(stopped, "_learn", until_two)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert (tmp_path / RENDERER_FILE).is_file(), "what it has so far can be tried"

    resumed = trainer(tmp_path)
    resumed._resume()
    for name, value in stopped.net.state_dict().items():
        assert torch.equal(resumed.net.state_dict()[name], value)
        assert torch.equal(resumed.average[name], stopped.average[name])
    assert resumed.optimizer.state_dict()["state"][0]["step"] == 2

    resumed = trainer(tmp_path)
    resumed.train()
    assert "going on from step 2" in capsys.readouterr().out
    assert resumed.step == len(resumed.losses) == 4
    assert resumed.losses[:2] == stopped.losses
    assert [step for step, _ in resumed.scores] == [4], "the last step is scored"

    again = trainer(tmp_path)
    monkeypatch.setattr(again.source, "pair", None)
    again.train()
    assert again.losses == resumed.losses
    assert again.scores == resumed.scores


def test_another_runs_checkpoint_is_not_gone_on_from(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    kept = (tmp_path / RENDERER_FILE).read_bytes()
    others = [
        trainer(tmp_path, Recipe(steps=4, pairs=1, seed=1, held_out=("x2",))),
        Trainer(RECIPE, [crops.clip("x1", 50), crops.clip("x2")], tmp_path, start=RenderNet(SMALL)),
    ]
    for other in others:
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt is of another recipe or of other clips"):
            other.train()
    assert (tmp_path / RENDERER_FILE).read_bytes() == kept


def test_the_report_names_seed_steps_data_and_the_people_left_out(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    train_renderer.report(run, [crops.clip("x1"), crops.clip("x2")])
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert "Seed 0, 4 steps of 2 crops, 1 clips." in card
    assert "Never learnt from, and measured on: x2." in card
    assert "Licence" in card
    assert "| 4 | " in card
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["recipe"]["steps"] == 4
    assert content["clips"] == ["x1"]
    assert len(content["losses"]) == 4
    assert content["scores"][-1]["step"] == 4
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_all_but_the_curves_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    train_renderer.report(trainer(tmp_path), [])
    assert "matplotlib is not installed" in capsys.readouterr().out
    assert sorted(one.name for one in tmp_path.iterdir()) == ["card.md", "report.json"]


def test_the_shipped_weights_are_the_default_recipes() -> None:
    assert (Recipe().seed, Recipe().steps) == (0, 2000)
    assert load_net().widths == RenderNet().widths


def _filmed(path: Path, count: int, faceless: bool = False) -> ClipTrack:
    """A video, and a track of a face that fills it, moving by two pixels a frame."""
    write_video(path, count, size=(320, 240))
    points = np.stack([faces.points(0.05, faces.pose(scale=60, x=140 + 2 * i, y=90)) for i in range(count)])
    if faceless:
        points = np.full((count, LANDMARKS, 3), np.nan, np.float32)
    return ClipTrack(points, np.arange(count) / 25, np.zeros(0, np.float32), 320, 240)


def _cut(monkeypatch: pytest.MonkeyPatch, path: Path, track: ClipTrack, out: Path) -> list[CropClip]:
    monkeypatch.setattr(crop_corpus, "cached_track", lambda entry, tracks: track)
    crop_corpus.build([ClipEntry(path, None, False)], out / "tracks", out, ExpressionBasis.load())
    return crop_corpus.read(out)


def test_crops_follow_the_face_and_are_cut_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    track = _filmed(tmp_path / "x1_clip.mp4", 34)
    track.points[5] = np.nan
    (clip,) = _cut(monkeypatch, tmp_path / "x1_clip.mp4", track, tmp_path / "crops")
    assert (clip.name, clip.person) == ("x1_clip", "x1")
    assert list(clip.numbers) == [*range(5), *range(6, 34)]
    assert clip.planes.shape == (33, CROP_SIDE * 3 // 2, CROP_SIDE)
    spread = clip.points[:, list(range(LANDMARKS)), :2].std(axis=0)
    assert float(spread.max()) < 0.5, "a face that moves through the frame stands still in its crops"
    assert np.allclose(clip.openings, 0.05, atol=0.01)
    levels = clip.planes[:, CROP_SIDE // 2, CROP_SIDE // 2].astype(int)
    assert (np.diff(levels) > 0).all(), "each is of its own frame"
    monkeypatch.setattr(crop_corpus, "_crops_of", None)
    assert len(_cut(monkeypatch, tmp_path / "x1_clip.mp4", track, tmp_path / "crops")) == 1


def test_another_clip_of_the_same_name_is_cut_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x1_clip.mp4"
    for count in (32, 40):
        (clip,) = _cut(monkeypatch, path, _filmed(path, count), tmp_path / "crops")
        assert len(clip.numbers) == count


def test_an_interrupted_cut_is_not_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "x1_clip.mp4", tmp_path / "crops"
    track = _filmed(path, 32)
    _cut(monkeypatch, path, track, out)
    other = tmp_path / "x2_clip.mp4"
    other.write_bytes(path.read_bytes())

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(crop_corpus, "_crops_of", stop)
        with pytest.raises(KeyboardInterrupt):
            _cut(patch, other, track, out)
    (clip,) = _cut(monkeypatch, path, track, out)
    assert len(clip.planes) == 32
    assert clip.planes[0].any()


def test_clips_without_a_face_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x1_clip.mp4"
    assert _cut(monkeypatch, path, _filmed(path, 32, faceless=True), tmp_path / "crops") == []


def test_the_command_trains_on_a_folder_and_goes_on_when_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = tmp_path / "clips"
    (clips / "train").mkdir(parents=True)
    rows = ["set,file,lips_minus_sound_ms,image_only"]
    for name in ("x1_anna", "a05_held"):
        track = _filmed(clips / "train" / f"{name}.mp4", 60)
        rows.append(f"train,train/{name}.mp4,,yes")
    (clips / "clips.csv").write_text("\n".join(rows), encoding="utf-8")
    monkeypatch.setattr(crop_corpus, "cached_track", lambda entry, tracks: track)
    out = tmp_path / "out"
    arguments = ["--clips", clips, "--cache", tmp_path / "cache", "--out", out, "--steps", 3]
    monkeypatch.setattr(sys, "argv", ["retalk train renderer", *map(str, arguments)])
    train_renderer.main()
    said = capsys.readouterr().out
    assert "2 clips, 120 crops" in said
    assert "held out: lips" in said
    assert f"wrote {out / RENDERER_FILE}" in said
    assert load_net(out / RENDERER_FILE).widths == RenderNet().widths
    card = (out / "card.md").read_text(encoding="utf-8")
    assert "3 steps of 8 crops, 1 clips." in card
    train_renderer.main()
    assert "going on from step 3" in capsys.readouterr().out
    assert (out / "card.md").read_text(encoding="utf-8") == card
