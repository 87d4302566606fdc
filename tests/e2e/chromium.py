"""Chromium with a film for a camera and a file for a microphone, and what a person sees and hears in it."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, Playwright

from tests.e2e import camera

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]

CAPTURE = Path(__file__).with_name("capture.js")

QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
"""A test machine has no screen and no way out: without these Chromium asks for both, many times a second."""


class ChromiumAbsentError(RuntimeError):
    """There is no Chromium on this machine."""


def chromium_path() -> str:
    """Where Chromium is. Raises ChromiumAbsentError: an end-to-end test that skips would prove nothing."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    raise ChromiumAbsentError(
        "no Chromium on the PATH: the end-to-end tests need a real browser; "
        "install Debian's package `chromium`"
    )


@contextmanager
def chromium(
    driver: Playwright,
    film: Path | None = None,
    microphone: Path | None = None,
    *,
    allow: bool = True,
    devices: bool = True,
    sound_without_click: bool = True,
) -> Iterator[Browser]:
    """A browser whose camera plays `film` (Y4M) and whose microphone plays a WAV file, both in a loop.

    allow: whether the person clicks Allow when asked for them. devices: whether there are any.
    sound_without_click: whether a page may play sound before anyone has touched it, which browsers refuse.
    """
    policy = "no-user-gesture-required" if sound_without_click else "document-user-activation-required"
    flags = [*QUIET, f"--autoplay-policy={policy}"]
    if devices:
        flags.append("--use-fake-device-for-media-stream")
    flags.append("--use-fake-ui-for-media-stream" if allow else "--deny-permission-prompts")
    if film:
        flags.append(f"--use-file-for-fake-video-capture={film}")
    if microphone:
        flags.append(f"--use-file-for-fake-audio-capture={microphone}")
    browser = driver.chromium.launch(executable_path=chromium_path(), args=flags)
    try:
        yield browser
    finally:
        browser.close()


@dataclass(frozen=True)
class Seen:
    """What a page showed and played, on the page's clock in seconds.

    frame_s: (n,) when each dubbed picture was shown. number: (n,) the source frame it was made from, -1 where
    unreadable. pictures: (n,) its JPEG, or empty. source_s, source_number: the same of the source picture.
    audio_s, audio_rms: (m,) the end of each short block of sound and its loudness, 0..1.
    """

    frame_s: F64
    number: NDArray[np.int64]
    pictures: list[bytes]
    source_s: F64
    source_number: NDArray[np.int64]
    audio_s: F64
    audio_rms: F64

    def rgb(self, index: int) -> U8:
        """Picture `index` as (480, 640, 3) RGB."""
        decoded = cv2.imdecode(np.frombuffer(self.pictures[index], np.uint8), cv2.IMREAD_COLOR)
        return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)

    def camera_to_dub_s(self, most_s: float = 2.0) -> F64:
        """(k,) per dubbed picture, how long after the source's own picture on the same page it was shown.

        The numbers begin anew with the film: of two equal ones the newest before it counts, and one that is
        older than most_s is of the round before: its own was never shown.
        """
        delays = []
        for at, number in zip(self.frame_s, self.number, strict=True):
            same = self.source_s[(self.source_number == number) & (self.source_s <= at)]
            if number >= 0 and len(same) and at - same[-1] <= most_s:
                delays.append(at - same[-1])
        return np.array(delays)


def begin_capture(page: Page, *, pictures: bool) -> None:
    """Take down what `page` shows and plays from now on; `pictures` keeps every dubbed one, which costs."""
    code = {"left": camera.LEFT, "top": camera.TOP, "cell": camera.CELL, "bits": camera.BITS}
    page.evaluate(
        "([code, pictures]) => { window.__code = code; window.__pictures = pictures; }", [code, pictures]
    )
    page.add_script_tag(content=CAPTURE.read_text())


def end_capture(page: Page) -> Seen:
    kept: dict[str, Any] = page.evaluate("() => window.__capture.finish()")
    frames, sources, audio = kept["frames"], kept["sources"], kept["audio"]
    return Seen(
        frame_s=np.array([f["at"] for f in frames]) / 1000,
        number=np.array([-1 if f["number"] is None else f["number"] for f in frames], dtype=np.int64),
        pictures=[base64.b64decode(f["jpeg"]) if f["jpeg"] else b"" for f in frames],
        source_s=np.array([s["at"] for s in sources]) / 1000,
        source_number=np.array([-1 if s["number"] is None else s["number"] for s in sources], dtype=np.int64),
        audio_s=steady([a["at"] for a in audio], [a["place"] for a in audio]),
        audio_rms=np.array([a["rms"] for a in audio]),
    )


def steady(arrived_ms: list[float], place_ms: list[float]) -> F64:
    """Seconds at which each block of sound was heard, by its place in the sound: its arrival jitters.

    The place is tied to the clock by the earliest arrivals, which nothing on the page had held up.
    """
    if not arrived_ms:
        return np.zeros(0)
    place = np.array(place_ms)
    offset = float(np.percentile(np.array(arrived_ms) - place, 10))
    seconds: F64 = (place + offset) / 1000
    return seconds


def errors_on(page: Page) -> list[str]:
    """A list that fills with every console error and uncaught exception of `page`."""
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    return errors
