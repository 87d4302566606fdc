"""Adaptation to a presenter: learnt from the clip's first part, kept only where the last gains, and used."""

from __future__ import annotations

import json
import sys
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retalk_models.engine import EngineOptions, EngineSession, Idle, adapted, person_file
from retalk_models.picture import Picture
from retalk_models.talkin import adapt_renderer, render_trainer, train_renderer
from retalk_models.talkin.adapt_renderer import Gain, adapt, split, working_folder
from retalk_models.talkin.engine import TalkinEngine
from retalk_models.talkin.enhance import NetRenderer
from retalk_models.talkin.render_scores import Scores
from retalk_models.talkin.rendernet import RenderNet, load_net, save_net
from server.hosted import SessionPlan
from server.streams import Streams
from stream.offline import dub
from tests.retalk_models import crops, faces
from tests.stream.fakes import FakeEngine
from tests.stream.harness import tone
from tests.stream.media_files import write_sound, write_video

BEFORE = Scores(26.0, 24.0, 30.0, 28.0, 0.8, 0.77, 1.0, 1.4, 1.0, 1.4, 1.0, 1.7, 21.0, 18.0)


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A presenter's clip whose crops are at hand, and a run that takes no time."""
    torch.set_num_threads(1)
    video = tmp_path / "anna.mp4"
    write_video(video, 2)
    monkeypatch.setattr(render_trainer, "_POOL", 4)
    monkeypatch.setattr(render_trainer, "evaluate", lambda *_: BEFORE)
    monkeypatch.setattr(adapt_renderer, "build", lambda *_: None)
    monkeypatch.setattr(adapt_renderer, "read", lambda _: [crops.clip("anna", 170)])
    return video


def told(monkeypatch: pytest.MonkeyPatch, after: Scores) -> None:
    """Let the held-back frames say this of the adapted net."""
    scores: Iterator[Scores] = iter((BEFORE, after))
    monkeypatch.setattr(adapt_renderer, "evaluate", lambda *_: next(scores))


def test_the_held_back_frames_are_the_last_and_ten_away_from_those_learnt_from() -> None:
    own, held_back = split(crops.clip("anna", 200, flat=True))
    assert (own.person, held_back.person) == ("own", "held back")
    assert list(own.numbers) == list(range(140))
    assert list(held_back.numbers) == list(range(150, 200))
    assert held_back.planes[0, 0, 0] == (crops.LEVEL + crops.STEP * 150) % 256
    for one in (own, held_back):
        count = len(one.numbers)
        assert len(one.points) == len(one.poses) == len(one.openings) == len(one.planes) == count


def test_weights_that_gain_are_kept_beside_the_clip(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, replace(BEFORE, lips_psnr=26.4, ssim=0.81))
    gain = adapt(clip, tmp_path / "cache", tmp_path / "out", 1, 0)
    assert gain.kept == person_file(clip) == adapted(clip)
    own, shipped = load_net(gain.kept), load_net()
    assert own.widths == shipped.widths
    assert not torch.equal(own.head.weight, shipped.head.weight)
    told_of = json.loads((tmp_path / "out" / "adaptation.json").read_text(encoding="utf-8"))
    assert told_of["kept"] is True
    assert told_of["after"]["lips_psnr"] == 26.4


@pytest.mark.parametrize(
    "after",
    [
        replace(BEFORE, lips_psnr=25.0),
        replace(BEFORE, lips_psnr=26.05, ssim=0.81),
        replace(BEFORE, lips_psnr=27.0, ssim=0.79),
    ],
    ids=["worse", "hardly better", "better but less like it"],
)
def test_weights_that_do_not_gain_are_not_kept(
    after: Scores, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, after)
    gain = adapt(clip, tmp_path / "cache", tmp_path / "out", 1, 0)
    assert gain.kept is None
    assert adapted(clip) is None
    assert (tmp_path / "out" / "adaptation.json").is_file()


