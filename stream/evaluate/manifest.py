"""What is to be measured: a folder of clips, or a list of them as JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream.errors import InputError
from stream.files import AudioFile, VideoFile

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
"""Files of a folder that are taken for clips."""

_KEYS = ("path", "lips_minus_sound_ms", "label")
_RIGHT = "give a folder of clips, or path, lips_minus_sound_ms and label of each as JSON list or CSV"
_FARTHEST_MS = 1000.0


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip whose sound belongs to its lips.

    label: names it in the report; unique, letters, digits, `-`, `_` and `.`.
    lips_minus_sound_s: how much later (+) the lips are than the sound in the file.
    """

    path: Path
    label: str
    lips_minus_sound_s: float = 0.0


def read_manifest(where: Path) -> tuple[Clip, ...]:
    """The clips of a folder or a manifest, each seen to have a picture and sound. Paths are relative to the
    manifest.

    Raises InputError, naming the entry, for whatever is wrong.
    """
    if not where.exists():
        raise InputError(where, "no such folder or manifest", _RIGHT)
    if where.is_dir():
        clips = tuple(
            Clip(path, _label(path.stem)) for path in sorted(where.iterdir()) if path.suffix.lower() in VIDEOS
        )
        if not clips:
            raise InputError(where, f"no clip is in it ({', '.join(VIDEOS)})", _RIGHT)
    else:
        clips = tuple(_clip(where, number, row) for number, row in _rows(where))
        if not clips:
            raise InputError(where, "it lists no clip", _RIGHT)
    labels = [clip.label for clip in clips]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise InputError(where, f"two clips are both called {twice!r}", 'give each a "label" of its own')
    for clip in clips:
        VideoFile(clip.path).close()
        with AudioFile(clip.path):
            pass
    return clips


def _rows(where: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    kind = where.suffix.lower()
    if kind not in (".json", ".csv"):
        raise InputError(where, "its name ends in neither .json nor .csv", _RIGHT)
    try:
        text = where.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(where, f"it cannot be read as text ({error})", _RIGHT) from None
    if kind == ".csv":
        reader = csv.DictReader(io.StringIO(text))
        if "path" not in (reader.fieldnames or ()):
            raise InputError(where, "its first line names no column `path`", _RIGHT)
        yield from enumerate(reader, 1)
        return
    try:
        held = json.loads(text)
    except ValueError as error:
        raise InputError(where, f"it is not JSON ({error})", _RIGHT) from None
    rows = held.get("clips") if isinstance(held, dict) else held
    if not isinstance(rows, list):
        raise InputError(where, "it is no list of clips", _RIGHT)
    for number, row in enumerate(rows, 1):
        if isinstance(row, str):
            row = {"path": row}
        if not isinstance(row, dict):
            raise InputError(where, f"entry {number} is neither a path nor an object", _RIGHT)
        yield number, row


def _clip(where: Path, number: int, row: Mapping[Any, Any]) -> Clip:
    unknown = [str(key) for key in row if key not in _KEYS]
    if unknown:
        raise InputError(
            where, f"entry {number} has an unknown key {unknown[0]!r}", f"use {', '.join(_KEYS)}"
        )
    named = row.get("path")
    if not isinstance(named, str) or not named.strip():
        raise InputError(where, f"entry {number} has no path", _RIGHT)
    path = where.parent / named.strip()
    if not path.is_file():
        raise InputError(
            path, f"no such file, named by entry {number} of {where}", "give a path relative to it"
        )
    given = row.get("lips_minus_sound_ms")
    try:
        offset = 0.0 if given is None or given == "" else float(given)
    except (TypeError, ValueError):
        offset = math.nan
    if isinstance(given, bool) or not abs(offset) <= _FARTHEST_MS:
        raise InputError(
            where,
            f"entry {number} has lips_minus_sound_ms {given!r}",
            f"give milliseconds from -{_FARTHEST_MS:.0f} to {_FARTHEST_MS:.0f}",
        )
    label = row.get("label")
    return Clip(path, _label(label if isinstance(label, str) and label.strip() else path.stem), offset / 1000)


def _label(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text.strip())[:80] or "clip"
