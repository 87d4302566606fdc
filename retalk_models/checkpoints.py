"""Which weights are here, and whether each is the file that was shipped."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
"""Where the weights that this project trained itself live."""

SUMS = "SHA256SUMS"
"""Name of the list of hashes beside the weights, as `sha256sum` writes and checks it."""


@dataclass(frozen=True, slots=True)
class Weights:
    """One weight file.

    name: the file's name without its suffix.
    expected: SHA-256 in hexadecimal, as SHA256SUMS lists it; empty where it is not listed.
    actual: SHA-256 of what is there; empty where nothing is.
    """

    name: str
    path: Path
    expected: str
    actual: str

    @property
    def fault(self) -> str:
        """What is wrong with the file, as a phrase that follows its name; empty where nothing is."""
        if not self.actual:
            return "is missing"
        if not self.expected:
            return f"is not listed in {SUMS}"
        if self.actual != self.expected:
            return f"is not the file that was shipped (SHA-256 {self.actual[:12]}, not {self.expected[:12]})"
        return ""


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bundled(folder: Path = WEIGHTS) -> tuple[Weights, ...]:
    """Every weight file that is listed or lies in the folder, sorted by name."""
    listed = _listed(folder / SUMS)
    names = listed.keys() | {path.name for path in folder.glob("*.safetensors")}
    return tuple(
        Weights(
            name=Path(name).stem,
            path=folder / name,
            expected=listed.get(name, ""),
            actual=sha256(folder / name) if (folder / name).is_file() else "",
        )
        for name in sorted(names)
    )


def find(name: str, folder: Path = WEIGHTS) -> Weights | None:
    """The weights of that name, with the file's suffix or without; None where there are none."""
    return next((one for one in bundled(folder) if name in (one.name, one.path.name)), None)


def _listed(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    entries = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line)
    # sha256sum marks binary mode by a star before the name.
    return {name.strip().removeprefix("*"): digest for digest, name in entries}
