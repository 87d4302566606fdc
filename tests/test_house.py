"""The house itself: which way imports go, what may be tracked, and that what the pages promise is there."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from server.cli import app

ROOMS = ("retalk_models", "stream", "server")
"""Bottom first: a room may import itself and what stands before it."""

LARGEST_BYTES = 12_000_000
FOOTAGE = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mjpeg", ".y4m", ".jpg", ".jpeg"}


def tracked(repository: Path) -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    return [repository / name for name in listing.split("\0") if name and (repository / name).is_file()]


def imported_rooms(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        yield from (name.partition(".")[0] for name in names)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(repository: Path, room: str) -> None:
    above = set(ROOMS[ROOMS.index(room) + 1 :]) | {"tests", "benchmarks"}
    modules = sorted((repository / room).rglob("*.py"))
    assert modules, f"{room}/ holds no module"
    upward = [
        f"{path.relative_to(repository)} imports {name}"
        for path in modules
        for name in imported_rooms(path)
        if name in above
    ]
    assert upward == []


def test_the_stream_and_the_models_know_no_network(repository: Path) -> None:
    network = {"aiortc", "aioice", "starlette", "uvicorn", "websockets", "httpx", "socket"}
    found = [
        f"{path.relative_to(repository)} imports {name}"
        for room in ("stream", "retalk_models")
        for path in sorted((repository / room).rglob("*.py"))
        for name in imported_rooms(path)
        if name in network
    ]
    assert found == []


def test_no_footage_and_nothing_big_is_tracked(repository: Path) -> None:
    files = tracked(repository)
    assert [path.name for path in files if path.suffix.lower() in FOOTAGE] == []
    assert [path.name for path in files if path.stat().st_size > LARGEST_BYTES] == []


def test_no_path_of_one_machine_is_tracked(repository: Path) -> None:
    pattern = re.compile(rb"/(?:work|home|Users|root)/[a-z]")
    found = [
        str(path.relative_to(repository))
        for path in tracked(repository)
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".js", ".txt", ".html", ""}
        and pattern.search(path.read_bytes())
    ]
    assert found == []


def readme_commands(repository: Path) -> list[list[str]]:
    text = (repository / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


def test_every_make_target_in_the_readme_exists(repository: Path) -> None:
    targets = {words[1] for words in readme_commands(repository) if words[:1] == ["make"]}
    assert {"run", "test"} <= targets
    for target in sorted(targets):
        subprocess.run(["make", "--dry-run", target], cwd=repository, capture_output=True, check=True)


def test_every_retalk_command_in_the_readme_exists(repository: Path) -> None:
    """Shell blocks and the table of commands: the command is there, and takes the options shown."""
    table = re.findall(r"^\| `(retalk .*?)` \|", (repository / "README.md").read_text("utf-8"), re.MULTILINE)
    shown = [words for words in readme_commands(repository) if words[0].endswith("/retalk")]
    shown += [shlex.split(re.sub(r"[][]|\\\|", " ", line)) for line in table]
    assert {words[1] for words in shown} >= {"serve", "dub", "bench", "doctor"}
    for words in shown:
        group: Any = typer.main.get_command(app)
        rest = words[1:]
        while hasattr(group, "commands"):
            assert rest[0] in group.commands, f"README.md shows `{' '.join(words)}`"
            group = group.commands[rest.pop(0)]
        known = {name for parameter in group.params for name in parameter.opts}
        options = {word.rstrip(".") for word in rest if word.startswith("-")}
        assert options <= known, f"README.md shows `{' '.join(words)}`"


def closure(
    requirements: Iterable[Requirement], without: frozenset[str], found: dict[str, str] | None = None
) -> dict[str, str]:
    """Installed versions of everything the requirements lead to, by canonical name."""
    found = {} if found is None else found
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        if name in without or name in found:
            continue
        installed = distribution(name)
        found[name] = installed.version.partition("+")[0]
        asked = [Requirement(text) for text in installed.requires or []]
        closure(
            [
                one
                for one in asked
                if one.marker is None
                or any(one.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras))
            ],
            without,
            found,
        )
    return found


def pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "==" in line]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_what_make_run_installs_is_complete_and_no_more(repository: Path) -> None:
    """`make` installs run.txt with --no-deps: what is missing there would only show at run time."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    torch = pins(repository / "requirements" / "torch.txt")
    run = pins(repository / "requirements" / "run.txt")
    never_imported = frozenset(pins(repository / "constraints.txt"))
    asked = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["demo"]]
    try:
        needed = closure(asked, never_imported)
    except PackageNotFoundError as missing:
        pytest.fail(f"{missing.name} is required and not installed: add it to requirements/run.txt")
    # A CUDA build of torch asks for NVIDIA's packages too; those are its own affair.
    assert {name for name in needed if not name.startswith(("nvidia-", "cuda-", "triton"))} == set(
        torch
    ) | set(run)


def test_every_file_of_the_packages_is_installed(repository: Path) -> None:
    """`pip install .` must serve the page and find the weights just as the checkout does."""
    tools = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    rooms = {pattern.rstrip("*") for pattern in tools["packages"]["find"]["include"]}
    patterns = ["*.py", *tools["package-data"]["*"]]
    left_out = [
        str(path.relative_to(repository))
        for path in tracked(repository)
        if path.relative_to(repository).parts[0] in rooms and not any(map(path.match, patterns))
    ]
    assert left_out == []


def test_the_version_is_said_once(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{project['version']}]" in changelog
