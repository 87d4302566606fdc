from __future__ import annotations

import errno
import json
import signal
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from retalk_models.engine import EngineWindow
from stream.errors import InputError
from stream.files import FilmOf
from stream.frames import picture_of
from stream.offline import dub
from tests.stream.fakes import BOX, FakeEngine
from tests.stream.harness import tone
from tests.stream.media_files import counted, number_of, read_sound, read_video, write_sound, write_video

VFR = [0, 512, 1100, 1500, 2900, 3000, 4096, 5555, 6000, 9000]


def make(folder: Path, milliseconds: int = 400, **video: object) -> tuple[Path, Path, Path]:
    write_video(folder / "in.mp4", **video)  # type: ignore[arg-type]
    write_sound(folder / "in.wav", tone(milliseconds))
    return folder / "in.mp4", folder / "in.wav", folder / "out.mp4"


def test_frames_keep_their_number_times_and_size(tmp_path: Path) -> None:
    video, audio, out = make(tmp_path, pts=VFR)
    report = dub(video, audio, out, engine=FakeEngine(), mark=False)
    before, after = read_video(video), read_video(out)
    assert after[0] == before[0]
    assert [number_of(picture_of(f).y) for f in after[1]] == list(range(10))
    assert report["frames"] == report["dubbed"] == 10
    assert report["late"] == report["faults"] == 0


@pytest.mark.parametrize("realtime", [False, True])
def test_the_engine_may_look_at_the_film_beforehand(tmp_path: Path, realtime: bool) -> None:
    video, audio, out = make(tmp_path)
    engine = FakeEngine()
    dub(video, audio, out, engine=engine, realtime=realtime)
    (asked,) = engine.options
    assert asked.film is not None
    assert asked.film == FilmOf.file(video)
    assert asked.patient is not realtime


@pytest.mark.parametrize(
    "time_base", [Fraction(1, 25), Fraction(1, 30_000), Fraction(1, 90_000), Fraction(1, 1_000_000)]
)
def test_any_time_base_is_kept_exactly(tmp_path: Path, time_base: Fraction) -> None:
    step = max(1, round(Fraction(1, 25) / time_base))
    pts = [k * step + (k % 3 if step > 3 else 0) for k in range(12)]
    video, audio, out = make(tmp_path, pts=pts, time_base=time_base)
    dub(video, audio, out, engine=FakeEngine(), mark=False)
    assert read_video(out)[0] == [at * time_base for at in pts]


