"""A real clip as Chromium's fake camera, each frame numbered so that it can be followed through the server.

The number is a column of black and white squares in the pillar-box beside the face: the server changes
nothing there, so whoever reads it back off the dubbed picture knows which source frame it was made from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from tests.e2e.lips import LipTracker

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]

WIDTH, HEIGHT, RATE = 640, 480, 25
CELL = 32
"""Side of one square in pixels: large enough for any codec and bit rate."""
BITS = 10
LEFT, TOP = 20, 48
BLACK, WHITE = 16, 235


@dataclass(frozen=True)
class Camera:
    """A looping camera film.

    path: Y4M, WIDTH x HEIGHT at RATE (Chromium plays MJPEG at 30 whatever was meant; Y4M says its own rate).
    opening: (frames,) the lip opening over face height of each numbered frame, NaN without a face.
    """

    path: Path
    opening: F64

    @property
    def seconds(self) -> float:
        return len(self.opening) / RATE


def make_camera(clip: Path, path: Path, seconds: float = 6.0) -> Camera:
    """Write `clip`'s first seconds, scaled and pillar-boxed, as a numbered film, and track its own lips."""
    pictures = at_rate(clip, seconds)
    with LipTracker() as lips, path.open("wb") as film:
        film.write(f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F{RATE}:1 Ip A1:1 C420jpeg\n".encode())
        opening = []
        for number, rgb in enumerate(pictures):
            frame = boxed(rgb)
            opening.append(lips.opening(frame))
            planes = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420), dtype=np.uint8)
            stamp(planes, number)
            film.write(b"FRAME\n" + planes.tobytes())
    return Camera(path, np.array(opening))


def at_rate(clip: Path, seconds: float) -> list[U8]:
    """RGB pictures at RATE: at each tick the frame that is on screen then, whatever the clip's own rate."""
    chosen: list[U8] = []
    with av.open(str(clip)) as container:
        start: float | None = None
        for frame in container.decode(video=0):
            start = frame.time if start is None else start
            rgb = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
            while len(chosen) / RATE <= frame.time - start and len(chosen) < seconds * RATE:
                chosen.append(rgb)
    return chosen


def boxed(rgb: U8) -> U8:
    """Scaled to fit WIDTH x HEIGHT, the rest dark."""
    height, width = rgb.shape[:2]
    scale = min(WIDTH / width, HEIGHT / height)
    size = (2 * round(width * scale / 2), 2 * round(height * scale / 2))
    frame = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    x, y = (WIDTH - size[0]) // 2, (HEIGHT - size[1]) // 2
    frame[y : y + size[1], x : x + size[0]] = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return frame


def stamp(planes: U8, number: int) -> None:
    """Draw `number` into I420 planes: BITS squares downwards, highest bit first, then odd parity."""
    bits = [number >> (BITS - 1 - i) & 1 for i in range(BITS)]
    for index, bit in enumerate([*bits, 1 - sum(bits) % 2]):
        top = TOP + index * CELL
        planes[top : top + CELL, LEFT : LEFT + CELL] = WHITE if bit else BLACK
        for plane in (HEIGHT, HEIGHT + HEIGHT // 4):
            chroma = planes[plane : plane + HEIGHT // 4].reshape(HEIGHT // 2, WIDTH // 2)
            chroma[top // 2 : (top + CELL) // 2, LEFT // 2 : (LEFT + CELL) // 2] = 128


def read_number(gray: U8) -> int | None:
    """The number on a (HEIGHT, WIDTH) grey picture, or None where the squares do not add up."""
    inner = CELL // 4
    bits = []
    for index in range(BITS + 1):
        top = TOP + index * CELL
        bits.append(
            int(gray[top + inner : top + CELL - inner, LEFT + inner : LEFT + CELL - inner].mean() > 127)
        )
    *number, parity = bits
    if parity != 1 - sum(number) % 2:
        return None
    return int("".join(map(str, number)), 2)
