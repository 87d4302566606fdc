"""Flash and beep through the server into Chromium: how far apart are picture and sound where they are seen?

The voice beeps once a second. The engine (`talkin`, with two squares painted over its result) draws into each
picture how long ago, on the voice's own time line, the last beep began: so every picture shown tells which
instant of the voice it belongs to, and the sound heard in the page tells when that instant was heard. Skew is
the one minus the other, positive where the picture is late. Each viewer is a peer connection of its own in
one Chromium; the last figure is the server's processor time with the most viewers over that with one.

    python -m benchmarks.flashbeep CLIP VOICE [--seconds 60] [--codecs H264,VP8] [--viewers 1,3] [--no-sync]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray
from playwright.async_api import Page, async_playwright
from websockets.asyncio.client import connect

from benchmarks.processes import cpu_s
from benchmarks.soak import speak, write_film, ws
from retalk_models.engine import (
    ClosingEngine,
    Engine,
    EngineOptions,
    EngineOutput,
    EngineResult,
    EngineSession,
    EngineWindow,
)
from server.settings import Settings
from server.streams import Streams
from stream.material import Material, load_material
from stream.process_engine import load_to_serve
from tests.e2e.chromium import QUIET, chromium_path, steady

F64 = NDArray[np.float64]

DARK, LIGHT = 30, 230
SQUARE = 48
SETTLE_S = 4.0
QUIET_SAMPLES = 4800


class FlashEngine:
    """Another engine, with a square in a corner as bright as the last beep is long ago, LIGHT after a second.

    The square beside it is as dark as that one is bright: a picture that no engine touched shows neither.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    name = "talkin"

    @property
    def device(self) -> str:
        return self._engine.device

    @property
    def look_ahead_us(self) -> int:
        return self._engine.look_ahead_us

    @property
    def weights(self) -> Mapping[str, str]:
        return self._engine.weights

    def open_session(self, options: EngineOptions) -> EngineSession:
        return _FlashSession(self._engine.open_session(options))

    def close(self) -> None:
        if isinstance(self._engine, ClosingEngine):
            self._engine.close()


