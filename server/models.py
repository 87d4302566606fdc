"""What `retalk models` does with model files that are not shipped: list, pull, verify, path."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from retalk_models.checkpoints import WEIGHTS, bundled, find
from retalk_models.download import DownloadError
from retalk_models.store import CheckpointFile, CheckpointStore, State, default_folder
from server.console import ExitCode, progress

# The catalogue loads torch, which what is shipped can be asked about without.


def listing() -> Iterator[str]:
    """One line per weight file that is shipped and per model file that can be had."""
    for weights in bundled():
        size = weights.path.stat().st_size if weights.actual else 0
        yield f"{weights.name}  {size} bytes  {weights.actual or '-'}  {weights.fault or 'as shipped'}"
    from retalk_models.catalogue import catalogue

    store = CheckpointStore(default_folder())
    for group, files in catalogue().items():
        for file in files:
            known = store.known(file)
            if store.missing([file]):
                size, state = (
                    (known.size if known is not None else 0),
                    f"not here: retalk models pull {group}",
                )
            else:
                size, state = (
                    store.path(file).stat().st_size,
                    "here" if known is not None else "here, never used",
                )
            yield f"{file.name}  {size} bytes  {known.sha256 if known is not None else '-'}  {state}"


def pull(name: str, agreed: bool) -> ExitCode:
    """Download what is missing of a group, or one file; check what is there.

    agreed: the terms of all of them have been agreed to. Raises CheckpointError, TermsDeclinedError included.
    """
    from retalk_models.catalogue import choose

    store = CheckpointStore(default_folder())
    for file in choose(name):
        here = not store.missing([file])
        try:
            with progress(file.name, "MB") as show:
                path = store.pull(
                    file,
                    agree=lambda one: _agree(one, agreed),
                    progress=lambda have, total: show(have >> 20, None if total is None else total >> 20),
                )
        except DownloadError as error:
            print(f"retalk: {error}", file=sys.stderr)
            return ExitCode.FAULT
        known = store.known(file)
        digest = known.sha256 if known is not None else "-"
        print(f"{path}: {'was here' if here else 'downloaded'}, SHA-256 {digest}")
    return ExitCode.DONE


def _agree(file: CheckpointFile, agreed: bool) -> bool:
    print(f"{file.name}: {file.purpose}\n  from {file.address}\n  terms: {file.terms}", file=sys.stderr)
    if agreed:
        return True
    if not sys.stdin.isatty():
        print("  agree to them with --agree", file=sys.stderr)
        return False
    print("  Agree, and download it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def verify(name: str) -> ExitCode:
    """Compare a shipped weight file, a group or one model file with what it should be."""
    weights = find(name)
    if weights is not None:
        if weights.fault:
            print(f"{weights.path} {weights.fault}; restore it from the release", file=sys.stderr)
            return ExitCode.FAULT
        print(f"{weights.path.name}: as shipped, SHA-256 {weights.actual}")
        return ExitCode.DONE
    store = CheckpointStore(default_folder())
    code = ExitCode.DONE
    for file in _official(name):
        verdict = store.verify(file)
        if verdict.state is State.GOOD and verdict.found is not None:
            print(f"{file.name}: good, SHA-256 {verdict.found.sha256}")
        else:
            print(f"{verdict.detail}", file=sys.stderr)
            code = ExitCode.FAULT
    return code


def places(name: str | None) -> Iterator[str]:
    """The folder of the shipped weights, or where one file, or those of a group, are or would be."""
    if name is None:
        yield str(WEIGHTS)
        return
    weights = find(name)
    if weights is not None:
        yield str(weights.path)
        return
    store = CheckpointStore(default_folder())
    for file in _official(name):
        yield str(store.path(file))


def _official(name: str) -> tuple[CheckpointFile, ...]:
    """The files of a group, or the one of that name. Raises UnknownModelError."""
    from retalk_models.catalogue import UnknownModelError, choose

    try:
        return choose(name)
    except UnknownModelError as error:
        # The catalogue knows nothing of what is shipped, which every caller of this takes as well.
        raise UnknownModelError(f"{error}, {', '.join(one.name for one in bundled())}") from None
