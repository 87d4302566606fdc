from __future__ import annotations

import asyncio
import pickle
from itertools import islice, pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from retalk_models.picture import Picture
from stream.clock import VirtualClock
from stream.errors import InputError
from stream.files import AudioFile, FilmOf, VideoFile
from stream.frames import frame_of, full_frame_of, picture_of, rotated
from stream.presenter import present
from stream.source import SourceBuffer
from tests.stream.harness import tone
from tests.stream.media_files import counted, number_of, write_sound, write_video


@pytest.mark.parametrize("size", [(64, 48), (66, 50), (61, 47), (61, 48)])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_a_picture_survives_a_turn_and_back_exactly(size: tuple[int, int], turn: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    picture = Picture.from_rgb(rgb)
    back = rotated(rotated(picture, turn), -turn)
    assert (back.width, back.height) == size
    np.testing.assert_array_equal(
        back.y[: back.height, : back.width], picture.y[: picture.height, : picture.width]
    )
    np.testing.assert_array_equal(back.u, picture.u)
    np.testing.assert_array_equal(back.v, picture.v)


def test_frames_keep_every_sample() -> None:
    picture = Picture.from_rgb(np.random.default_rng(1).integers(0, 255, (50, 66, 3), dtype=np.uint8))
    np.testing.assert_array_equal(picture_of(frame_of(picture)).planes, picture.planes)
    tall = Picture.from_rgb(np.random.default_rng(1).integers(0, 255, (52, 66, 3), dtype=np.uint8))
    np.testing.assert_array_equal(picture_of(frame_of(tall)).planes, tall.planes)
    odd = Picture.from_rgb(np.random.default_rng(1).integers(0, 255, (51, 67, 3), dtype=np.uint8))
    assert (frame_of(odd).width, frame_of(odd).height) == (66, 50)
    full = full_frame_of(odd)
    assert (full.width, full.height, full.format.name) == (67, 51, "yuv444p")
    np.testing.assert_array_equal(full.to_ndarray()[0], odd.y[:51, :67])


def test_a_film_is_its_file_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "in.mp4"
    assert FilmOf.file(path) is None
    write_video(path, 7)
    film = FilmOf.file(path)
    assert film is not None
    assert pickle.loads(pickle.dumps(film)) == film == FilmOf.file(path)
    assert film != FilmOf.file(path, bt601=True)
    with VideoFile(path) as video:
        shown = [(frame.picture, video.time_us(frame.pts)) for frame in video.once()]
    for (picture, time_us), (own, own_us) in zip(film.pictures(), shown, strict=True):
        assert time_us == own_us
        np.testing.assert_array_equal(picture.planes, own.planes)
    write_video(path, 9)
    assert FilmOf.file(path) != film
    path.write_bytes(b"no film")
    assert list(film.pictures()) == []


@pytest.mark.parametrize("count", [1, 2, 3, 33, 70])
def test_ping_pong_goes_back_and_forth_with_mirrored_times(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(count)
    pts = [0, *np.cumsum(rng.integers(300, 900, count - 1)).tolist()] if count > 1 else [0]
    write_video(tmp_path / "a.mp4", pts=pts)
    with VideoFile(tmp_path / "a.mp4") as file:
        frames = list(islice(file.ping_pong(), 4 * count))
    numbers = [number_of(frame.picture.y) for frame in frames]
    once = [k % 40 for k in range(count)]
    turn = once + once[-2::-1]
    want = (turn + (once[1:] + once[-2::-1]) * 5)[: len(frames)] if count > 1 else [0] * len(frames)
    assert numbers == want
    times = [frame.pts for frame in frames]
    assert all(a < b for a, b in pairwise(times))
    assert times[:count] == pts
    if count > 2:
        steps = np.diff(times)
        np.testing.assert_array_equal(steps[: count - 1], steps[count - 1 : 2 * count - 2][::-1])


def test_going_back_holds_a_few_pictures_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", 200)
    with VideoFile(tmp_path / "a.mp4") as file:
        assert sum(1 for _ in file.once()) == 200
        alive, most = 0, 0
        make = file._picture

        class Counted:
            def __init__(self, frame: av.VideoFrame) -> None:
                nonlocal alive, most
                alive += 1
                most = max(most, alive)
                self.picture = make(frame)

            def __del__(self) -> None:
                nonlocal alive
                alive -= 1

        monkeypatch.setattr(file, "_picture", Counted)
        assert sum(1 for _ in islice(file.held(), 199)) == 199
    assert most <= 40


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_turned_file_is_read_upright(tmp_path: Path, turn: int) -> None:
    write_video(tmp_path / "a.mp4", 2, rotation=turn)
    with VideoFile(tmp_path / "a.mp4") as file:
        picture = next(iter(file.once())).picture
    stored = counted(0, 96, 64)[:, :, 0]
    expected = np.rot90(stored, file.rotation // 90)
    assert (file.width, file.height) == (expected.shape[1], expected.shape[0])
    bright = np.argwhere(expected > 200).mean(axis=0)
    found = np.argwhere(picture.y > 180).mean(axis=0)
    np.testing.assert_allclose(found, bright, atol=1.5)


@pytest.mark.parametrize("name", ["still.png", "still.jpg"])
def test_a_still_image_is_one_picture_for_ever(tmp_path: Path, name: str) -> None:
    cv2.imwrite(str(tmp_path / name), counted(7, 61, 47))
    with VideoFile(tmp_path / name) as file:
        assert file.still
        frames = list(islice(file.ping_pong(), 50))
    assert [frame.pts for frame in frames] == list(range(50))
    assert file.time_us(49) == 49 * 40_000
    assert {number_of(frame.picture.y) for frame in frames} == {7}
    assert (file.width, file.height) == (61, 47)


def _bad_videos(folder: Path) -> dict[str, str]:
    (folder / "text.mp4").write_text("this is no film\n" * 30)
    (folder / "text.txt").write_text("this is no film\n" * 30)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(4000))
    (folder / "empty.mp4").touch()
    write_sound(folder / "sound.wav", tone(100))
    write_video(folder / "whole.mp4")
    (folder / "cut.mp4").write_bytes((folder / "whole.mp4").read_bytes()[:700])
    return {
        "text.mp4": "no video that can be read",
        "text.txt": "text file",
        "noise.mp4": "no video that can be read",
        "empty.mp4": "the file is empty",
        "sound.wav": "no picture track",
        "cut.mp4": "no video that can be read",
        "absent.mp4": "no such file",
        ".": "not a file",
    }


def test_what_is_no_video_is_refused_in_one_clear_line(tmp_path: Path) -> None:
    for name, wrong in _bad_videos(tmp_path).items():
        with pytest.raises(InputError, match=wrong) as refusal:
            VideoFile(tmp_path / name)
        message = str(refusal.value)
        assert str(tmp_path / name) in message
        assert "\n" not in message
        assert "; give " in message


def test_what_is_no_sound_is_refused_in_one_clear_line(tmp_path: Path) -> None:
    write_sound(tmp_path / "zero.wav", np.zeros(0, np.int16))
    write_video(tmp_path / "silent.mp4")
    (tmp_path / "text.wav").write_text("la la la\n" * 50)
    for name, wrong in {
        "zero.wav": "zero length",
        "silent.mp4": "no sound track",
        "text.wav": "no sound that can be read",
        "absent.wav": "no such file",
    }.items():
        with pytest.raises(InputError, match=wrong):
            AudioFile(tmp_path / name)


async def test_the_presenter_keeps_the_sessions_time(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 6)
    clock = VirtualClock()
    source = SourceBuffer(clock, 200)
    async with asyncio.TaskGroup() as group:
        task = clock.start(group, present(tmp_path / "a.mp4", source, clock), "presenter")

        async def watch() -> None:
            await clock.sleep_until(1_000_000)
            source.end()
            await clock.sleep_until(2_000_000)

        clock.start(group, watch(), "watch")
    frames = source.take_all()
    assert task.done()
    assert [frame.time_us for frame in frames] == [40_000 * k for k in range(len(frames))]
    assert len(frames) == 25
    assert [number_of(f.picture.y) for f in frames[:12]] == [0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0, 1]


async def test_a_presenter_without_a_file_says_so(tmp_path: Path) -> None:
    clock = VirtualClock()
    with pytest.raises(InputError, match="no such file"):
        await present(tmp_path / "no.mp4", SourceBuffer(clock), clock)


def test_the_source_buffer_drops_the_oldest_and_counts() -> None:
    clock = VirtualClock()
    source = SourceBuffer(clock, 3)
    picture = Picture.from_rgb(counted(0, 16, 16))
    for k in range(5):
        assert source.push(picture, k * 1000)
    assert [frame.index for frame in source.take_all()] == [2, 3, 4]
    assert source.dropped == 2
    assert len(source) == 0
    source.end()
    assert not source.push(picture, 10_000)


def test_a_damaged_file_gives_what_is_left_of_it(tmp_path: Path) -> None:
    write_video(tmp_path / "whole.mkv", 60)
    data = bytearray((tmp_path / "whole.mkv").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 60] = np.random.default_rng(3).bytes(60)
    (tmp_path / "hurt.mkv").write_bytes(data)
    (tmp_path / "short.mkv").write_bytes(data[: len(data) * 3 // 4])
    for name in ("hurt.mkv", "short.mkv"):
        with VideoFile(tmp_path / name) as file:
            frames = list(islice(file.ping_pong(), 300))
        assert len(frames) == 300
        assert all(a.pts < b.pts for a, b in pairwise(frames))