def test_the_mouth_moves_with_the_voice_from_sample_to_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "in.mp4", 50)
    quiet, loud = np.zeros(48_000 * 6 // 10, np.int16), tone(600, peak=30_000)
    write_sound(tmp_path / "in.wav", np.concatenate([quiet, loud, quiet]))
    dub(tmp_path / "in.mp4", tmp_path / "in.wav", tmp_path / "out.mp4", engine=FakeEngine(), mark=False)
    frames = [f.to_ndarray(format="gray").astype(int) for f in read_video(tmp_path / "out.mp4")[1]]
    middle = (BOX.top + BOX.bottom) // 2
    lift = np.array([luma[middle, 20] - luma[56, 80] for luma in frames])
    # The fake engine hears the 40 ms from a frame's own time on.
    assert (lift[15:30] > 40).all()
    assert (np.abs(lift[:14]) < 12).all()
    assert (np.abs(lift[30:]) < 12).all()


def test_a_picture_that_begins_after_its_sound_still_does_bug_it_was_drawn_to_the_beginning(
    tmp_path: Path,
) -> None:
    late = [6400 + 512 * k for k in range(20)]
    write_video(tmp_path / "in.mp4", pts=late, sound=tone(1300))
    dub(tmp_path / "in.mp4", tmp_path / "in.mp4", tmp_path / "out.mp4", engine=FakeEngine(), mark=False)
    with av.open(str(tmp_path / "out.mp4")) as film:
        picture, sound = film.streams.video[0], film.streams.audio[0]
        assert picture.frames == 20
        starts = [float((one.start_time or 0) * (one.time_base or 1)) for one in (picture, sound)]
    # AAC begins with 21 ms of its own that players skip.
    assert starts[0] - starts[1] == pytest.approx(0.5, abs=0.03)


def test_the_sound_is_the_audio_and_then_silence(tmp_path: Path) -> None:
    video, audio, out = make(tmp_path, 300, count=20)
    report = dub(video, audio, out, engine=FakeEngine())
    sound, said = read_sound(out).astype(float), tone(300).astype(float)
    assert abs(sound.size - 48_000 * 0.8) <= 1024
    assert report["seconds"] == 0.8
    lag = int(np.argmax(np.correlate(sound[:20_000], said[:4800], "valid")))
    assert lag <= 240, "the sound does not begin where AUDIO does"
    assert np.corrcoef(sound[1000:12_000], said[1000:12_000])[0, 1] > 0.98
    assert np.abs(sound[16_000:]).max() < 200


def test_longer_sound_holds_the_film_by_going_back_and_forth(tmp_path: Path) -> None:
    video, audio, out = make(tmp_path, 2000, count=20)
    report = dub(video, audio, out, engine=FakeEngine(), mark=False)
    times, frames = read_video(out)
    assert len(frames) == report["frames"] == 50
    assert times == [Fraction(k, 25) for k in range(50)]
    numbers = [number_of(picture_of(f).y) for f in frames]
    assert numbers == [*range(20), *range(18, -1, -1), *range(1, 12)]
    assert abs(read_sound(out).size - 96_000) <= 1024


def test_sound_a_little_longer_than_the_film_adds_no_frame(tmp_path: Path) -> None:
    video, audio, out = make(tmp_path, 815, count=20)
    assert dub(video, audio, out, engine=FakeEngine())["frames"] == 20
    assert read_sound(out).size >= 48 * 815


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_sound_of_any_rate_lasts_as_long(tmp_path: Path, rate: int) -> None:
    write_video(tmp_path / "in.mp4", 5)
    write_sound(tmp_path / "in.wav", np.repeat(tone(1000)[: rate * 2], 1)[: rate * 2], rate, 2)
    report = dub(tmp_path / "in.mp4", tmp_path / "in.wav", tmp_path / "out.mp4", engine=FakeEngine())
    assert abs(report["seconds"] - min(1.0, 48_000 / 2 / rate)) < 0.045


@pytest.mark.parametrize("rate", [48_000, 22_050])
def test_stereo_sound_stays_stereo(tmp_path: Path, rate: int) -> None:
    write_video(tmp_path / "in.mp4", 25)
    left, right = tone(500, peak=20_000), np.zeros(24_000, np.int16)
    both = np.stack([np.concatenate([left, right]), np.concatenate([right, left])], 1)
    write_sound(tmp_path / "in.wav", both, rate, channels=2)
    dub(tmp_path / "in.mp4", tmp_path / "in.wav", tmp_path / "out.mp4", engine=FakeEngine())
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.audio[0]
        assert stream.layout.name == "stereo"
        parts = [frame.to_ndarray() for frame in container.decode(stream)]
    heard = np.concatenate(parts, 1)
    level = np.abs(heard).max(1)
    assert level.min() > 0.3
    edge = round(24_000 * 48_000 / rate)
    early, late = heard[:, 2048 : edge - 4096], heard[:, edge + 4096 : 47_000]
    assert np.abs(early[0]).max() > 0.3 > 0.05 > np.abs(early[1]).max()
    if late.size:
        assert np.abs(late[1]).max() > 0.3 > 0.05 > np.abs(late[0]).max()


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_turned_film_stays_turned_and_is_dubbed_upright(tmp_path: Path, turn: int) -> None:
    video, audio, out = make(tmp_path, count=5, rotation=turn)
    engine = FakeEngine()
    dub(video, audio, out, engine=engine, mark=False)
    before, after = read_video(video)[1][0], read_video(out)[1][0]
    assert after.rotation == before.rotation != 0
    assert (after.width, after.height) == (before.width, before.height) == (96, 64)
    upright = engine.windows[0].frames[0].picture
    assert (upright.width, upright.height) == ((96, 64) if turn == 180 else (64, 96))


def test_odd_sizes_and_colour_tags_stay(tmp_path: Path) -> None:
    video, audio, out = make(tmp_path, count=5, size=(97, 65), pix_fmt="yuv444p")
    dub(video, audio, out, engine=FakeEngine())
    frame = read_video(out)[1][0]
    assert (frame.width, frame.height) == (97, 65)
    tagged = tmp_path / "tagged.mp4"
    write_video(tagged, 5, colour=(1, 1, 1, 1))
    dub(tagged, audio, out, engine=FakeEngine())
    frame = read_video(out)[1][0]
    assert (frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range) == (1, 1, 1, 1)


def test_full_range_pictures_keep_their_values(tmp_path: Path) -> None:
    video, audio, out = make(tmp_path, count=5, pix_fmt="yuvj420p")
    dub(video, audio, out, engine=FakeEngine(), mark=False)
    before, after = (read_video(path)[1][0] for path in (video, out))
    assert after.color_range == 2
    y = [np.frombuffer(memoryview(f.planes[0]), np.uint8)[:96] for f in (before, after)]
    assert np.abs(y[0].astype(int) - y[1]).max() <= 3


def test_a_still_image_speaks_for_as_long_as_the_sound(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), counted(3, 96, 64))
    write_sound(tmp_path / "in.wav", tone(1000))
    report = dub(tmp_path / "a.png", tmp_path / "in.wav", tmp_path / "out.mp4", engine=FakeEngine())
    assert report["frames"] == 25
    assert read_video(tmp_path / "out.mp4")[0] == [Fraction(k, 25) for k in range(25)]


