"""Model files that are not shipped: where they come from and under which terms, kept and checked."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from retalk_models.download import Digest, DownloadError, Progress, digest, download

logger = logging.getLogger(__name__)

LEDGER = "checkpoints.json"


class CheckpointError(ValueError):
    """A model file is missing or not what it was. The message says which, why, and what to do."""


class MissingCheckpointsError(CheckpointError):
    """Model files are not there: one line each with its terms, and the command that gets them."""

    lines_matter = True

    def __init__(self, missing: tuple[CheckpointFile, ...], folder: Path, command: str) -> None:
        self.missing = missing
        lines = [f"  {file.name}: {file.purpose}. Terms: {file.terms}" for file in missing]
        super().__init__(
            "\n".join([f"model files are missing in {folder}:", *lines, f"get them with: {command}"])
        )


class TermsDeclinedError(CheckpointError):
    """The terms of a file were not agreed to, so it was not downloaded."""


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """One file of a release.

    purpose: what it is for. terms: licence and conditions, shown before the first download.
    inspect: raises ValueError, naming the file, unless it holds what it should.
    published: size and hash where they are known in advance; else those of the first copy used are recorded
    and enforced from then on.
    """

    name: str
    address: str
    purpose: str
    terms: str
    inspect: Callable[[Path], object] | None = None
    published: Digest | None = None


class State(StrEnum):
    """What `CheckpointStore.verify` found."""

    MISSING = "missing"
    GOOD = "good"
    CHANGED = "changed"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Verdict:
    """detail: one line on why, empty where the file is good. found: None where it is missing."""

    name: str
    state: State
    detail: str = ""
    found: Digest | None = None


def default_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """RETALK_MODELS if set, else `retalk/models` in the user's cache folder."""
    if named := environment.get("RETALK_MODELS"):
        return Path(named).expanduser()
    cache = environment.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "retalk" / "models"


class CheckpointStore:
    """A folder of model files and the ledger of their sizes and hashes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, file: CheckpointFile) -> Path:
        return self.folder / file.name

    def missing(self, files: Iterable[CheckpointFile]) -> tuple[CheckpointFile, ...]:
        """Those that are not there. Raises CheckpointError where that cannot be found out."""
        return tuple(file for file in files if not self._is_there(file))

    def require(self, files: Iterable[CheckpointFile], command: str) -> dict[str, Path]:
        """Paths by file name. Raises MissingCheckpointsError naming every missing one, or as `use` does."""
        files = tuple(files)
        if missing := self.missing(files):
            raise MissingCheckpointsError(missing, self.folder, command)
        return {file.name: self.use(file) for file in files}

    def known(self, file: CheckpointFile) -> Digest | None:
        """Size and hash that the file must have: published, or recorded at its first use."""
        if file.published is not None:
            return file.published
        entry = self._ledger().get(file.name)
        return None if entry is None else Digest(entry.size, entry.sha256)

    def use(self, file: CheckpointFile) -> Path:
        """The file's path, once its hash is the known one or, at its first use, inspected and recorded.

        A file is read once in a process for this, as long as nobody touches it. Raises CheckpointError.
        """
        verdict = self._judge(file, self._read_before(file))
        if verdict.state is not State.GOOD:
            raise CheckpointError(verdict.detail)
        return self.path(file)

    def verify(self, file: CheckpointFile) -> Verdict:
        """Read one file and compare it with what is known. One that is good and not yet known is recorded.

        Raises CheckpointError for a file or a ledger that cannot be read.
        """
        return self._judge(file, None)

    def _is_there(self, file: CheckpointFile) -> bool:
        try:
            return self.path(file).is_file()
        except OSError as error:
            raise _unreadable(self.path(file), error) from None

    def _read_before(self, file: CheckpointFile) -> Digest | None:
        """What a file that was good in this process had, if it has not been touched since."""
        path = self.path(file)
        try:
            then, found = _GOOD[path]
            return found if then == _signature(path) else None
        except (KeyError, OSError):
            return None

    def _judge(self, file: CheckpointFile, found: Digest | None) -> Verdict:
        """found: what the file is known to have, and to have passed inspection; None has it read."""
        path = self.path(file)
        if not self._is_there(file):
            return Verdict(file.name, State.MISSING, f"{file.name} is not in {self.folder}")
        inspected, known = found is not None, self.known(file)
        try:
            signature = _signature(path)
            found = digest(path) if found is None else found
        except OSError as error:
            raise _unreadable(path, error) from None
        if known is not None and known != found:
            detail = (
                f"{file.name} in {self.folder} has SHA-256 {found.sha256} ({found.size} bytes) "
                f"and should have {known.sha256} ({known.size} bytes); delete it and get it again"
            )
            return Verdict(file.name, State.CHANGED, detail, found)
        if known is None and not inspected:
            try:
                if file.inspect is not None:
                    file.inspect(path)
            except ValueError as error:
                return Verdict(file.name, State.BAD, f"{error}; delete it and get it again", found)
            self._record(file.name, found)
        _GOOD[path] = signature, found
        return Verdict(file.name, State.GOOD, "", found)

    def pull(
        self,
        file: CheckpointFile,
        *,
        agree: Callable[[CheckpointFile], bool],
        progress: Progress = lambda have, total: None,
        pause: Callable[[float], None] = time.sleep,
    ) -> Path:
        """The file's path, downloading it first if it is not there.

        agree: asked before a download, with the terms to show. progress: called with bytes had and in all.
        Raises TermsDeclinedError where `agree` says no, CheckpointError for what is wrong with the file, and
        DownloadError for what is wrong on the way.
        """
        if self.path(file).is_file():
            return self.use(file)
        if not agree(file):
            raise TermsDeclinedError(
                f"{file.name} was not downloaded: its terms were not agreed to ({file.terms})"
            )
        known = self.known(file)
        try:
            found = download(
                file.address,
                self.path(file),
                expected=known,
                inspect=file.inspect if known is None else None,
                progress=progress,
                pause=pause,
            )
        except DownloadError:
            raise
        except ValueError as error:
            raise CheckpointError(f"what {file.address} gave was deleted: {error}") from None
        if known is None:
            self._record(file.name, found)
        return self.path(file)

    def _ledger(self) -> dict[str, Digest]:
        path = self.folder / LEDGER
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            return {name: Digest(int(entry["size"]), str(entry["sha256"])) for name, entry in held.items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _unreadable(path, error) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(
                f"{path} is not a readable ledger of model files; delete it to have it written anew"
            ) from None

    def _record(self, name: str, found: Digest) -> None:
        """Enter a file in the ledger; where that cannot be written it is only said, for the file is good."""
        try:
            with self._locked():
                ledger = self._ledger() | {name: found}
                text = json.dumps(
                    {key: {"size": d.size, "sha256": d.sha256} for key, d in sorted(ledger.items())}, indent=1
                )
                scratch = self.folder / f"{LEDGER}.{os.getpid()}"
                scratch.write_text(text + "\n", encoding="utf-8")
                scratch.replace(self.folder / LEDGER)
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s): that %s has SHA-256 %s will not be remembered",
                self.folder / LEDGER,
                error.strerror or error,
                name,
                found.sha256,
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """While it lasts no other process changes the ledger."""
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


_Signature = tuple[int, int, int, int]

_GOOD: dict[Path, tuple[_Signature, Digest]] = {}
"""Files that were read and found good in this process, as they were then."""


def _signature(path: Path) -> _Signature:
    """What changes when a file does, found out without reading it."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read: {error.strerror or error}")
