"""One dubbed session as a person at Chromium gets it: a real clip as the camera, 640x480 at 25, a real voice.

Starts `retalk serve`, opens its page, plays for a while, and prints
  page fps      dubbed pictures shown on the page per second, and how many of them were new source frames;
  frames        that the engine dubbed, that came late (the source went out instead), that were dropped;
  added         release of a frame minus its arrival at the server (its own measure), p50 and p95;
  camera->dub   a frame shown as dubbed minus the same frame shown as source, both on the page: encoding, the
                network, server, decoding and the browser's buffer, by numbers drawn into the camera's frames;
  skew          audio minus video: at the server's release, and at the browser's playout (getStats);
  queues        every queue's depth: first third of the run, last third, and most. Growth is what must not be;
  CPU           seconds of one core per second, the server's process and Chromium's.

    python -m benchmarks.browser CLIP VOICE [--seconds 60] [--budget 400] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from playwright.sync_api import Page, WebSocket, sync_playwright

from benchmarks.processes import cpu_s
from tests.e2e.camera import make_camera
from tests.e2e.chromium import Seen, begin_capture, chromium, end_capture
from tests.e2e.conftest import serving
from tests.e2e.person import choose, start, stop

F64 = NDArray[np.float64]

SETTLE_S = 3.0
POLL_S = 1.0


@dataclass
class Taken:
    """What was taken down while the page played, each with seconds since the page went live."""

    pushed: list[dict[str, Any]] = field(default_factory=list)
    page: list[dict[str, Any]] = field(default_factory=list)
    polled: list[dict[str, Any]] = field(default_factory=list)
    session: dict[str, Any] = field(default_factory=dict)


def listen(page: Page, taken: Taken) -> None:
    """Read along what server and page tell each other."""

    def along(socket: WebSocket) -> None:
        if "/signal" in socket.url:
            socket.on("framereceived", lambda text: keep(text, taken.pushed))
            socket.on("framesent", lambda text: keep(text, taken.page))

    def keep(text: str | bytes, into: list[dict[str, Any]]) -> None:
        message = json.loads(text)
        if message.get("type") == "stats":
            into.append(message)

    page.on("websocket", along)
    page.on(
        "response",
        lambda answer: taken.session.update(answer.json()) if answer.request.method == "POST" else None,
    )


def ask(url: str, session: dict[str, Any]) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {session['token']}"}
    request = urllib.request.Request(f"{url}/v1/sessions/{session['id']}", headers=headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        about: dict[str, Any] = json.load(answer)
        return about


def play(
    clip: Path, voice: Path, seconds: float, budget_ms: int, folder: Path
) -> tuple[Seen, Taken, dict[str, float]]:
    film = make_camera(clip, folder / "film.y4m")
    taken = Taken()
    with (
        serving(folder / "server.log") as server,
        sync_playwright() as driver,
        chromium(driver, film.path) as browser,
    ):
        page = browser.new_page(viewport={"width": 1100, "height": 700})
        listen(page, taken)
        page.goto(server.url)
        choose(page, "camera", voice, idle="source")
        page.fill("#budget", str(budget_ms))
        start(page)
        page.wait_for_timeout(SETTLE_S * 1000)
        begin_capture(page, pictures=False)
        taken.pushed.clear()
        taken.page.clear()
        served, browsing = psutil.Process(server.process.pid), browser_process()
        before = cpu_s(served), cpu_s(browsing)
        taken.polled.append(ask(server.url, taken.session))
        for _ in range(round(seconds / POLL_S)):
            page.wait_for_timeout(POLL_S * 1000)
            taken.polled.append(ask(server.url, taken.session))
        cpu = {
            "server": (cpu_s(served) - before[0]) / seconds,
            "chromium": (cpu_s(browsing) - before[1]) / seconds,
        }
        seen = end_capture(page)
        stop(page)
    return seen, taken, cpu


def browser_process() -> psutil.Process:
    """The Chromium that this process has started: the oldest of its name among what this one started."""
    started = [p for p in psutil.Process().children(recursive=True) if "chrom" in p.name()]
    return min(started, key=lambda p: p.create_time())


def spread(values: F64) -> dict[str, float]:
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return {"p50": float("nan"), "p95": float("nan"), "max": float("nan")}
    p50, p95 = np.percentile(known, (50, 95))
    return {"p50": float(p50), "p95": float(p95), "max": float(known.max())}


def depths(polled: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Every queue's depth: mean of the first and of the last third of the run, and the most."""
    names = sorted({name for each in polled for name in each["queues"]})
    third = max(1, len(polled) // 3)
    found = {}
    for name in names:
        values = np.array([each["queues"].get(name, 0) for each in polled], dtype=float)
        found[name] = {
            "first": float(values[:third].mean()),
            "last": float(values[-third:].mean()),
            "max": float(values.max()),
        }
    return found


def summarise(seen: Seen, taken: Taken, cpu: dict[str, float], budget_ms: int) -> dict[str, Any]:
    shown_s = float(seen.frame_s[-1] - seen.frame_s[0])
    first, last = taken.polled[0], taken.polled[-1]
    moved = np.diff(seen.number[seen.number >= 0]) != 0
    skews = np.array([each["skew_ms"] for each in taken.page if "skew_ms" in each], dtype=float)
    released = np.array([each["skew_ms"] for each in taken.pushed], dtype=float)
    return {
        "seconds": shown_s,
        "page_fps": seen.presented_fps(),
        "read_fps": (len(seen.frame_s) - 1) / shown_s,
        "different_fps": float(moved.sum()) / shown_s,
        "decoded_fps": spread(np.array([each.get("fps", np.nan) for each in taken.page], dtype=float)),
        "source_fps": (len(seen.source_s) - 1) / float(seen.source_s[-1] - seen.source_s[0]),
        "counters": {
            name: last[name] - first[name]
            for name in ("frames", "dubbed", "late", "stale", "dropped", "gaps")
        },
        "budget_ms": budget_ms,
        # The server reports percentiles of its last 500 frames; the worst of them over the run is stated too.
        "added_ms": {
            "p50": float(np.median([each["added_latency_ms"]["p50"] for each in taken.polled])),
            "p95": float(np.median([each["added_latency_ms"]["p95"] for each in taken.polled])),
            "worst_p95": max(each["added_latency_ms"]["p95"] for each in taken.polled),
        },
        "camera_to_dub_ms": spread(1000 * seen.camera_to_dub_s()),
        "skew_release_ms": spread(released),
        "skew_playout_ms": spread(skews),
        "browser_buffer_ms": spread(np.array([each.get("buffer_ms", np.nan) for each in taken.page])),
        "playout_delay_ms": spread(
            np.array([each["playout_delay_ms"] for each in taken.polled], dtype=float)
        ),
        "rungs": last["rungs"],
        "faces": last["faces"],
        "stage_ms": last["stage_ms"],
        "queues": depths(taken.polled),
        "voice_buffered_ms": last["voice_buffered_ms"],
        "cpu": cpu,
    }


def show(found: dict[str, Any]) -> None:
    def both(name: str, unit: str = "ms") -> str:
        values = found[name]
        return f"p50 {values['p50']:.0f}  p95 {values['p95']:.0f}  max {values['max']:.0f} {unit}"

    counters = found["counters"]
    added = found["added_ms"]
    lines = {
        "played": f"{found['seconds']:.1f} s",
        "page fps": f"{found['page_fps']:.2f} presented; {found['read_fps']:.2f} read, "
        f"{found['different_fps']:.2f} of them new source frames (camera: {found['source_fps']:.2f} read)",
        "decoded fps": both("decoded_fps", "frames per second"),
        "frames": ", ".join(f"{name} {value}" for name, value in counters.items()),
        "added": f"p50 {added['p50']:.0f}  p95 {added['p95']:.0f}  worst p95 {added['worst_p95']:.0f} ms "
        f"(budget {found['budget_ms']})",
        "playout delay": both("playout_delay_ms"),
        "camera->dub": both("camera_to_dub_ms"),
        "skew, released": both("skew_release_ms"),
        "skew, playout": both("skew_playout_ms"),
        "browser buffer": both("browser_buffer_ms"),
        "rungs": str(found["rungs"]),
        "faces": str(found["faces"]),
        "CPU": ", ".join(f"{name} {value:.2f}" for name, value in found["cpu"].items()) + " cores",
    }
    for name, text in lines.items():
        print(f"{name:16}{text}")
    for name, stage in found["stage_ms"].items():
        print(f"stage {name:24}p50 {stage['p50']:.1f}  p95 {stage['p95']:.1f} ms a window")
    for name, depth in found["queues"].items():
        print(f"queue {name:24}first {depth['first']:.1f}  last {depth['last']:.1f}  most {depth['max']:.0f}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip", type=Path)
    parser.add_argument("voice", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--budget", type=int, default=400, help="latency_budget_ms of the session")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen, taken, cpu = play(args.clip, args.voice, args.seconds, args.budget, Path(folder))
    found = summarise(seen, taken, cpu, args.budget)
    show(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
