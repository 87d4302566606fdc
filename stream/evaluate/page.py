"""The report as one page that needs nothing but itself: tables, plots as SVG, contact sheets as data."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from retalk_models.evaluation.series import F64
from retalk_models.picture import U8
from stream.evaluate.scores import LipTracks

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;max-width:1440px;padding:1.5rem;color:#1c1c1e}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:2.2rem 0 .4rem}p{max-width:75ch;color:#444}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.5rem 0}.wide{overflow-x:auto}
th,td{padding:.22rem .55rem;text-align:right;border-bottom:1px solid #e3e3e6;white-space:nowrap}
th{font-weight:600;color:#555}th:first-child,td:first-child,td.name{text-align:left}
td.ok{color:#0a6b2d}td.no{color:#b3261e}small{color:#666}
img,svg{max-width:100%;height:auto;display:block;margin:.3rem 0}
"""

_COLOURS = {"true lips": "#1c1c1e", "dub": "#d4380d", "source's own": "#8c8c94", "loudness": "#2f6fdb"}
_WIDTH, _HEIGHT = 1060, 150


@dataclass(frozen=True, slots=True)
class Measure:
    """How a figure is shown. least, most: what was asked of it, where anything was."""

    part: str
    name: str
    title: str
    form: str = ".2f"
    least: float | None = None
    most: float | None = None

    def ok(self, value: float) -> bool | None:
        if self.least is None and self.most is None:
            return None
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def asked(self) -> str:
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        if self.least is not None:
            return f"at least {self.least:g}"
        return "" if self.most is None else f"at most {self.most:g}"


