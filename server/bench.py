"""`retalk bench`: measures this machine and says it as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from retalk_models.engine import ClosingEngine, Engine
from server.capacity import carried, climb
from stream.bench import Cost, Live, measure_cost, measure_live
from stream.material import load_material
from stream.process_engine import SPARE, ProcessEngine, ask, load_to_serve
from stream.sample import sample_presenter
from stream.stats import Spread

SAMPLE_SPEECH = Path(__file__).resolve().parent.parent / "client_web" / "sample" / "speech.wav"
COST_SECONDS = 8.0
BUDGET_MS = 400.0


def measure(
    engine_name: str,
    device: str,
    video: Path | None,
    voice: Path | None,
    size: tuple[int, int],
    sessions: int,
    seconds: float,
    on_progress: Callable[[int, int | None], None],
) -> dict[str, Any]:
    """Measure one session's cost, then `sessions` of them live. Raises InputError for unusable material.

    on_progress: told (seconds measured, seconds in all) of the live part.
    """
    material = load_material(video or sample_presenter(), voice or SAMPLE_SPEECH, *size)
    with _served(engine_name, device, sessions) as engine:
        cost = ask(engine, partial(measure_cost, material=material, seconds=COST_SECONDS))
        live = measure_live(
            engine,
            material,
            sessions=sessions,
            seconds=seconds,
            on_progress=lambda done: on_progress(round(done), round(seconds)),
        )
    return {
        "machine": _machine(),
        "engine": engine.name,
        "device": engine.device,
        "weights": dict(engine.weights),
        "source": {
            "name": video.name if video else "sample",
            "width": size[0],
            "height": size[1],
            "fps": round(material.fps, 3),
        },
        "cpu_seconds_per_second_of_video": _cost(cost),
        "engine_window_ms": asdict(cost.window_ms),
        "live": _live(live),
    }


def measure_capacity(
    engine_name: str,
    device: str,
    video: Path | None,
    voice: Path | None,
    size: tuple[int, int],
    most: int,
    seconds: float,
    on_step: Callable[[int, int | None], None],
) -> dict[str, Any]:
    """How many sessions this machine carries. Raises InputError for unusable material.

    on_step: told (sessions being measured, None).
    """
    material = load_material(video or sample_presenter(), voice or SAMPLE_SPEECH, *size)
    with _served(engine_name, device, most) as engine:
        rows = climb(engine, material, seconds, BUDGET_MS, most, lambda sessions: on_step(sessions, None))
    return {
        "machine": _machine(),
        "engine": engine.name,
        "device": engine.device,
        "source": {"name": video.name if video else "sample", "width": size[0], "height": size[1]},
        "carried": carried(rows),
        "rows": rows,
    }


@contextmanager
def _served(engine_name: str, device: str, sessions: int) -> Iterator[Engine]:
    """The engine as a server runs it, ready for so many sessions at once."""
    engine = load_to_serve(engine_name, device)
    try:
        if isinstance(engine, ProcessEngine):
            # As on a server, whose spare processes have loaded long ago: one takes a core for seconds.
            engine.prepare(sessions + SPARE, wait=True)
        yield engine
    finally:
        if isinstance(engine, ClosingEngine):
            engine.close()


def table(figures: dict[str, Any]) -> None:
    """Print what was measured."""
    console = Console(highlight=False, soft_wrap=True)
    source, machine, live = figures["source"], figures["machine"], figures["live"]
    console.print(
        f"{figures['engine']} on {figures['device']}, {source['name']} at "
        f"{source['width']}x{source['height']}, {source['fps']:g} fps; "
        f"{machine['cores']} cores, {machine['processor']}"
    )
    cost = Table("one session", "core seconds per second of video", box=None)
    for name, spent in figures["cpu_seconds_per_second_of_video"].items():
        cost.add_row(name, f"{spent:.3f}")
    console.print(cost)
    shown = Table("live", "p50", "p95", "p99", "max", box=None)
    for name in ("added_latency_ms", "skew_ms"):
        shown.add_row(name, *(f"{live[name][key]:.0f}" for key in ("p50", "p95", "p99", "max")))
    for name, spread in live["stage_ms"].items():
        shown.add_row(f"{name} ms", *(f"{spread[key]:.1f}" for key in ("p50", "p95", "p99", "max")))
    console.print(shown)
    console.print(
        f"{live['sessions']} session{'s' * (live['sessions'] > 1)} for {live['seconds']:.0f} s: "
        f"{min(live['fps']):.1f} fps out, {live['dubbed_share']:.1%} of frames dubbed, {live['late']} late, "
        f"{live['cores']:.2f} cores in all"
    )
    for kind in ("rungs", "faces"):
        console.print(f"{kind}: " + ", ".join(f"{name} {count}" for name, count in live[kind].items()))


def save(figures: dict[str, Any], path: Path) -> None:
    """Write what was measured as JSON."""
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _cost(cost: Cost) -> dict[str, float]:
    spent = {"decode": cost.decode, **cost.stages, "session": cost.session, "encode": cost.encode}
    return {name: round(seconds, 4) for name, seconds in {**spent, "total": cost.total}.items()}


def _live(live: Live) -> dict[str, Any]:
    """Of several sessions the worst one's latency, skew and stages; counters are sums."""
    stats = live.stats
    worst = max(stats, key=lambda one: one.added_latency_ms.p95)
    rungs, faces = Counter[str](), Counter[str]()
    for one in stats:
        rungs.update(one.rungs)
        faces.update(one.faces)
    frames = sum(one.frames_out for one in stats)
    return {
        "sessions": live.sessions,
        "seconds": round(live.seconds, 2),
        "cores": round(live.cpu * live.sessions, 4),
        "fps": [round(fps, 2) for fps in live.fps],
        "added_latency_ms": _rounded(worst.added_latency_ms),
        "skew_ms": _rounded(worst.skew_ms),
        "stage_ms": {name: _rounded(spread) for name, spread in worst.stage_ms.items()},
        "playout_delay_ms": worst.playout_delay_ms,
        "dubbed_share": round(sum(one.dubbed for one in stats) / max(1, frames), 4),
        "late": sum(one.late for one in stats),
        "dropped": sum(one.dropped for one in stats),
        "rungs": dict(rungs),
        "faces": dict(faces),
        "queues": dict(worst.queues),
        "faults": sum(one.faults for one in stats),
    }


def _rounded(spread: Spread) -> dict[str, float]:
    return {name: round(value, 2) for name, value in asdict(spread).items()}


def _machine() -> dict[str, Any]:
    import torch

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
