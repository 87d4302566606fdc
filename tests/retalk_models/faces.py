"""Faces for tests: a posed template, a public-domain portrait, and a voice that says what it is told."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from retalk_models.engine import EngineFrame, EngineOptions, EngineOutput, EngineWindow, Idle, Rung
from retalk_models.face.geometry import ObservedFace, Pose, from_canonical, template
from retalk_models.picture import F32, Picture
from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.engine import TalkinEngine, TalkinSession
from retalk_models.talkin.net import Expression

BASIS = ExpressionBasis.load()
FRAME_US = 40_000
FRAME_SAMPLES = 640
LOOK_AHEAD = 1920
GREY = Picture(np.full((720, 640), 100, np.uint8), 640, 480)


def pose(yaw: float = 0.0, scale: float = 120.0, x: float = 320.0, y: float = 200.0) -> Pose:
    """Looking straight, or turned by yaw radians; (x, y) is where the stable points' mean lies."""
    c, s = np.cos(yaw), np.sin(yaw)
    rotation = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]], np.float32)
    return Pose(rotation, np.array([x, y, 0], np.float32), scale)


def parted(opening: float) -> F32:
    """(478, 3) the template with the lips this far apart, canonical."""
    expression = np.zeros(BASIS.size, np.float32)
    expression[0] = opening
    return np.asarray(template() + BASIS.apply(expression), np.float32)


def points(opening: float = 0.0, at: Pose | None = None) -> F32:
    """(478, 3) pixels of the template with the lips this far apart (canonical units)."""
    return from_canonical(parted(opening), at or pose())


def observed(opening: float = 0.0, x: float = 320.0, yaw: float = 0.0) -> ObservedFace:
    """The template seen with its lips this far apart, and taken for one with its lips at rest."""
    at = pose(yaw, x=x)
    return ObservedFace(points(opening, at), at, template(), opening)


def portrait(width: int = 512, height: int = 512, x: int = 0, y: int = 0, scale: float = 1.0) -> Picture:
    """The sample presenter (public domain, from scikit-image) on grey, shifted and scaled."""
    from skimage import data

    move = np.array([[scale, 0, x], [0, scale, y]], np.float32)
    rgb = cv2.warpAffine(
        np.asarray(data.astronaut(), np.uint8), move, (width, height), borderValue=(90, 90, 90)
    )
    return Picture.from_rgb(np.asarray(rgb, np.uint8))


def noise(width: int = 640, height: int = 480, seed: int = 0) -> Picture:
    rng = np.random.default_rng(seed)
    shape = (height * 3 // 2, width)
    return Picture(rng.integers(16, 235, shape, np.uint8), width, height)


@dataclass
class ToldVoice:
    """A stream whose opening at a position is told by a function of seconds, and which logs what it is
    asked."""

    opening: F32
    restarts: list[int] = field(default_factory=list)
    pushed: int = 0

    def push(self, pcm: F32) -> None:
        self.pushed += len(pcm)

    def restart(self, position: int) -> None:
        self.restarts.append(position)

    def at(self, position: int) -> Expression:
        frame = min(max(0, position // FRAME_SAMPLES), len(self.opening) - 1)
        values = np.zeros(BASIS.size, np.float32)
        values[0] = self.opening[frame]
        return Expression(values, 0.0, 1.0)


@dataclass
class ToldSpeech:
    """Opens told voices."""

    opening: F32

    def open_stream(self) -> ToldVoice:
        return ToldVoice(self.opening)


def session(opening: F32, idle: Idle = Idle.REST) -> TalkinSession:
    return TalkinEngine(ToldSpeech(opening), BASIS, {}).open_session(EngineOptions(idle=idle))


def frames(pictures: list[Picture], first: int = 0, active: bool = True) -> tuple[EngineFrame, ...]:
    return tuple(
        EngineFrame(picture, (first + i) * FRAME_US, (first + i) * FRAME_SAMPLES, active)
        for i, picture in enumerate(pictures)
    )


def dub(
    engine: TalkinSession,
    shown: tuple[EngineFrame, ...],
    group: int = 1,
    rung: Rung = Rung.FULL,
    epoch: int = 0,
    heard: int = 0,
) -> list[EngineOutput]:
    """Process frames in windows of `group`, with silence for a voice from position `heard` on."""
    outputs: list[EngineOutput] = []
    for start in range(0, len(shown), group):
        window = shown[start : start + group]
        end = window[-1].voice_at + LOOK_AHEAD
        voice = np.zeros(max(0, end - heard), np.float32)
        outputs += engine.process(EngineWindow(window, voice, heard, epoch, rung)).outputs
        heard = max(heard, end)
    return outputs
