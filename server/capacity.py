"""`retalk bench --capacity`: one session more at a time until this machine cannot, and a plot of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from retalk_models.engine import Engine, Rung
from stream.bench import Live, measure_live
from stream.material import Material

LEAST_FPS_SHARE = 0.97
MOST_LOW_SHARE = 0.05
LOW = (Rung.HALF_RATE.name.lower(), Rung.PASS_THROUGH.name.lower())
QUANTILES = ("p50", "p95", "p99")
COLOURS = ("#2f6f9f", "#d9822b", "#4f9d69", "#a14d8c", "#7a6a4f", "#c0504d", "#888888", "#5b7fd1")

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 420, 300, 60, 40, 50, 90


def climb(
    engine: Engine,
    material: Material,
    seconds: float,
    budget_ms: float,
    most: int,
    on_step: Callable[[int], None] = lambda sessions: None,
) -> list[dict[str, Any]]:
    """Measure 1, 2, 3... sessions until one count is not carried, `most` at most; a row for each."""
    rows: list[dict[str, Any]] = []
    for sessions in range(1, most + 1):
        on_step(sessions)
        live = measure_live(
            engine, material, sessions=sessions, seconds=seconds, latency_budget_us=round(budget_ms * 1000)
        )
        rows.append(row(live, material.fps, budget_ms))
        if not rows[-1]["carried"]:
            break
    return rows


def row(live: Live, fps: float, budget_ms: float) -> dict[str, Any]:
    """What so many sessions were like: the worst one's latency, and every session's stages and rungs.

    Carried: 97 % of the frames, p95 within the budget, and at most 5 % below "without enhancement".
    """
    worst = max(live.stats, key=lambda one: one.added_latency_ms.p95)
    low = sum(live.rungs.get(name, 0) for name in LOW) / max(1, sum(live.rungs.values()))
    latency = {name: round(getattr(worst.added_latency_ms, name), 1) for name in QUANTILES}
    carried = min(live.fps) >= LEAST_FPS_SHARE * fps and latency["p95"] <= budget_ms and low <= MOST_LOW_SHARE
    return {
        "sessions": live.sessions,
        "carried": carried,
        "fps": round(min(live.fps), 2),
        "added_latency_ms": latency,
        "cores": round(live.cpu * live.sessions, 3),
        "low_share": round(low, 4),
        "stage_ms": {name: round(spread.p50, 2) for name, spread in worst.stage_ms.items()},
    }


def carried(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many sessions the machine carried."""
    return max((int(each["sessions"]) for each in rows if each["carried"]), default=0)


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows."""
    console = Console(highlight=False, soft_wrap=True)
    stages = list(dict.fromkeys(name for each in rows for name in each["stage_ms"]))
    shown = Table("sessions", "p50", "p95", "p99 ms", "fps", "cores", "below medium", "carried", box=None)
    times = Table("sessions", *(f"{name} ms" for name in stages), box=None)
    for each in rows:
        latency = each["added_latency_ms"]
        shown.add_row(
            str(each["sessions"]),
            *(f"{latency[name]:.0f}" for name in QUANTILES),
            f"{each['fps']:.1f}",
            f"{each['cores']:.2f}",
            f"{each['low_share']:.0%}",
            "yes" if each["carried"] else "no",
        )
        times.add_row(str(each["sessions"]), *(f"{each['stage_ms'].get(name, 0.0):.1f}" for name in stages))
    console.print(shown)
    console.print(times)
    count = carried(rows)
    console.print(f"this machine carries {count} session{'s' * (count != 1)} of this size")


def plot(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Write an SVG: added latency over sessions, and where a window's time goes."""
    whole = 2 * WIDTH + GAP + 2 * LEFT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {HEIGHT + TOP + BOTTOM}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{whole}" height="{HEIGHT + TOP + BOTTOM}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
        *_lines(rows, LEFT),
        *_bars(rows, LEFT + WIDTH + GAP),
        "</svg>",
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _lines(rows: Sequence[Mapping[str, Any]], left: int) -> list[str]:
    top = 1.1 * max(each["added_latency_ms"]["p99"] for each in rows) or 1.0
    parts = _frame(left, top, "added latency, ms", [each["sessions"] for each in rows])
    for index, name in enumerate(QUANTILES):
        places = [
            f"{_x(left, k, len(rows)):.1f},{_y(each['added_latency_ms'][name], top):.1f}"
            for k, each in enumerate(rows)
        ]
        colour = COLOURS[index]
        points = " ".join(places)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        for x, y in (place.split(",") for place in places):
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        parts.append(_key(left, index, name, colour))
    return parts


def _bars(rows: Sequence[Mapping[str, Any]], left: int) -> list[str]:
    stages = list(dict.fromkeys(name for each in rows for name in each["stage_ms"]))
    top = 1.1 * max(sum(each["stage_ms"].values()) for each in rows) or 1.0
    parts = _frame(left, top, "a window's time by stage (median), ms", [each["sessions"] for each in rows])
    width = min(60.0, 0.6 * WIDTH / len(rows))
    for k, each in enumerate(rows):
        below = 0.0
        for index, name in enumerate(stages):
            value = each["stage_ms"].get(name, 0.0)
            high, low = _y(below + value, top), _y(below, top)
            parts.append(
                f'<rect x="{_x(left, k, len(rows)) - width / 2:.1f}" y="{high:.1f}" width="{width:.1f}" '
                f'height="{low - high:.1f}" fill="{COLOURS[index % len(COLOURS)]}"/>'
            )
            below += value
    parts += [_key(left, index, name, COLOURS[index % len(COLOURS)]) for index, name in enumerate(stages)]
    return parts


def _frame(left: int, top: float, title: str, counts: Sequence[int]) -> list[str]:
    parts = [f'<text x="{left}" y="{TOP - 6}">{escape(title)}</text>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(share * top, top)
        parts.append(f'<line x1="{left}" x2="{left + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{share * top:.0f}</text>')
    for k, count in enumerate(counts):
        x = _x(left, k, len(counts))
        parts.append(f'<text x="{x:.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{count}</text>')
    parts.append(
        f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 34}" text-anchor="middle">sessions at once</text>'
    )
    return parts


def _key(left: int, index: int, name: str, colour: str) -> str:
    y = TOP + 14 + 16 * index
    return (
        f'<rect x="{left + WIDTH + 6}" y="{y - 9}" width="10" height="10" fill="{colour}"/>'
        f'<text x="{left + WIDTH + 20}" y="{y}">{escape(name)}</text>'
    )


def _x(left: int, k: int, count: int) -> float:
    return left + WIDTH * (k + 0.5) / count


def _y(value: float, top: float) -> float:
    return TOP + HEIGHT * (1 - value / top)
