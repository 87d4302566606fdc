"""`retalk eval`: what it refuses, what it measures of a real clip, and the page it writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from retalk_models.evaluation.series import F64
from retalk_models.evaluation.sync import SyncMeter
from stream.errors import InputError
from stream.evaluate.manifest import Clip, read_manifest
from stream.evaluate.material import Subject, Tracked, pictures, read_sound, sound_after_picture
from stream.evaluate.page import plot
from stream.evaluate.run import Options, evaluate, means, plain
from stream.evaluate.scores import score_lips
from tests.retalk_models.evaluation.synthetic import faces, opening, sound
from tests.stream.media_files import write_sound, write_video

FPS = 25.0


def with_sound(path: Path, seconds: float = 0.4, late_s: float = 0.0) -> Path:
    """A short film of no one, with a tone that begins so much later."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        assert isinstance(video, VideoStream)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = container.add_stream("aac", rate=16_000)
        for _ in range(round(seconds * 25)):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8))))
        tone = np.sin(np.arange(round(seconds * 16_000)) / 20, dtype=np.float32)[None]
        frame = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
        frame.sample_rate, frame.pts = 16_000, round(16_000 * late_s)
        container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("manifest")
    with_sound(root / "one.mp4")
    with_sound(root / "two.mp4")
    write_video(root / "silent.mp4")
    (root / "text.mp4").write_text("no film\n")
    return root


def write(path: Path, what: Any) -> Path:
    path.write_text(what if isinstance(what, str) else json.dumps(what), encoding="utf-8")
    return path


BAD: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "no such clip": (
        "a.json",
        [{"path": "one.mp4"}, {"path": "gone.mp4"}],
        ("gone.mp4", "entry 2", "a.json"),
    ),
    "no film": ("a.json", ["text.mp4"], ("text.mp4",)),
    "no sound": ("a.json", ["silent.mp4"], ("silent.mp4", "sound")),
    "no path": ("a.json", [{"label": "x"}], ("entry 1", "path")),
    "unknown key": ("a.json", [{"path": "one.mp4", "lag": 3}], ("lag", "lips_minus_sound_ms")),
    "offset no number": (
        "a.json",
        [{"path": "one.mp4", "lips_minus_sound_ms": "x"}],
        ("'x'", "milliseconds"),
    ),
    "offset too far": (
        "a.json",
        [{"path": "one.mp4", "lips_minus_sound_ms": 4000}],
        ("4000", "milliseconds"),
    ),
    "offset not finite": ("a.csv", "path,lips_minus_sound_ms\none.mp4,nan\n", ("nan", "milliseconds")),
    "twice": ("a.json", ["one.mp4", "one.mp4"], ("'one'", "label")),
    "empty list": ("a.json", [], ("no clip",)),
    "no JSON": ("a.json", "{", ("a.json", "JSON")),
    "no list": ("a.json", {"films": []}, ("list",)),
    "neither path nor object": ("a.json", [7], ("entry 1",)),
    "no column": ("a.csv", "file\none.mp4\n", ("path",)),
    "other suffix": ("a.txt", "one.mp4", (".json", ".csv")),
}


@pytest.mark.parametrize(("name", "what", "named"), BAD.values(), ids=BAD.keys())
def test_a_bad_manifest_is_one_clear_line(folder: Path, name: str, what: Any, named: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as raised:
        read_manifest(write(folder / name, what))
    text = str(raised.value)
    assert "\n" not in text
    for word in named:
        assert word in text


def test_manifests_of_every_kind_say_the_same(folder: Path, tmp_path: Path) -> None:
    rows = [{"path": "one.mp4", "lips_minus_sound_ms": -40}, {"path": "two.mp4", "label": "the other one"}]
    want = (Clip(folder / "one.mp4", "one", -0.04), Clip(folder / "two.mp4", "the_other_one"))
    assert read_manifest(write(folder / "l.json", rows)) == want
    assert read_manifest(write(folder / "o.json", {"clips": rows})) == want
    text = "path,lips_minus_sound_ms,label\none.mp4,-40,\ntwo.mp4,,the other one\n"
    assert read_manifest(write(folder / "l.csv", text)) == want
    films = tmp_path / "films"
    films.mkdir()
    for name in ("one.mp4", "two.mp4"):
        (films / name).symlink_to(folder / name)
    write(films / "notes.txt", "not a film")
    assert [clip.label for clip in read_manifest(films)] == ["one", "two"]
    with pytest.raises(InputError, match="no clip is in it"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        read_manifest(tmp_path / "gone")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["gone", "-o", "r"], "gone"),
        ([".", "-o", "r"], "silent.mp4"),
        (["one.json", "-o", "r", "--dubs", "gone"], "gone"),
        (["one.json", "-o", "r", "--dubs", "."], "one__one.mp4"),
        (["one.json", "-o", "r", "--against", "one.json"], "means"),
        (["one.json", "-o", "one.mp4"], "one.mp4"),
        (["one.json", "-o", "r", "--engine", "nope"], "nope"),
        (["one.json", "-o", "r"], "face"),
    ],
)
def test_the_command_refuses_in_one_line(folder: Path, arguments: list[str], named: str) -> None:
    write(folder / "one.json", ["one.mp4"])
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", "eval", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert named in done.stderr
    assert not (folder / "r" / "report.json").exists()


