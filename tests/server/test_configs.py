from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from server.settings import Settings, load_settings


def test_the_default_file_shows_every_key_with_its_default(repository: Path) -> None:
    path = repository / "configs" / "default.yaml"
    shown = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(shown) == list(Settings.model_fields)
    assert load_settings([path], environment={}) == Settings()


def test_every_key_of_the_default_file_is_explained(repository: Path) -> None:
    lines = (repository / "configs" / "default.yaml").read_text(encoding="utf-8").splitlines()
    # max_latency_budget_ms shares its line of explanation with the key above it.
    unexplained = [
        line
        for before, line in pairwise(lines)
        if line and not line.startswith(("#", "max_latency")) and not before.startswith("#")
    ]
    assert unexplained == []


@pytest.mark.parametrize("name", ["cpu", "gpu", "presenter"])
def test_the_other_files_change_the_default(
    repository: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "presenters").mkdir()
    monkeypatch.chdir(tmp_path)
    files = [repository / "configs" / f"{one}.yaml" for one in ("default", name)]
    assert load_settings(files, environment={}) != Settings()
