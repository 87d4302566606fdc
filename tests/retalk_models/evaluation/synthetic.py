"""A made-up speaker: an opening over time, lips that do it, a sound that goes with it, and pictures of it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from retalk_models.engine import VOICE_RATE
from retalk_models.evaluation.lips import Lips
from retalk_models.evaluation.series import F64
from retalk_models.face.geometry import Pose, from_canonical, template
from retalk_models.picture import F32, Picture
from retalk_models.talkin.basis import ExpressionBasis

FPS = 25.0
BASIS = ExpressionBasis.load()


def opening(seconds: float, seed: int = 0) -> F64:
    """Apertures at FPS like speech: bumps of 120 to 280 ms, shut between some of them; 0 to about 0.15."""
    rng = np.random.default_rng(seed)
    out = np.zeros(round(seconds * FPS))
    at = 0
    while at < len(out):
        length = int(rng.integers(3, 8))
        bump = rng.uniform(0.05, 0.15) * np.sin(np.pi * (np.arange(length) + 0.5) / length)
        end = min(len(out), at + length)
        out[at:end] = bump[: end - at]
        at = end + (2 if rng.random() < 0.5 else 0)
    return out


def faces(apertures: F64, x: float = 128.0, y: float = 110.0, scale: float = 80.0) -> F32:
    """(n, 478, 3) pixels of a frontal face with these apertures."""
    pose = Pose(np.eye(3, dtype=np.float32), np.array([x, y, 0], np.float32), scale)
    expression = np.zeros((len(apertures), BASIS.size), np.float32)
    expression[:, 0] = apertures
    return np.stack([from_canonical(template() + offsets, pose) for offsets in BASIS.apply(expression)])


def lips(apertures: F64, late_s: float = 0.0) -> Lips:
    seconds = np.arange(len(apertures)) / FPS + late_s
    return Lips.of(faces(apertures), seconds)


def sound(apertures: F64, seed: int = 0) -> F32:
    """A buzz whose loudness and timbre follow the opening: what a sync meter can learn from."""
    rng = np.random.default_rng(seed)
    count = round(len(apertures) / FPS * VOICE_RATE)
    at = np.arange(count) / VOICE_RATE
    open_now = np.interp(at, np.arange(len(apertures)) / FPS, apertures) / 0.15
    pitch = np.cumsum(120 + 20 * open_now) / VOICE_RATE
    low = np.sin(2 * np.pi * pitch) + 0.6 * np.sin(4 * np.pi * pitch)
    high = np.sin(2 * np.pi * 9 * pitch) + 0.7 * np.sin(2 * np.pi * 13 * pitch)
    wave = 0.05 * low + 0.2 * open_now * high + 0.002 * rng.standard_normal(count)
    return np.asarray(wave, np.float32)


@dataclass(frozen=True)
class Film:
    """Pictures of the made-up speaker, and where the face is in them."""

    pictures: list[Picture]
    points: F32


def film(count: int = 24, seed: int = 0) -> Film:
    """Textured skin that drifts with the head, a mouth that opens, and a background that stands still."""
    rng = np.random.default_rng(seed)
    skin = cv2.GaussianBlur(rng.normal(0, 30, (320, 320)).astype(np.float32), (0, 0), 1.2) + 140
    background = cv2.GaussianBlur(rng.normal(0, 40, (256, 256)).astype(np.float32), (0, 0), 2) + 90
    apertures = 0.12 * np.abs(np.sin(np.arange(count) / 2.2))
    pictures, points = [], []
    for index, aperture in enumerate(apertures):
        x = 128 + 3 * np.sin(index / 7)
        face = faces(np.array([aperture]), x=float(x))[0]
        luma = background.copy()
        oval = np.zeros_like(luma)
        cv2.ellipse(oval, (round(float(x)), 120), (80, 105), 0, 0, 360, 1.0, -1)
        moved = cv2.warpAffine(skin, np.array([[1, 0, x - 160], [0, 1, -30]], np.float32), (256, 256))
        luma = luma + cv2.GaussianBlur(oval, (0, 0), 1) * (moved - luma)
        ring = np.round(face[[78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13], :2])
        cv2.fillPoly(luma, [ring.astype(np.int32)], 30.0)
        luma += rng.normal(0, 1.0, luma.shape)
        planes = np.full((384, 256), 128, np.uint8)
        planes[:256] = np.clip(luma, 16, 235).astype(np.uint8)
        pictures.append(Picture(planes, 256, 256))
        points.append(face)
    return Film(pictures, np.stack(points))
