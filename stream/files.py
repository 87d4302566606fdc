"""Media files as sources and voices: opened with care, read in bounded memory, held by ping-pong looping."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from numpy.typing import NDArray

from retalk_models.picture import Picture
from stream.errors import InputError
from stream.frames import picture_of
from stream.voice import VoiceFormat

STILL_STEP = Fraction(1, 25)
"""Seconds between frames of a still image."""

_VIDEO_RIGHT = "give a video file (MP4, MOV, MKV, WebM) or a still image (PNG, JPEG)"
_AUDIO_RIGHT = "give a sound file (WAV, FLAC, MP3, M4A) or a video with sound"
_BACKWARD_FRAMES = 32
_LONGEST_LEAD_S = 60
"""A picture that begins later after the sound than this has a broken time stamp."""

_UNSPECIFIED, _BT709, _BT601, _LIMITED, _FULL = 2, 1, 6, 1, 2


@dataclass(frozen=True, slots=True)
class ColourTags:
    """ISO/IEC 23091-2 numbers as the container carries them."""

    primaries: int
    transfer: int
    matrix: int
    range: int


@dataclass(frozen=True, slots=True, eq=False)
class FileFrame:
    """A picture, upright as shown, and its time in `time_base` units since the first frame."""

    picture: Picture
    pts: int


@dataclass(frozen=True, slots=True)
class FilmOf:
    """A video file as a film that an engine may look at beforehand, see retalk_models.engine.Film.

    changed_ns, size: of the file; another file in its place is another film.
    """

    path: Path
    bt601: bool
    changed_ns: int
    size: int

    @classmethod
    def file(cls, path: Path, *, bt601: bool = False) -> FilmOf | None:
        """None where there is no such file: who shows it says what is wrong with it."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(path.absolute(), bt601, found.st_mtime_ns, found.st_size)

    def pictures(self) -> Iterator[tuple[Picture, int]]:
        """Its pictures, forward, and their times in microseconds; none where it cannot be read."""
        try:
            with VideoFile(self.path, bt601=self.bt601) as video:
                for frame in video.once():
                    yield frame.picture, video.time_us(frame.pts)
        except InputError:
            return


