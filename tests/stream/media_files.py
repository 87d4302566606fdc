"""Small media files made on the spot."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

from stream.media import I16


def counted(index: int, width: int, height: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A grey RGB picture whose brightness tells its number, and a light top left corner its turn."""
    rgb = np.full((height, width, 3), 40 + 4 * (index % 40), np.uint8)
    rgb[: height // 4, : width // 4] = 250
    return rgb


def number_of(luma: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> int:
    """The number that `counted` painted, from the luma of the picture."""
    middle = luma[luma.shape[0] // 2, luma.shape[1] // 2]
    return round(((float(middle) - 16) * 255 / 219 - 40) / 4)


def write_video(
    path: Path,
    count: int = 20,
    *,
    size: tuple[int, int] = (96, 64),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    time_base: Fraction = Fraction(1, 12_800),
    pts: list[int] | None = None,
    rotation: int = 0,
    colour: tuple[int, int, int, int] | None = None,
    sound: I16 | None = None,
) -> list[int]:
    """Write `counted` pictures; the times used, in time_base units. sound: (n,) at 48 kHz, from time 0 on."""
    times = pts or [512 * k for k in range(count)]
    with av.open(str(path), "w", options=_timescale(path, time_base)) as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.time_base = time_base
        stream.codec_context.time_base = time_base
        if codec == "libx264":
            stream.codec_context.options = {"crf": "10"}
        if colour:
            context = stream.codec_context
            context.color_primaries, context.color_trc, context.colorspace, context.color_range = colour
        if rotation:
            stream.set_display_rotation(rotation)
        if sound is not None:
            track = container.add_stream("aac", rate=48_000)
            said = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
            said.sample_rate, said.pts = 48_000, 0
        for index, at in enumerate(times):
            frame = av.VideoFrame.from_ndarray(counted(index, *size), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = at, time_base
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
        if sound is not None:
            container.mux([*track.encode(said), *track.encode(None)])
    return times


def write_sound(path: Path, samples: I16, rate: int = 48_000, channels: int = 1) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def read_video(path: Path) -> tuple[list[Fraction], list[av.VideoFrame]]:
    """Times in seconds since the first frame, and the frames."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        base = stream.time_base or Fraction(1)
    stamps = [frame.pts if frame.pts is not None else 0 for frame in frames]
    return [(stamp - stamps[0]) * base for stamp in stamps], frames


def read_sound(path: Path) -> I16:
    """The sound at 48 kHz mono."""
    mixer = av.AudioResampler(format="s16", layout="mono", rate=48_000)
    parts = []
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.audio[0]):
            parts += [out.to_ndarray().reshape(-1) for out in mixer.resample(frame)]
    parts += [out.to_ndarray().reshape(-1) for out in mixer.resample(None)]
    return np.asarray(np.concatenate(parts), np.int16)


def _timescale(path: Path, time_base: Fraction) -> dict[str, str]:
    return {"video_track_timescale": str(time_base.denominator)} if path.suffix == ".mp4" else {}
