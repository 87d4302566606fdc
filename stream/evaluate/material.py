"""A clip as it is measured: lips by a tracker of its own and sound, on the time lines that a dub has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from retalk_models.engine import VOICE_RATE
from retalk_models.evaluation.lips import Lips
from retalk_models.evaluation.retrack import Retracker
from retalk_models.picture import F32, Picture
from stream.errors import InputError
from stream.evaluate.manifest import Clip
from stream.files import AudioFile, VideoFile

_LEAST_FOUND = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Tracked:
    """Landmarks of a file's frames.

    points: (n, 478, 3) pixels, NaN where no face was found. seconds: (n,) since the first frame.
    """

    points: F32
    seconds: NDArray[np.float64]

    def lips(self) -> Lips:
        return Lips.of(self.points, self.seconds)


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A clip as source and as voice.

    lips: on the time line of its picture, which a dub keeps. truth: the same lips on the time line of its own
    sound, from its first sample, their lag removed. sound: (n,) float32 mono at 16 kHz.
    """

    clip: Clip
    tracked: Tracked
    lips: Lips
    truth: Lips
    sound: F32

    @property
    def label(self) -> str:
        return self.clip.label


def pictures(path: Path) -> Iterator[tuple[float, Picture]]:
    """Seconds since the file's beginning, and picture, of every frame. Raises InputError."""
    with VideoFile(path) as video:
        for frame in video.once():
            yield video.time_us(frame.pts + video.lead) / 1e6, frame.picture


def track(path: Path) -> Tracked:
    """Landmarks of a file by a fresh Face Mesh. Raises InputError."""
    seconds: list[float] = []
    points: list[F32] = []
    with Retracker() as tracker:
        for second, picture in pictures(path):
            seconds.append(second)
            points.append(tracker.points(picture.rgb()))
    return Tracked(np.stack(points), np.array(seconds))


def read_sound(path: Path) -> F32:
    """(n,) float32 mono at 16 kHz from the file's first sample. Raises InputError where there is none."""
    mono = av.AudioResampler(format="flt", layout="mono", rate=VOICE_RATE)
    parts: list[F32] = []
    with AudioFile(path) as sound:
        for samples, form in sound.pieces():
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples.reshape(1, -1), np.float32),
                format="flt",
                layout="stereo" if form.channels == 2 else "mono",
            )
            frame.sample_rate = form.rate
            parts += [out.to_ndarray()[0].astype(np.float32) for out in mono.resample(frame)]
    parts += [out.to_ndarray()[0].astype(np.float32) for out in mono.resample(None)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def sound_after_picture(path: Path) -> float:
    """Seconds from a file's first picture to its first sample."""
    # Opened anew for each: a demuxer that has gone on to the one is past the other's beginning.
    with av.open(str(path)) as container:
        sound = next(float(frame.time or 0.0) for frame in container.decode(container.streams.audio[0]))
    with av.open(str(path)) as container:
        picture = next(float(frame.time or 0.0) for frame in container.decode(container.streams.video[0]))
    return sound - picture


def subject(clip: Clip) -> Subject:
    """Track a clip and read its sound.

    Raises InputError where no face is found in half of its frames: there would be no truth to compare with.
    """
    tracked = track(clip.path)
    lips = tracked.lips()
    if lips.found.mean() < _LEAST_FOUND:
        raise InputError(
            clip.path,
            f"a face was found in only {lips.found.mean():.0%} of its frames",
            "give a clip that shows one speaking face throughout",
        )
    late = clip.lips_minus_sound_s + sound_after_picture(clip.path)
    return Subject(clip, tracked, lips, lips.shifted(-late), read_sound(clip.path))
