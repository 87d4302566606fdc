"""One evaluation: every clip dubbed with every voice, re-tracked from the file and measured."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from retalk_models.engine import Engine, Idle, load_engine
from retalk_models.evaluation.pictures import PictureMeter
from retalk_models.evaluation.sheet import column, sheet
from retalk_models.evaluation.sync import SyncMeter
from retalk_models.evaluation.told import LoudnessSpeech
from retalk_models.picture import U8
from retalk_models.talkin.basis import ExpressionBasis
from stream.errors import InputError
from stream.evaluate.manifest import Clip, read_manifest
from stream.evaluate.material import Subject, pictures, subject, track
from stream.evaluate.page import Figure, write_page
from stream.evaluate.rebuild import Rebuilt, SpeechDriven, rebuild
from stream.evaluate.scores import LipScore, LipTracks, mean_of, score_lips
from stream.evaluate.tap import TapEngine
from stream.offline import dub

_T = TypeVar("_T")

REPORT, PAGE = "report.json", "report.html"

Progress = Callable[[int, int | None], None]
"""Called with the steps done and how many there are."""

_CELL = 128
_EVEN, _WORST = 8, 4


@dataclass(frozen=True, slots=True)
class Options:
    """How to evaluate.

    dubs: a folder of dubs made elsewhere, SOURCE__VOICE.mp4; nothing is dubbed then. against: an earlier
    report.json whose means are shown beside. baseline: also dub with a loudness-driven mouth.
    keep: write the dubs into dubs/ in the report's folder, and leave them there. look_ahead_ms: see
    load_engine.
    """

    engine: Engine | str = "talkin"
    device: str = "auto"
    dubs: Path | None = None
    against: Path | None = None
    baseline: bool = True
    keep: bool = False
    look_ahead_ms: int | None = None


def evaluate(where: Path, out: Path, options: Options, progress: Progress | None = None) -> dict[str, Any]:
    """Measure, write report.json and report.html into `out`, and return the report.

    Raises InputError for whatever is wrong with the manifest, a clip, a dub or an earlier report.
    """
    clips = read_manifest(where)
    earlier = _earlier(options.against)
    _check_dubs(options.dubs, clips)
    _make_folder(out)
    engine = options.engine
    if isinstance(engine, str):
        engine = load_engine(engine, options.device, options.look_ahead_ms)
    work = _Work(engine, SyncMeter.load(), options, progress, 2 * len(clips) + len(clips) ** 2)
    subjects = [work.done(subject(clip)) for clip in clips]
    with tempfile.TemporaryDirectory(prefix=".dubs-", dir=out) as scratch:
        folder = Path(scratch)
        if options.keep and options.dubs is None:
            # There at once and not at the end: an evaluation that is cut short leaves what --dubs can use.
            folder = out / "dubs"
            folder.mkdir(exist_ok=True)
        pairs, figures = [], []
        for source, voice in product(subjects, subjects):
            pair, figure = work.pair(source, voice, folder, Path(scratch))
            pairs.append(pair)
            figures.append(work.done(figure))
        rebuilt = {one.label: work.done(work.rebuild(one)) for one in subjects}
    report: dict[str, Any] = {
        "engine": engine.name,
        "device": engine.device,
        "weights": dict(engine.weights) if options.dubs is None else {},
        "dubs": str(options.dubs) if options.dubs else None,
        "clips": [
            {"label": one.label, "path": str(one.clip.path), "frames": len(one.tracked.points)}
            | {"own_sync": work.meter.score(one.truth, one.sound)}
            for one in subjects
        ],
        "pairs": pairs,
        "self_reconstruction": {label: asdict(one) if one else None for label, one in rebuilt.items()},
    }
    report["means"] = means(report)
    report = plain(report)
    (out / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_page(out / PAGE, report, figures, earlier)
    return report


class _Work:
    """What all pairs share."""

    def __init__(
        self, engine: Engine, meter: SyncMeter, options: Options, progress: Progress | None, steps: int
    ) -> None:
        self._engine, self.meter, self._options = engine, meter, options
        self._progress, self._steps, self._finished = progress, steps, 0
        self._loud: Engine | None = None
        if options.baseline and options.dubs is None and isinstance(engine, SpeechDriven):
            self._loud = engine.with_speech(LoudnessSpeech(ExpressionBasis.load().size))

    def done(self, what: _T) -> _T:
        self._finished += 1
        if self._progress is not None:
            self._progress(self._finished, self._steps)
        return what

    def rebuild(self, one: Subject) -> Rebuilt | None:
        if self._options.dubs is not None or not isinstance(self._engine, SpeechDriven):
            return None
        return rebuild(self._engine, one)

    def pair(
        self, source: Subject, voice: Subject, folder: Path, scratch: Path
    ) -> tuple[dict[str, Any], Figure]:
        """One ordered pair: its figures for the report, and its plots and sheets."""
        name = dub_name(source.label, voice.label)
        drawn: dict[str, Any] | None = None
        time: dict[str, Any] | None = None
        if self._options.dubs is not None:
            path = self._options.dubs / name
        else:
            path = folder / name
            meter = PictureMeter(source.tracked.points)
            tap = TapEngine(self._engine, meter)
            _dub(source, voice, path, tap)
            drawn = asdict(meter.score())
            time = _time(tap)
        lips, tracks = score_lips(track(path).lips(), source, voice, self.meter)
        written = PictureMeter(source.tracked.points)
        columns, worst = _look(path, source, tracks, written)
        loud = self._loudness(source, voice, scratch / "loud.mp4")
        row = {
            "source": source.label,
            "voice": voice.label,
            "lips": asdict(lips),
            "loudness_mouth": asdict(loud) if loud else None,
            "drawn": drawn,
            "written": asdict(written.score()),
            "time": time,
        }
        return row, Figure(f"{source.label} speaks {voice.label}", tracks, columns, worst)

    def _loudness(self, source: Subject, voice: Subject, path: Path) -> LipScore | None:
        if self._loud is None:
            return None
        _dub(source, voice, path, self._loud)
        try:
            return score_lips(track(path).lips(), source, voice, self.meter)[0]
        finally:
            path.unlink()


def dub_name(source: str, voice: str) -> str:
    """What the dub of one clip with another's voice is called."""
    return f"{source}__{voice}.mp4"