LIP_MEASURES = (
    Measure("lips", "r", "opening r", least=0.55),
    Measure("lips", "lag_ms", "lag, ms", ".0f", -40, 40),
    Measure("lips", "leak", "leak", most=0.15),
    Measure("lips", "amplitude", "amplitude ratio", least=0.7, most=1.4),
    Measure("lips", "sync", "sync score", least=0.45),
    Measure("lips", "closure_recall", "closure recall", least=0.8),
    Measure("lips", "false_closure", "false closures", ".3f", most=0.05),
    Measure("lips", "landmarks", "landmark distance, %"),
)
PICTURE_MEASURES = (
    Measure("drawn", "sharpness", "sharpness", least=0.9),
    Measure("drawn", "flicker", "flicker, skin", most=1.15),
    Measure("drawn", "lip_flicker", "flicker, lips"),
    Measure("drawn", "seam", "seam, levels/px"),
    Measure("drawn", "psnr", "mouth PSNR, dB", ".1f"),
    Measure("drawn", "ssim", "mouth SSIM", ".3f"),
    Measure("drawn", "outside_samples", "samples changed outside", ".0f", most=0),
    Measure("drawn", "eyes", "change at the eyes", ".3f"),
    Measure("written", "sharpness", "sharpness, file"),
    Measure("written", "outside_psnr", "outside PSNR, file, dB", ".1f"),
    Measure("time", "ms_per_frame", "engine, ms a frame", ".1f"),
)
REBUILT_MEASURES = (
    Measure("", "psnr", "PSNR, dB"),
    Measure("", "undone_psnr", "PSNR left undone, dB"),
    Measure("", "ssim", "SSIM", ".3f"),
    Measure("", "undone_ssim", "SSIM left undone", ".3f"),
    Measure("", "frames", "frames", ".0f"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """One pair's plots and contact sheets (RGB; the second: four worst by lips, four by flicker)."""

    title: str
    tracks: LipTracks
    even: U8
    worst: U8 | None


def write_page(
    path: Path, report: Mapping[str, Any], figures: Sequence[Figure], earlier: Mapping[str, Any] | None
) -> None:
    """Write the page of a report (as plain JSON types) to a file."""
    what = f"engine {report['engine']} on {report['device']}"
    if report["dubs"]:
        what = f"dubs in {report['dubs']}"
    body = [
        f"<h1>retalk eval: {escape(what)}</h1>",
        "<p>Every clip dubbed with every voice, re-tracked from the written file by a Face Mesh of its own. "
        "Lips are compared with the true lips of the voice; pictures with the source's. docs/evaluation.md "
        "defines each measure. This page shows identifiable people: keep it where they would want it.</p>",
        *_summary(report, earlier),
        "<h2>Lips, pair by pair</h2>",
        _pairs(report["pairs"], LIP_MEASURES),
        "<h2>Pictures, pair by pair</h2>",
        _pairs(report["pairs"], PICTURE_MEASURES),
        *_rebuilt(report),
    ]
    for figure in figures:
        body += _figure(figure)
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>retalk eval</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )
    path.write_text(text, encoding="utf-8")


def _summary(report: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> list[str]:
    """Means over pairs of different people: the dub, a loudness-driven mouth, an earlier report, what is
    asked."""
    cross = report["means"]["cross"]
    group = "cross" if any(cross["lips"].values()) else "own"
    now = report["means"][group]
    before = earlier["means"].get(group, {}) if earlier else None
    head = ["measure", "this", "loudness-driven mouth", *(["earlier"] if earlier else []), "asked"]
    rows = []
    for measure in (*LIP_MEASURES, *PICTURE_MEASURES):
        value = now.get(measure.part, {}).get(measure.name)
        loud = now.get("loudness_mouth", {}).get(measure.name) if measure.part == "lips" else None
        cells = [_cell(value, measure), _cell(loud, measure, plain=True)]
        if before is not None:
            cells.append(_cell(before.get(measure.part, {}).get(measure.name), measure, plain=True))
        rows.append([f"<td>{escape(measure.title)}</td>", *cells, f"<td>{escape(measure.asked)}</td>"])
    people = "different people" if group == "cross" else "each clip with its own voice"
    return [f"<h2>Means, {people}</h2>", _table(head, rows)]


def _pairs(pairs: Sequence[Mapping[str, Any]], measures: Sequence[Measure]) -> str:
    shown = [one for one in measures if any(pair[one.part] is not None for pair in pairs)]
    rows = []
    for pair in pairs:
        cells = [f'<td>{escape(pair["source"])}</td><td class="name">{escape(pair["voice"])}</td>']
        rows.append(cells + [_cell((pair[one.part] or {}).get(one.name), one) for one in shown])
    return _table(["source", "voice", *(one.title for one in shown)], rows)


def _rebuilt(report: Mapping[str, Any]) -> list[str]:
    held = {label: one for label, one in report["self_reconstruction"].items() if one is not None}
    if not held:
        return []
    rows = [
        [f"<td>{escape(label)}</td>", *(_cell(one[measure.name], measure) for measure in REBUILT_MEASURES)]
        for label, one in held.items()
    ]
    return [
        "<h2>Self-reconstruction: the clip's own expression drawn onto its frames of 240 ms ago</h2>",
        _table(["clip", *(one.title for one in REBUILT_MEASURES)], rows),
    ]


def _cell(value: float | None, measure: Measure, plain: bool = False) -> str:
    if value is None:
        return "<td>-</td>"
    ok = None if plain else measure.ok(value)
    kind = "" if ok is None else ' class="ok"' if ok else ' class="no"'
    return f"<td{kind}>{value:{measure.form}}</td>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(figure: Figure) -> list[str]:
    tracks = figure.tracks
    loud = tracks.loudness / max(1e-9, float(np.nanmax(tracks.loudness, initial=0.0)))
    top = float(np.nanmax(np.concatenate([tracks.truth, tracks.dub, [0.02]])))
    lines = {
        "loudness": loud * top,
        "source's own": tracks.own,
        "true lips": tracks.truth,
        "dub": tracks.dub,
    }
    out = [
        f"<h2>{escape(figure.title)}</h2>",
        "<small>Lip opening over face height, by second; loudness scaled to it</small>",
        plot(tracks.at, lines, 0.0, top),
        "<small>r of the dub with the true lips by lag in seconds; + where the dub is late</small>",
        plot(tracks.lags, {"dub": tracks.lag_r}, -0.5, 1.0, height=90, mark=0.0),
        "<small>Source and its mouth, dub and its mouth</small>",
        _image(figure.even),
    ]
    if figure.worst is not None:
        out += ["<small>The worst frames: by lips, then by flicker</small>", _image(figure.worst)]
    return out


def plot(
    x: F64,
    lines: Mapping[str, F64],
    low: float,
    high: float,
    height: int = _HEIGHT,
    mark: float | None = None,
) -> str:
    """Lines over x as one SVG; NaN breaks a line. low, high: the range of y. mark: an x to draw a line at."""
    if len(x) < 2:
        return ""
    across = 40 + (_WIDTH - 50) * (x - x[0]) / max(1e-9, float(x[-1] - x[0]))
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height + 40}" role="img">']
    for share in (0.0, 0.5, 1.0):
        y = 10 + (height - 10) * (1 - share)
        parts.append(f'<path d="M40 {y:.0f}H{_WIDTH - 10}" stroke="#e3e3e6"/>')
        value = low + share * (high - low)
        parts.append(f'<text x="34" y="{y + 4:.0f}" {_TEXT} text-anchor="end">{value:.2f}</text>')
    for value in _ticks(float(x[0]), float(x[-1])):
        at = float(np.interp(value, x, across))
        parts.append(
            f'<text x="{at:.0f}" y="{height + 16}" {_TEXT} text-anchor="middle">{value + 0.0:g}</text>'
        )
    if mark is not None:
        at = float(np.interp(mark, x, across))
        parts.append(f'<path d="M{at:.1f} 10V{height}" stroke="#8c8c94" stroke-dasharray="3 3"/>')
    for index, (name, values) in enumerate(lines.items()):
        down = 10 + (height - 10) * (1 - (np.clip(values, low, high) - low) / max(1e-9, high - low))
        colour = _COLOURS.get(name, "#d4380d")
        parts.append(f'<path d="{_path(across, down)}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        left = 48 + 130 * index
        parts.append(f'<text x="{left}" y="{height + 34}" {_TEXT} fill="{colour}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


_TEXT = 'font-size="11"'


def _path(x: F64, y: F64) -> str:
    out, pen = [], "M"
    for across, down in zip(x, y, strict=True):
        if np.isfinite(down):
            out.append(f"{pen}{across:.1f} {down:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(out)


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 8
    step = 10 ** np.floor(np.log10(max(rough, 1e-6)))
    step *= next(times for times in (1, 2, 5, 10) if step * times >= rough)
    return [round(float(value), 6) for value in np.arange(np.ceil(low / step) * step, high + 1e-9, step)]


def _image(rgb: U8) -> str:
    encoded, data = cv2.imencode(".jpg", rgb[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    if not encoded:
        raise RuntimeError("a contact sheet could not be encoded")
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode("ascii")}">'
