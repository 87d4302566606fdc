"""What may be written where, decided before any work is done."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from stream.errors import InputError


def check_film(film: Path, inputs: Sequence[Path]) -> None:
    """Raise InputError, one line, unless a film can be written there without harm to the inputs."""
    if film.suffix.lower() != ".mp4":
        raise InputError(film, "the output is an MP4 file", "give it a name that ends in .mp4")
    _check_place(film)
    if any(same_file(film, path) for path in inputs):
        raise InputError(film, "the output would replace an input", "give it another name")


def check_report(report: Path, film: Path, inputs: Sequence[Path]) -> None:
    """Raise InputError, one line, unless a report can be written there without harm to film and inputs."""
    _check_place(report)
    if any(same_file(report, path) for path in inputs):
        raise InputError(report, "the report would replace an input", "give it another name")
    if same_file(report, film):
        raise InputError(report, "the report would replace the film itself", "give it another name")


def same_file(one: Path, other: Path) -> bool:
    """Whether two names lead, or once written would lead, to one file."""
    try:
        return one.samefile(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def partial_beside(film: Path) -> Path:
    """Where a film grows until it is whole: in its folder, under a name that is never too long."""
    return film.with_name(f".retalk-{secrets.token_hex(8)}.partial.mp4")


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(path, "its folder does not exist", "create it first")
    try:
        there = path.exists()
    except OSError as error:
        raise InputError(path, f"it cannot be written ({error.strerror})", "give it another name") from None
    if there and not path.is_file():
        raise InputError(path, "it cannot be written, being no plain file", "choose another place")
    if not os.access(path.parent, os.W_OK) or (there and not os.access(path, os.W_OK)):
        raise InputError(path, "it cannot be written", "choose another place")