def _dub(source: Subject, voice: Subject, path: Path, engine: Engine) -> None:
    # No mark: it would be counted as a change. The dubs are for measuring and go when that is done.
    dub(source.clip.path, voice.clip.path, path, engine=engine, idle=Idle.REST, mark=False)


def _time(tap: TapEngine) -> dict[str, Any]:
    frames = max(1, tap.frames)
    stages = {name: value / frames for name, value in tap.stage_ms.items()}
    return {"ms_per_frame": 1000 * tap.busy_s / frames, "stage_ms_per_frame": stages}


def _look(path: Path, source: Subject, tracks: LipTracks, meter: PictureMeter) -> tuple[U8, U8 | None]:
    """Fill a meter from the written file, and make its contact sheets: evenly over time, and the worst
    frames."""
    points, seconds = source.tracked.points, source.tracked.seconds
    both = zip(pictures(source.clip.path), pictures(path), strict=False)
    cells: list[U8] = []
    for index, ((second, own), (_, dubbed)) in enumerate(both):
        meter.add(index, own, dubbed)
        face = points[index] if index < len(points) else None
        cells.append(column(own, dubbed, face, f"{second:.2f} s", _CELL))
    if not cells:
        raise InputError(path, "it has no frame in common with its source", "give the dub of that clip")
    even = [cells[i] for i in np.linspace(0, len(cells) - 1, min(_EVEN, len(cells))).astype(int)]
    found: list[tuple[int, str]] = []
    distance = np.nan_to_num(np.interp(seconds, tracks.at, np.nan_to_num(tracks.distance), left=0, right=0))
    for title, badness in (("lips", distance[: len(cells)]), ("flicker", meter.frame_flicker[: len(cells)])):
        found += [(index, title) for index in _peaks(badness, _WORST)]
    worst = [cells[index] for index, _ in found]
    return sheet(even), sheet(worst) if worst else None


def _peaks(badness: np.ndarray[tuple[int, ...], np.dtype[np.float64]], count: int) -> list[int]:
    """Indices of the worst frames, worst first, no two within five frames of each other."""
    left = badness.astype(np.float64).copy()
    out: list[int] = []
    while len(out) < count and len(left) and left.max() > 0:
        index = int(left.argmax())
        out.append(index)
        left[max(0, index - 5) : index + 6] = 0
    return out


_LIPS = tuple(one.name for one in fields(LipScore) if one.name not in ("seconds", "closures"))


def means(report: Mapping[str, Any]) -> dict[str, Any]:
    """Means over cross pairs and over own pairs, of every measure, by group of measures."""
    out: dict[str, Any] = {}
    pairs: Sequence[Mapping[str, Any]] = report["pairs"]
    groups = {
        "cross": [pair for pair in pairs if pair["source"] != pair["voice"]],
        "own": [pair for pair in pairs if pair["source"] == pair["voice"]],
    }
    for group, rows in groups.items():
        out[group] = {
            part: _means([row[part] for row in rows if row[part] is not None])
            for part in ("lips", "loudness_mouth", "drawn", "written", "time")
        }
    rebuilt = [one for one in report["self_reconstruction"].values() if one is not None]
    out["self_reconstruction"] = _means(rebuilt)
    return out


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = [name for name in (rows[0] if rows else ()) if isinstance(rows[0][name], int | float)]
    return {name: mean_of([row[name] for row in rows]) for name in names}


def plain(value: Any) -> Any:
    """The same with null for what is not a number, and few digits."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def summary(report: Mapping[str, Any]) -> str:
    """The means in one line of text for a terminal."""
    group = "cross" if any(report["means"]["cross"]["lips"].values()) else "own"
    held = report["means"][group]["lips"]
    parts = [f"{name} {value:.2f}" for name, value in held.items() if value is not None]
    return f"{group} pairs: {', '.join(parts)}"


def _earlier(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    right = "give the report.json of an earlier evaluation"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(path, f"it cannot be read ({error})", right) from None
    if not isinstance(held, dict) or not isinstance(held.get("means"), dict):
        raise InputError(path, "it holds no means", right)
    return held


def _check_dubs(folder: Path | None, clips: Sequence[Clip]) -> None:
    if folder is None:
        return
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "give a folder of dubs, SOURCE__VOICE.mp4")
    for source, voice in product(clips, clips):
        path = folder / dub_name(source.label, voice.label)
        if not path.is_file():
            raise InputError(path, "no such dub", f"dub {source.path} with {voice.path} into it")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(out, f"no report can be written there ({reason})", "name another folder") from None
