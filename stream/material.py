"""What a measured session is fed, held in memory so that reading it costs nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from retalk_models.picture import Picture
from stream.clock import VirtualClock
from stream.files import AudioFile, VideoFile
from stream.media import I16, PLAYOUT_RATE
from stream.voice import VoiceTrack

VOICE_CHUNK = PLAYOUT_RATE // 50
"""Samples that a live voice comes in at a time: 20 ms."""

_PAUSE_CHUNKS = 30
_MOST_FPS = 60.0
_ROOM_MS = 2_000


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """Frames to be played back and forth at `fps`, and a voice to be said over and over.

    voice: (n,) int16 mono at PLAYOUT_RATE, at least VOICE_CHUNK of it; repetitions are 0.6 s apart.
    """

    frames: Sequence[Picture]
    fps: float
    voice: I16

    def __post_init__(self) -> None:
        if not self.frames or self.voice.size < VOICE_CHUNK or self.fps <= 0:
            raise ValueError("material needs at least one frame, 20 ms of voice and a frame rate above 0")

    def pictures(self) -> Iterator[Picture]:
        """The frames, forward and back, without end."""
        return itertools.cycle([*self.frames, *self.frames[-2:0:-1]])

    def chunks(self) -> Iterator[I16]:
        """The voice in chunks of VOICE_CHUNK samples, then a pause, then the voice again, without end."""
        starts = range(0, self.voice.size - VOICE_CHUNK + 1, VOICE_CHUNK)
        silence = np.zeros(VOICE_CHUNK, np.int16)
        return itertools.cycle(
            [*(self.voice[at : at + VOICE_CHUNK] for at in starts), *[silence] * _PAUSE_CHUNKS]
        )


def load_material(video: Path, voice: Path, width: int, height: int, seconds: float = 8.0) -> Material:
    """Read what a bench needs, its picture scaled into width x height. Raises InputError."""
    with VideoFile(video, bt601=True) as file:
        fps = min(float(file.rate), _MOST_FPS)
        frames = [
            _fitted(frame.picture, width, height)
            for frame in itertools.takewhile(lambda f: file.time_us(f.pts) < seconds * 1e6, file.once())
        ]
    track = VoiceTrack(VirtualClock())
    with AudioFile(voice) as sound:
        for samples, form in sound.pieces():
            if track.credit_ms() < _ROOM_MS:
                break
            track.push(samples, form)
    track.end()
    spoken = track.read(0, track.written).samples
    return Material(frames, fps, spoken)


def _fitted(picture: Picture, width: int, height: int) -> Picture:
    """The whole picture scaled into the wanted size, on black: cutting it might cut the face."""
    scale = min(width / picture.width, height / picture.height)
    inner = round(picture.width * scale), round(picture.height * scale)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    canvas = np.zeros((height, width, 3), np.uint8)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    canvas[top : top + inner[1], left : left + inner[0]] = cv2.resize(picture.rgb(), inner, interpolation=way)
    return Picture.from_rgb(canvas)