def test_the_file_says_that_it_is_synthetic(tmp_path: Path) -> None:
    video, audio, out = make(tmp_path, count=5)
    dub(video, audio, out, engine=FakeEngine())
    with av.open(str(out)) as container:
        assert "AI dubbed by retalk" in container.metadata["comment"]


def test_the_report_is_complete_and_written(tmp_path: Path) -> None:
    video, audio, out = make(tmp_path, count=10)
    seen: list[tuple[int, int | None]] = []
    report = dub(
        video,
        audio,
        out,
        engine=FakeEngine(),
        progress=lambda done, total: seen.append((done, total)),
        report=tmp_path / "report.json",
    )
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert seen == [(k, 10) for k in range(1, 11)]
    assert report["engine"] == "fake"
    assert report["weights"] == {"none.safetensors": "0" * 64}
    assert report["rungs"] == {"full": 10}
    assert report["faces"] == {"tracked": 10}
    assert set(report["stage_ms"]["fake"]) == {"p50", "p95", "p99", "max"}


def test_the_same_input_gives_the_same_file(tmp_path: Path) -> None:
    video, audio, out = make(tmp_path, 900, count=20)
    dub(video, audio, out, engine=FakeEngine())
    first = out.read_bytes()
    dub(video, audio, out, engine=FakeEngine())
    assert out.read_bytes() == first


def test_an_engine_that_fails_leaves_the_source_in_the_film(tmp_path: Path) -> None:
    def before(window: EngineWindow) -> None:
        raise RuntimeError("broken")

    video, audio, out = make(tmp_path, count=20)
    report = dub(video, audio, out, engine=FakeEngine(before))
    assert len(read_video(out)[1]) == 20
    assert report["dubbed"] == 0
    assert report["faults"] >= 1
    assert report["last_fault"] == "RuntimeError: broken"


def test_what_the_engine_left_as_it_was_is_not_called_dubbed(tmp_path: Path) -> None:
    video, audio, out = make(tmp_path, count=20)
    report = dub(video, audio, out, engine=FakeEngine(faceless=True))
    assert (report["frames"], report["dubbed"], report["late"]) == (20, 0, 0)
    assert report["faces"] == {"none": 20}
    assert report["rungs"] == {"full": 20}


def test_real_time_begins_when_the_engine_is_open(tmp_path: Path) -> None:
    video, audio, out = make(tmp_path, 1000, count=25)
    report = dub(
        video, audio, out, engine=FakeEngine(opening=lambda: time.sleep(0.8)), realtime=True, mark=False
    )
    # Loading takes 0.8 of this film's second; frames that were fed meanwhile could not be dubbed.
    assert report["dubbed"] > 20
    assert report["faults"] == 0


def test_an_engine_that_cannot_be_opened_in_real_time_is_a_fault(tmp_path: Path) -> None:
    def opening() -> None:
        raise RuntimeError("no memory")

    video, audio, out = make(tmp_path)
    report = dub(video, audio, out, engine=FakeEngine(opening=opening), realtime=True)
    assert report["dubbed"] == 0
    assert report["last_fault"] == "RuntimeError: no memory"