class VideoFile:
    """A video file or still image whose frames are read forward once and then, if asked, back and forth.

    width, height: as shown, that is after `rotation` (degrees counter-clockwise that turn the stored picture
    upright). bt601: convert to BT.601 limited range, for output that cannot carry the file's own tags.
    Raises InputError where the file cannot be used.
    """

    def __init__(self, path: Path, *, bt601: bool = False) -> None:
        self.path = path
        self._container = open_media(path, "video", _VIDEO_RIGHT)
        self._stream = self._picture_track()
        self._bt601 = bt601
        self._pts: list[int] = []
        self._origin = 0
        self._newest: Picture | None = None
        first = self._first_frame()
        self.rotation = round(first.rotation / 90) * 90 % 360
        upright = self.rotation % 180 == 0
        self.width = first.width if upright else first.height
        self.height = first.height if upright else first.width
        self.still = _is_still(self._container)
        self.time_base = STILL_STEP if self.still else self._stream.time_base or Fraction(1, 90_000)
        self.sample_aspect_ratio = self._stream.sample_aspect_ratio
        self.colour = self._tags(first)
        self._rate = STILL_STEP**-1 if self.still else self._stream.average_rate or STILL_STEP**-1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    @property
    def rate(self) -> Fraction:
        """Frames per second, on average."""
        return self._rate

    @property
    def step(self) -> int:
        """The usual time between frames in `time_base` units, at least 1."""
        if len(self._pts) > 1:
            return max(1, int(np.median(np.diff(self._pts))))
        return max(1, round(1 / self._rate / self.time_base))

    def expected_frames(self) -> int | None:
        """How many frames the container says there are, where it says so."""
        if self.still:
            return 1
        if self._stream.frames:
            return int(self._stream.frames)
        if self._stream.duration and self._stream.time_base:
            return round(self._stream.duration * self._stream.time_base * self._rate)
        return None

    @property
    def lead(self) -> int:
        """How long after the file's own beginning its first frame is shown, in `time_base` units.

        The beginning is that of whichever track begins first. Known once `once` has given a frame.
        """
        begins_us = self._container.start_time
        if self.still or begins_us is None or not self._pts:
            return 0
        lead = self._origin - Fraction(begins_us, av.time_base) / self.time_base
        return round(lead) if 0 < lead * self.time_base <= _LONGEST_LEAD_S else 0

    def time_us(self, pts: int) -> int:
        """Microseconds since the first frame of a time in `time_base` units, rounded down."""
        return int(pts * self.time_base * 1_000_000)

    def once(self) -> Iterator[FileFrame]:
        """Every frame, forward. Times strictly increase, and are the file's own wherever those do."""
        self._pts = []
        for frame in self._decoded(None):
            stamp = _stamp(frame)
            if stamp is None:
                stamp = self._origin + len(self._pts) * self.step
            if not self._pts:
                self._origin = stamp
            pts = stamp - self._origin
            if self._pts and pts <= self._pts[-1]:
                pts = self._pts[-1] + 1
            self._pts.append(pts)
            self._newest = self._picture(frame)
            yield FileFrame(self._newest, pts)
            if self.still:
                return

    def ping_pong(self) -> Iterator[FileFrame]:
        """Every frame forward, then back, then forward, without end."""
        yield from self.once()
        yield from self.held()

    def held(self) -> Iterator[FileFrame]:
        """What follows a complete `once`: back, then forward, without end; the ends are not shown twice."""
        span = turn = self._pts[-1]
        if len(self._pts) == 1:
            while self._newest is not None:
                turn += self.step
                yield FileFrame(self._newest, turn)
        while True:
            came = False
            for index, picture in self._backward():
                came = True
                yield FileFrame(picture, turn + span - self._pts[index])
            turn += span
            if not came and self._newest is not None:
                # It cannot be wound back; its last picture is better than none.
                yield FileFrame(self._newest, turn)
            for index, frame in enumerate(self._decoded(0)):
                if 0 < index < len(self._pts):
                    yield FileFrame(self._picture(frame), turn + self._pts[index])
            turn += span

    def _backward(self) -> Iterator[tuple[int, Picture]]:
        """Frames from the last but one to the first, by index; holds a few dozen pictures at a time."""
        stop = len(self._pts) - 1
        while stop > 0:
            start = max(0, stop - _BACKWARD_FRAMES)
            held: dict[int, Picture] = {}
            index_of = {pts: index for index, pts in enumerate(self._pts)}
            for frame in self._decoded(self._pts[start]):
                index = index_of.get((_stamp(frame) or 0) - self._origin, -1)
                if start <= index < stop:
                    held[index] = self._picture(frame)
                if index >= stop - 1:
                    break
            # A frame that a seek did not bring back (broken time stamps) is held from its neighbour.
            spare = next(iter(held.values()), None)
            for index in range(stop - 1, start - 1, -1):
                spare = held.get(index, spare)
                if spare is not None:
                    yield index, spare
            stop = start

    def _decoded(self, from_pts: int | None) -> Iterator[av.VideoFrame]:
        """Frames from the key frame at or before a time on; what cannot be decoded is left out."""
        if from_pts is not None:
            self._container.seek(self._origin + from_pts, stream=self._stream, backward=True, any_frame=False)
        try:
            for packet in self._container.demux(self._stream):
                try:
                    yield from packet.decode()
                except av.error.InvalidDataError:
                    continue
        except av.error.FFmpegError:
            return  # the rest is missing; what came before it is the film

    def _picture(self, frame: av.VideoFrame) -> Picture:
        if self.still and frame.format.name not in ("yuv420p",):
            rgb = np.rot90(frame.to_ndarray(format="rgb24"), self.rotation // 90)
            return Picture.from_rgb(np.ascontiguousarray(rgb, dtype=np.uint8))
        if self._bt601 and (self.colour.matrix == _BT709 or self.colour.range == _FULL):
            frame = frame.reformat(
                format="yuv420p",
                src_colorspace=Colorspace.ITU709 if self.colour.matrix == _BT709 else Colorspace.ITU601,
                dst_colorspace=Colorspace.ITU601,
                src_color_range=ColorRange.JPEG if self.colour.range == _FULL else ColorRange.MPEG,
                dst_color_range=ColorRange.MPEG,
            )
        return picture_of(frame, self.rotation)

    def _picture_track(self) -> VideoStream:
        for stream in self._container.streams.video:
            # A sound file's cover is a picture, but none that speaks.
            if stream.codec_context is not None and not stream.disposition & Disposition.attached_pic:
                return stream
        self._container.close()
        raise InputError(self.path, "it has no picture track", _VIDEO_RIGHT)

    def _first_frame(self) -> av.VideoFrame:
        try:
            first = next(iter(self._container.decode(self._stream)), None)
            if first is not None:
                # From the very beginning again; not everything that can be opened can be wound back.
                self._container.close()
                self._container = open_media(self.path, "video", _VIDEO_RIGHT)
                self._stream = self._picture_track()
        except av.error.FFmpegError as error:
            self._container.close()
            raise InputError(
                self.path, f"its picture cannot be decoded ({error.strerror})", _VIDEO_RIGHT
            ) from None
        if first is None:
            self._container.close()
            raise InputError(self.path, "its picture track holds no frame", _VIDEO_RIGHT)
        return first

    def _tags(self, frame: av.VideoFrame) -> ColourTags:
        if self.still or self._bt601 or frame.format.is_rgb:
            return ColourTags(_UNSPECIFIED, _UNSPECIFIED, _BT601, _LIMITED)
        full = frame.format.name.startswith("yuvj") or frame.color_range == _FULL
        return ColourTags(
            frame.color_primaries, frame.color_trc, frame.colorspace, _FULL if full else frame.color_range
        )


class AudioFile:
    """The sound of a file, decoded piece by piece. Raises InputError where there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._container = open_media(path, "sound", _AUDIO_RIGHT)
        if not self._container.streams.audio:
            self._container.close()
            raise InputError(path, "it has no sound track", _AUDIO_RIGHT)
        self._stream = self._container.streams.audio[0]
        try:
            first = next(iter(self._container.decode(self._stream)), None)
        except av.error.FFmpegError as error:
            self._container.close()
            raise InputError(path, f"its sound cannot be decoded ({error.strerror})", _AUDIO_RIGHT) from None
        if first is None or first.samples == 0:
            self._container.close()
            raise InputError(path, "its sound is empty (zero length)", "give a sound file that lasts")
        self._container.close()
        self._container = open_media(path, "sound", _AUDIO_RIGHT)
        self._stream = self._container.streams.audio[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def expected_us(self) -> int | None:
        """How long the container says the sound lasts, where it says so."""
        if self._stream.duration and self._stream.time_base:
            return int(self._stream.duration * self._stream.time_base * 1_000_000)
        return int(self._container.duration) if self._container.duration else None

    @property
    def channels(self) -> int:
        """How many channels the file has."""
        return int(self._stream.channels)

    def pieces(self) -> Generator[tuple[NDArray[Any], VoiceFormat], None, None]:
        """Samples as VoiceTrack.push takes them, in the file's rate; more than two channels become one."""
        mixer = av.AudioResampler(format="flt", layout="stereo" if self._stream.channels == 2 else "mono")
        for frame in self.decoded():
            for mixed in mixer.resample(frame):
                yield mixed.to_ndarray().reshape(-1), _format_of(mixed)

    def decoded(self) -> Generator[av.AudioFrame, None, None]:
        """The sound as it is stored."""
        try:
            yield from self._container.decode(self._stream)
        except av.error.FFmpegError:
            return  # a broken tail: what came before it is the sound


def open_media(path: Path, what: str, right: str) -> InputContainer:
    """Open a file for reading, or say what is wrong with it."""
    if not path.exists():
        raise InputError(path, "no such file", right)
    if not path.is_file():
        raise InputError(path, "it is not a file", right)
    if path.stat().st_size == 0:
        raise InputError(path, "the file is empty", right)
    try:
        container = av.open(str(path))
    except PermissionError:
        raise InputError(path, "it may not be read", "check its permissions") from None
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(path, f"it is no {what} that can be read ({reason})", right) from None
    if container.format.name == "tty":
        container.close()
        raise InputError(path, "it is a text file", right)
    return container


def _format_of(frame: av.AudioFrame) -> VoiceFormat:
    return VoiceFormat(frame.sample_rate, frame.layout.nb_channels, "flt")


def _stamp(frame: av.VideoFrame) -> int | None:
    return frame.dts if frame.pts is None else frame.pts


def _is_still(container: InputContainer) -> bool:
    return container.format.name == "image2" or container.format.name.endswith("_pipe")