def test_a_clip_with_too_few_faces_is_refused(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, found in (("hardly any", []), ("149", [crops.clip("anna", 149)])):
        monkeypatch.setattr(adapt_renderer, "read", lambda _, found=found: found)
        with pytest.raises(ValueError, match=f"in {words} frames; --adapt needs 150"):
            adapt(clip, tmp_path / "cache", tmp_path / "out", 1, 0)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["retalk train renderer", *map(str, arguments)])
    try:
        train_renderer.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_the_command_says_gain_and_place_and_needs_no_folders(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    told(monkeypatch, replace(BEFORE, lips_psnr=26.4, ssim=0.81))
    assert run(monkeypatch, "--adapt", clip, "--steps", 1) == 0
    said = capsys.readouterr().out
    assert "held-back frames: lips 26.00 -> 26.40 dB, ssim 0.800 -> 0.810" in said
    assert f"wrote {person_file(clip)}" in said
    assert (working_folder(clip) / "adaptation.json").is_file()
    assert working_folder(clip).is_relative_to(tmp_path / "cache")


def test_what_did_not_gain_is_said_in_words(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(adapt_renderer, "adapt", lambda *_: Gain(BEFORE, BEFORE, None))
    assert run(monkeypatch, "--adapt", clip) == 0
    assert "nothing was kept" in capsys.readouterr().out


def _missing(folder: Path) -> Path:
    return folder / "nobody.mp4"


def _text(folder: Path) -> Path:
    (folder / "notes.mp4").write_text("no video")
    return folder / "notes.mp4"


def _empty(folder: Path) -> Path:
    (folder / "empty.mp4").write_bytes(b"")
    return folder / "empty.mp4"


def _sound(folder: Path) -> Path:
    with wave.open(str(folder / "voice.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(3200))
    return folder / "voice.wav"


def _odd(folder: Path) -> Path:
    write_video(folder / "odd.mp4", 3, size=(95, 63), pix_fmt="yuv444p")
    return folder / "odd.mp4"


def _faceless(folder: Path) -> Path:
    write_video(folder / "wall.mp4", 40)
    return folder / "wall.mp4"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_missing, "no such file"),
        (_text, "cannot be read as a video"),
        (_empty, "cannot be read as a video"),
        (_sound, "no picture"),
        (_odd, "even width and height"),
        (_faceless, "in hardly any frames"),
    ],
)
def test_a_clip_that_cannot_be_learnt_from_gives_one_line_and_exit_code_two(
    make: object,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    video = make(tmp_path)  # type: ignore[operator]
    assert run(monkeypatch, "--adapt", video) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("retalk")]
    assert len(lines) == 1
    assert str(video) in lines[0]
    assert words in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--clips is missing"),
        (("--clips", "/nowhere", "--cache", "/tmp", "--out", "/tmp"), "no catalogue"),
        (("--steps", "0", "--adapt", "x.mp4"), "whole number from 1 on"),
        (("--seed", "-1", "--adapt", "x.mp4"), "whole number from 0 on"),
        (("--device", "cuda:99", "--adapt", "x.mp4"), "no device 'cuda:99'"),
    ],
)
def test_wrong_options_are_named(
    arguments: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def bright(folder: Path) -> Path:
    """Weights that draw every mouth white."""
    net = RenderNet()
    with torch.no_grad():
        bias = net.state_dict()["head.bias"]
        bias[8:12] += 12
        bias[12:16] += 1
    save_net(net, folder / "anna.mp4.renderer.safetensors")
    return folder / "anna.mp4.renderer.safetensors"


def test_a_session_draws_with_the_weights_of_the_person_shown(tmp_path: Path) -> None:
    engine = TalkinEngine(
        faces.ToldSpeech(np.full(400, 0.02, np.float32)),
        faces.BASIS,
        {},
        NetRenderer(weights=bright(tmp_path)),
    )
    plain = TalkinEngine(faces.ToldSpeech(np.full(400, 0.02, np.float32)), faces.BASIS, {}, NetRenderer())
    pictures = [faces.portrait(x=i) for i in range(6)]

    def shown(session: EngineSession) -> Picture:
        out = faces.dub(session, faces.frames(pictures))[-1].picture  # type: ignore[arg-type]
        session.close()
        return out

    own = shown(plain.open_session(EngineOptions(person=bright(tmp_path))))
    bundled = shown(plain.open_session(EngineOptions()))
    assert np.array_equal(own.planes, shown(engine.open_session(EngineOptions())).planes)
    assert float(own.y.astype(int).sum() - bundled.y.astype(int).sum()) > 10_000


def test_weights_adapted_from_an_earlier_net_are_not_used(tmp_path: Path) -> None:
    earlier = tmp_path / "anna.mp4.renderer.safetensors"
    save_net(RenderNet((16, 32, 80, 128)), earlier)
    with pytest.raises(ValueError, match=r"anna\.mp4\.renderer\.safetensors: these are of an earlier"):
        NetRenderer(weights=earlier)


def test_damaged_weights_of_a_person_cost_no_dub(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = tmp_path / "anna.mp4.renderer.safetensors"
    damaged.write_bytes(b"not weights")
    engine = TalkinEngine(faces.ToldSpeech(np.full(400, 0.02, np.float32)), faces.BASIS, {}, NetRenderer())
    session = engine.open_session(EngineOptions(person=damaged))
    output = faces.dub(session, faces.frames([faces.portrait()]))[-1]
    session.close()
    assert output.region is not None
    assert str(damaged) in caplog.text
    assert "the shipped rendering net is used" in caplog.text


def test_a_file_with_weights_beside_it_is_dubbed_with_them(tmp_path: Path) -> None:
    video, sound, engine = tmp_path / "anna.mp4", tmp_path / "in.wav", FakeEngine()
    write_video(video, 5)
    write_sound(sound, tone(200))
    dub(video, sound, tmp_path / "one.mp4", engine=engine)
    person_file(video).write_bytes(b"")
    dub(video, sound, tmp_path / "two.mp4", engine=engine)
    assert [one.person for one in engine.options] == [None, person_file(video)]


async def test_a_presenter_with_weights_beside_it_is_shown_with_them(tmp_path: Path) -> None:
    video = tmp_path / "anna.mp4"
    write_video(video, 5)
    streams = Streams(FakeEngine())
    persons = []
    for presenter in (None, video):
        persons.append((await streams.open(SessionPlan(presenter, 400, Idle.REST, True))).config.person)
    person_file(video).write_bytes(b"")
    persons.append((await streams.open(SessionPlan(video, 400, Idle.REST, True))).config.person)
    assert persons == [None, None, person_file(video)]