def test_interrupted_work_leaves_nothing_behind(tmp_path: Path) -> None:
    # A shell starts what it sends to the background with the signal ignored, and Python leaves that be.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _interrupt(tmp_path)
    finally:
        signal.signal(signal.SIGINT, inherited)


def _interrupt(tmp_path: Path) -> None:
    def progress(done: int, total: int | None) -> None:
        if done == 8:
            signal.raise_signal(signal.SIGINT)

    video, audio, out = make(tmp_path, count=20)
    before = set(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        dub(video, audio, out, engine=FakeEngine(), progress=progress)
    assert set(tmp_path.iterdir()) == before
    assert not [thread for thread in threading.enumerate() if thread.name == "retalk-write"]


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    video, audio, out = make(tmp_path, count=20)

    def progress(done: int, total: int | None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match=r"out.mp4: it cannot be written \(No space left on device\); free"):
        dub(video, audio, out, engine=FakeEngine(), progress=progress)
    assert not out.exists()


def test_what_was_there_before_stays_until_the_new_film_is_complete(tmp_path: Path) -> None:
    video, audio, out = make(tmp_path, count=20)
    out.write_bytes(b"the old film")

    def progress(done: int, total: int | None) -> None:
        raise ValueError("a fault of ours")

    with pytest.raises(ValueError, match="a fault of ours"):
        dub(video, audio, out, engine=FakeEngine(), progress=progress)
    assert out.read_bytes() == b"the old film"


def test_a_senseless_target_is_refused_before_any_work(tmp_path: Path) -> None:
    video, audio, _ = make(tmp_path, count=3)
    for target, wrong in {
        tmp_path / "out.avi": "ends in .mp4",
        tmp_path / "no" / "out.mp4": "folder does not exist",
        video: "replace an input",
    }.items():
        with pytest.raises(InputError, match=wrong):
            dub(video, audio, target, engine=FakeEngine())
    assert len(read_video(video)[1]) == 3


@pytest.mark.parametrize("name", ["in.mp4", "in.wav", "out.mp4", "./out.mp4", "link.json", "hard.json"])
def test_a_report_never_overwrites_an_input_or_the_film(tmp_path: Path, name: str) -> None:
    video, audio, out = make(tmp_path)
    (tmp_path / "link.json").symlink_to(out)
    (tmp_path / "hard.json").hardlink_to(video)
    before = video.read_bytes(), audio.read_bytes()
    with pytest.raises(InputError, match="the report would replace"):
        dub(video, audio, out, engine=FakeEngine(), report=f"{tmp_path}/{name}")
    assert (video.read_bytes(), audio.read_bytes()) == before
    assert not out.exists()


@pytest.mark.parametrize("report", ["/dev/full", "n" * 300])
def test_a_report_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path, report: str) -> None:
    video, audio, out = make(tmp_path)
    with pytest.raises(InputError, match="it cannot be written"):
        dub(video, audio, out, engine=FakeEngine(), report=tmp_path / report)
    assert not out.exists()


def test_a_very_long_name_is_a_name_and_a_longer_one_is_refused(tmp_path: Path) -> None:
    video, audio, _ = make(tmp_path)
    dub(video, audio, tmp_path / ("n" * 250 + ".mp4"), engine=FakeEngine())
    assert (tmp_path / ("n" * 250 + ".mp4")).is_file()
    with pytest.raises(InputError, match="name too long"):
        dub(video, audio, tmp_path / ("n" * 252 + ".mp4"), engine=FakeEngine())


def test_real_time_takes_real_time_and_gives_the_same_frames(tmp_path: Path) -> None:
    video, audio, out = make(tmp_path, 600, count=25)
    report = dub(video, audio, out, engine=FakeEngine(), realtime=True, mark=False)
    assert report["wall_seconds"] >= 1.0
    assert read_video(out)[0] == read_video(video)[0]


def test_a_real_clip_of_uneven_pace_keeps_every_time(clips: Path, tmp_path: Path) -> None:
    voice = tmp_path / "voice.wav"
    write_sound(voice, tone(500))
    clip = clips / "open" / "o2_woman_blue_700_vfr22.mp4"
    dub(clip, voice, tmp_path / "out.mp4", engine=FakeEngine())
    assert read_video(tmp_path / "out.mp4")[0] == read_video(clip)[0]
