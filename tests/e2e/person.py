"""What a person does with the page, and what their eyes and ears make of what it shows."""

from __future__ import annotations

import re
import wave
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Page, expect

from tests.e2e.camera import Camera
from tests.e2e.chromium import Seen
from tests.e2e.lips import GRID_HZ, LipTracker

F64 = NDArray[np.float64]

LIVE_MS = 20_000
BLOCK_HZ = 100.0
"""Loudness is compared in blocks of 10 ms, the length of the sound blocks a page hands out."""


def choose(page: Page, picture: str, voice: str | Path, idle: str = "source") -> None:
    """Fill the form in: picture "camera" or "sample"; voice "sample", "microphone" or a sound file."""
    page.check(f"input[name=picture][value='{'camera' if picture == 'camera' else 'file:' + picture}']")
    if isinstance(voice, Path):
        page.check("input[name=voice][value=file]")
        page.set_input_files("#voice-file", voice)
    else:
        page.check(f"input[name=voice][value={voice}]")
    if not page.locator("#options").evaluate("details => details.open"):
        page.click("#options summary")
    page.select_option("#idle", idle)
    page.check("#consent")


def start(page: Page) -> None:
    """Press Start and wait until the page says that it is live."""
    page.click("#start")
    wait_live(page)


def wait_live(page: Page) -> None:
    expect(page.locator("body")).to_have_attribute("data-state", re.compile("live|failed"), timeout=LIVE_MS)
    state = page.get_attribute("body", "data-state")
    assert state == "live", f"the page says: {page.inner_text('#alert')}"


def stop(page: Page) -> None:
    page.click("#stop")
    expect(page.locator("body")).to_have_attribute("data-state", "idle")


def loudness(path: Path) -> F64:
    """RMS of a sound file in blocks of 10 ms, full scale 1."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
    with av.open(str(path)) as container:
        parts = [r.to_ndarray()[0] for f in container.decode(audio=0) for r in resampler.resample(f)]
    pcm = np.concatenate(parts).astype(np.float64)
    size = round(16_000 / BLOCK_HZ)
    blocks = pcm[: len(pcm) // size * size].reshape(-1, size)
    rms: F64 = np.sqrt((blocks**2).mean(axis=1))
    return rms


def as_wav(path: Path, wav: Path) -> Path:
    """A sound file as what Chromium's fake microphone reads: WAV, 48 kHz, mono, 16 bits."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=48_000)
    with av.open(str(path)) as container:
        parts = [r.to_ndarray()[0] for f in container.decode(audio=0) for r in resampler.resample(f)]
    with wave.open(str(wav), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(48_000)
        out.writeframes(np.concatenate(parts).tobytes())
    return wav


def voice_began_s(seen: Seen, voice: Path) -> tuple[float, float]:
    """When, on the page's clock, the voice's first sample was heard; and how alike heard and sent are (r)."""
    sent = loudness(voice)
    first = seen.audio_s[0]
    ticks = np.arange(first, seen.audio_s[-1], 1 / BLOCK_HZ)
    heard = np.interp(ticks, seen.audio_s, seen.audio_rms)
    best, best_at = -1.0, 0
    for at in range(-len(sent) // 2, len(heard) - len(sent) // 2):
        a, b = heard[max(at, 0) : at + len(sent)], sent[max(-at, 0) : len(heard) - at]
        size = min(len(a), len(b))
        if size < len(sent) // 2 or a[:size].std() == 0 or b[:size].std() == 0:
            continue
        r = float(np.corrcoef(a[:size], b[:size])[0, 1])
        if r > best:
            best, best_at = r, at
    # A block's time is its end; its loudness is that of the 10 ms before.
    return float(first + best_at / BLOCK_HZ - 1 / BLOCK_HZ), best


def shown_opening(seen: Seen) -> F64:
    """(n,) the lip opening of every dubbed picture, NaN without a face."""
    with LipTracker() as lips:
        return np.array([lips.opening(seen.rgb(index)) for index in range(len(seen.pictures))])


def on_grid(seconds: F64, values: F64, grid: F64) -> F64:
    """`values` at the grid's instants; NaN where none is within 100 ms."""
    known = ~np.isnan(values)
    if known.sum() < 2:
        return np.full_like(grid, np.nan)
    nearest = np.abs(grid[:, None] - seconds[known][None, :]).min(axis=1)
    return np.where(nearest > 0.1, np.nan, np.interp(grid, seconds[known], values[known]))


def own_opening(seen: Seen, film: Camera) -> F64:
    """(n,) the source's own lip opening under every dubbed picture, by the number that it carries."""
    known = (seen.number >= 0) & (seen.number < len(film.opening))
    return np.where(known, film.opening[np.where(known, seen.number, 0)], np.nan)


def voice_grid(voice: Path) -> F64:
    """The voice's own time line at GRID_HZ, from 0 to its end."""
    return np.arange(0.0, len(loudness(voice)) / BLOCK_HZ, 1 / GRID_HZ)