def speaker(name: str, apertures: F64, seed: int = 0) -> Subject:
    tracked = Tracked(faces(apertures), np.arange(len(apertures)) / FPS)
    lips = tracked.lips()
    return Subject(Clip(Path(name), name), tracked, lips, lips, sound(apertures, seed))


TRUE, OTHER = opening(10.0, 1), opening(10.0, 2)
BAD_DUBS: dict[str, tuple[Callable[[], tuple[F64, float]], str, Callable[[float], bool]]] = {
    "frozen": (lambda: (np.full(len(TRUE), 0.05), 0.0), "r", lambda r: r < 0.2),
    "late": (lambda: (TRUE, 0.12), "lag_ms", lambda lag: lag == pytest.approx(120, abs=21)),
    "passed through": (lambda: (OTHER, 0.0), "leak", lambda leak: leak > 0.9),
    "muted": (lambda: (0.3 * TRUE, 0.0), "amplitude", lambda ratio: ratio < 0.4),
    "never shut": (lambda: (0.05 + 0.7 * TRUE, 0.0), "closure_recall", lambda share: share < 0.3),
    "always shut": (lambda: (0.0 * TRUE, 0.0), "false_closure", lambda share: share > 0.9),
}


@pytest.mark.parametrize(("make", "measure", "bad"), BAD_DUBS.values(), ids=BAD_DUBS.keys())
def test_each_bad_dub_is_told_from_a_good_one(
    make: Callable[[], tuple[F64, float]], measure: str, bad: Callable[[float], bool]
) -> None:
    source, voice, meter = speaker("a", OTHER, 2), speaker("b", TRUE, 1), SyncMeter.load()
    apertures, late_s = make()
    dubbed, _ = score_lips(speaker("dub", apertures).lips.shifted(late_s), source, voice, meter)
    good, tracks = score_lips(speaker("dub", 0.9 * TRUE).lips, source, voice, meter)
    assert bad(getattr(dubbed, measure))
    assert not bad(getattr(good, measure))
    assert good.landmarks < dubbed.landmarks
    assert len(tracks.at) == len(tracks.dub) == len(tracks.own) == len(tracks.distance)


def test_a_short_source_is_compared_with_its_own_reflection() -> None:
    short, voice = speaker("a", OTHER[:60], 2), speaker("b", TRUE, 1)
    back_and_forth = np.concatenate([OTHER[:60], OTHER[:60][-2::-1], OTHER[1:60], OTHER[:60][-2::-1]])
    through = speaker("dub", back_and_forth[: len(TRUE)])
    score, _ = score_lips(through.lips, short, voice, SyncMeter.load())
    assert score.leak > 0.98


def test_what_is_no_number_becomes_null_and_is_left_out_of_means() -> None:
    assert plain({"a": float("nan"), "b": (1.23456, 2), "c": "x"}) == {"a": None, "b": [1.2346, 2], "c": "x"}
    pair = {"loudness_mouth": None, "drawn": None, "written": None, "time": None}
    rows = [
        {"source": "a", "voice": "b", "lips": {"r": 0.5, "leak": float("nan")}, **pair},
        {"source": "b", "voice": "a", "lips": {"r": 0.7, "leak": 0.1}, **pair},
    ]
    held = means({"pairs": rows, "self_reconstruction": {}})
    assert held["cross"]["lips"] == pytest.approx({"r": 0.6, "leak": 0.1})
    assert held["own"]["lips"] == {}