class _FlashSession:
    def __init__(self, session: EngineSession) -> None:
        self._session = session
        self._beeps: deque[int] = deque(maxlen=8)
        self._loud_at = -QUIET_SAMPLES

    def process(self, window: EngineWindow) -> EngineResult:
        for index in np.flatnonzero(np.abs(window.voice) > 0.05):
            place = window.voice_start + int(index)
            if place - self._loud_at > QUIET_SAMPLES:
                self._beeps.append(place)
            self._loud_at = max(self._loud_at, place)
        result = self._session.process(window)
        outputs = []
        for frame, output in zip(window.frames, result.outputs, strict=True):
            since = [frame.voice_at - beep for beep in self._beeps if beep <= frame.voice_at]
            share = min(1.0, since[-1] / 16_000) if since else 0.0
            picture = output.picture.copy()
            picture.y[:SQUARE, :SQUARE] = round(DARK + share * (LIGHT - DARK))
            picture.y[:SQUARE, SQUARE : 2 * SQUARE] = round(LIGHT - share * (LIGHT - DARK))
            for plane in (picture.u, picture.v):
                plane[: SQUARE // 2, :SQUARE] = 128
            outputs.append(EngineOutput(picture, output.face, output.region, output.strength))
        return EngineResult(tuple(outputs), result.stage_ms)

    def close(self) -> None:
        self._session.close()


async def serve(folder: Path) -> None:
    """In a process of its own, so that its processor time is the server's alone."""
    from tests.server.conftest import running
    from tests.server.rtc import until

    async def load_streams(_: Settings) -> Streams:
        return Streams(FlashEngine(load_to_serve("talkin", "auto", 1)))

    async with running(Settings(presenters_dir=folder), load_streams=load_streams) as server:
        await until(lambda: server.registry.free > 0, within_s=60)
        print(server.address, flush=True)
        await asyncio.to_thread(sys.stdin.read)


def beeps() -> NDArray[np.int16]:
    """One second: 100 ms of 1 kHz, then silence."""
    sound = np.zeros(48_000, np.int16)
    sound[:4800] = 16_000 * np.sin(2 * np.pi * 1000 * np.arange(4800) / 48_000)
    return sound


def skews_ms(taken: dict[str, Any]) -> F64:
    """Per picture: when it was shown minus when its instant of the voice was heard."""
    audio_s = steady([a["at"] for a in taken["audio"]], [a["place"] for a in taken["audio"]])
    loud = np.array([a["rms"] for a in taken["audio"]]) > 0.03
    rises = np.flatnonzero(loud[1:] & ~loud[:-1]) + 1
    begins: list[float] = []
    for rise in rises:
        # A block's time is its end, and the beep began somewhere in its 10 ms.
        if not begins or audio_s[rise] - begins[-1] > 0.5:
            begins.append(float(audio_s[rise]) - 0.005)
    heard = np.array(begins)
    found = []
    for frame in taken["frames"]:
        bright, dark = frame["luma"]
        if abs(bright + dark - LIGHT - DARK) > 12:
            continue  # not dubbed
        share = (bright - DARK) / (LIGHT - DARK)
        if not 0.05 < share < 0.9:
            continue  # around a beep the square is between two of them
        said = frame["at"] / 1000 - share
        nearest = heard[np.abs(heard - said).argmin()]
        if abs(nearest - said) < 0.45:
            found.append(1000 * (said - nearest))
    return np.array(found)


async def join(page: Page, address: str, given: dict[str, Any], codec: str, sync: bool) -> None:
    await page.goto(address.replace("127.0.0.1", "localhost") + "/icon.svg")
    await page.goto(address.replace("127.0.0.1", "localhost") + "/")
    code = (Path(__file__).with_suffix(".js")).read_text(encoding="utf-8")
    code = code[code.index("async (") :]
    signal = ws(address, given, "signal").replace("127.0.0.1", "localhost")
    await page.evaluate(code, {"signal": signal, "codec": codec, "sync": sync})


async def measure(
    address: str, server: psutil.Process, codec: str, viewers: int, seconds: float, sync: bool
) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=address, timeout=20) as http, async_playwright() as driver:
        flags = [*QUIET, "--autoplay-policy=no-user-gesture-required"]
        browser = await driver.chromium.launch(executable_path=chromium_path(), args=flags)
        body = {"source": {"file": "film.mp4"}, "consent": True}
        given = (await http.post("/v1/sessions", json=body)).raise_for_status().json()
        voice = await connect(ws(address, given, "voice"), max_size=None)
        saying = asyncio.create_task(speak(voice, beeping()))
        pages = [await browser.new_page() for _ in range(viewers)]
        for page in pages:
            await join(page, address, given, codec, sync)
        await asyncio.sleep(SETTLE_S)
        for page in pages:
            await page.evaluate("() => window.__begin()")
        before = cpu_s(server)
        await asyncio.sleep(seconds)
        cores = (cpu_s(server) - before) / seconds
        taken = [await page.evaluate("() => window.__finish()") for page in pages]
        await browser.close()
        saying.cancel()
        await voice.close()
        bearer = {"Authorization": f"Bearer {given['token']}"}
        about = (await http.get(given["urls"]["session"], headers=bearer)).json()
        await http.delete(given["urls"]["session"], headers=bearer)
    skews = np.concatenate([skews_ms(each) for each in taken])
    if not skews.size:
        seen = [(len(each["frames"]), each["shown"], each["received"]) for each in taken]
        raise RuntimeError(f"{viewers} viewers of {codec} saw no dubbed picture: {seen}, {about}")
    p5, p50, p95 = np.percentile(skews, (5, 50, 95))
    return {
        "codec": taken[0]["codec"],
        "viewers": viewers,
        "pictures": int(skews.size),
        "p5": round(p5, 1),
        "p50": round(p50, 1),
        "p95": round(p95, 1),
        "abs_p95": round(float(np.percentile(np.abs(skews), 95)), 1),
        "cores": round(cores, 3),
    }


def beeping() -> Iterator[NDArray[np.int16]]:
    """Beeps in chunks of 20 ms, without end."""
    sound = beeps()
    return itertools.cycle([sound[start : start + 960] for start in range(0, sound.size, 960)])


def run(material: Material, args: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory() as name:
        write_film(material, Path(name) / "film.mp4")
        command = [sys.executable, "-m", "benchmarks.flashbeep", "--serve", name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            address = process.stdout.readline().strip()
            for codec in args.codecs.split(","):
                for viewers in (int(count) for count in args.viewers.split(",")):
                    one = asyncio.run(
                        measure(
                            address,
                            psutil.Process(process.pid),
                            codec,
                            viewers,
                            args.seconds,
                            not args.no_sync,
                        )
                    )
                    found.append(one)
                    print(json.dumps(one), flush=True)
            process.stdin.close()
    return found


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(serve(Path(sys.argv[2])))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip", type=Path)
    parser.add_argument("voice", type=Path, help="not heard; what is loaded with the clip")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--codecs", default="H264,VP8")
    parser.add_argument("--viewers", default="1,3")
    parser.add_argument("--no-sync", action="store_true", help="without the page's own lip sync")
    args = parser.parse_args()
    found = run(load_material(args.clip, args.voice, 640, 480), args)
    for codec in dict.fromkeys(one["codec"] for one in found):
        cores = [one["cores"] for one in found if one["codec"] == codec]
        if len(cores) > 1:
            print(f"{codec}: {cores[-1] / cores[0]:.2f} times the processor time of one viewer")
    return 0


if __name__ == "__main__":
    sys.exit(main())