def test_a_plot_breaks_where_nothing_is_known() -> None:
    x = np.arange(10) / 10
    y = np.array([0, 1, np.nan, 1, 0, 0, 1, 1, 0, 0.5])
    drawn = plot(x, {"dub": y}, 0.0, 1.0)
    curve = re.search(r'd="([^"]*)" fill="none"', drawn)
    assert curve is not None
    assert curve[1].count("M") == 2
    assert "nan" not in drawn
    assert plot(x[:1], {"dub": y[:1]}, 0, 1) == ""


def cut_short(source: Path, out: Path, seconds: float) -> Path:
    """The first seconds of a clip, as a file of its own."""
    rate = 16_000
    with av.open(str(out), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "14", "preset": "ultrafast"})
        assert isinstance(video, VideoStream)
        audio = container.add_stream("aac", rate=rate)
        for index, (_, picture) in enumerate(islice(pictures(source), round(25 * seconds))):
            frame = av.VideoFrame.from_ndarray(picture.planes, format="yuv420p")
            if not index:
                video.width, video.height, video.pix_fmt = frame.width, frame.height, "yuv420p"
            frame.pts = index
            container.mux(video.encode(frame))
        heard = read_sound(source)[: round(rate * seconds)]
        for start in range(0, len(heard), 1024):
            piece = av.AudioFrame.from_ndarray(heard[None, start : start + 1024], "fltp", "mono")
            piece.sample_rate, piece.pts = rate, start
            container.mux(audio.encode(piece))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return out


@pytest.mark.slow
def test_a_real_clip_comes_out_measured(clips: Path, tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    cut_short(clips / "open" / "o1_man_glasses_512.mp4", films / "man.mp4", 2.4)
    steps: list[int] = []
    report = evaluate(
        films, tmp_path / "report", Options(keep=True), lambda done, total: steps.append(total or 0)
    )
    assert steps == [3, 3, 3]
    pair = report["pairs"][0]
    assert pair["lips"]["r"] > 0.4
    assert pair["lips"]["leak"] is None
    assert pair["loudness_mouth"]["r"] < pair["lips"]["r"]
    assert pair["drawn"]["outside_samples"] == 0
    assert pair["drawn"]["eyes"] == 0
    assert 20 < pair["drawn"]["psnr"] < 40
    assert 0.7 < pair["drawn"]["sharpness"] < 1.3
    assert pair["written"]["outside_psnr"] > 38
    assert pair["time"]["ms_per_frame"] > 0
    rebuilt = report["self_reconstruction"]["man"]
    assert rebuilt["frames"] > 10
    assert rebuilt["psnr"] > rebuilt["undone_psnr"]
    out = tmp_path / "report"
    assert sorted(path.name for path in out.iterdir()) == ["dubs", "report.html", "report.json"]
    assert [path.name for path in (out / "dubs").iterdir()] == ["man__man.mp4"]
    assert json.loads((out / "report.json").read_text()) == report

    page = (out / "report.html").read_text()
    assert page.count("<svg") == 2
    assert page.count("data:image/jpeg;base64,") == 2
    assert re.search(r'(?:src|href)="(?!data:)|url\(|@import|<script', page) is None

    again = evaluate(films, tmp_path / "again", Options(dubs=out / "dubs", against=out / "report.json"), None)
    assert again["pairs"][0]["lips"] == pair["lips"]
    assert again["pairs"][0]["drawn"] is None
    assert again["self_reconstruction"]["man"] is None
    assert "earlier" in (tmp_path / "again" / "report.html").read_text()


@pytest.mark.parametrize("late_s", [0.0, 0.25])
def test_sound_that_begins_later_than_the_picture_is_known_to(tmp_path: Path, late_s: float) -> None:
    path = with_sound(tmp_path / "late.mkv", 3.0, late_s)
    assert sound_after_picture(path) == pytest.approx(late_s, abs=0.07)


def test_sound_is_read_from_its_first_sample(tmp_path: Path) -> None:
    tone = (8000 * np.sin(np.arange(22_050) / 20)).astype(np.int16)
    write_sound(tmp_path / "tone.wav", tone, 44_100)
    heard = read_sound(tmp_path / "tone.wav")
    assert len(heard) == pytest.approx(8000, abs=60)
    assert 0.05 < np.abs(heard).max() <= 1
