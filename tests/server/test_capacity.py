from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from server.capacity import QUANTILES, carried, climb, plot, table
from stream.material import Material
from tests.stream.fakes import FakeEngine, flat_picture
from tests.stream.test_bench import burn


@pytest.fixture
def material() -> Material:
    voice = np.asarray(8000 * np.sin(np.arange(48_000) * 0.05), np.int16)
    return Material([flat_picture(luma) for luma in range(40, 60)], 25.0, voice)


def rows_of(*carried_ones: bool) -> list[dict[str, object]]:
    return [
        {
            "sessions": k + 1,
            "carried": ok,
            "fps": 25.0,
            "added_latency_ms": dict.fromkeys(QUANTILES, 80.0 * (k + 1)),
            "cores": 0.5,
            "low_share": 0.0,
            "stage_ms": {"track": 10.0, "a<b": 3.0},
        }
        for k, ok in enumerate(carried_ones)
    ]


def test_it_climbs_until_the_machine_cannot(material: Material) -> None:
    steps: list[int] = []
    # A budget that nothing can keep ends it at once; the row says what it was like all the same.
    rows = climb(FakeEngine(before=burn), material, 0.5, budget_ms=45.0, most=3, on_step=steps.append)
    assert steps == [1]
    assert not rows[0]["carried"]
    assert rows[0]["added_latency_ms"]["p50"] > 0
    assert set(rows[0]["stage_ms"]) >= {"fake", "queue", "encode"}
    assert rows[0]["cores"] > 0
    assert carried(rows) == 0


def test_the_table_says_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    table(rows_of(True, True, False))
    said = capsys.readouterr().out
    assert "this machine carries 2 sessions" in said
    assert "p99" in said
    assert carried(rows_of()) == 0


def test_the_plot_is_a_picture_of_every_row(tmp_path: Path) -> None:
    rows = rows_of(True, False)
    plot(rows, "talkin on <cpu>", tmp_path / "capacity.svg")
    root = ET.parse(tmp_path / "capacity.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}polyline")) == len(QUANTILES)
    assert len(root.findall(f"{space}circle")) == len(QUANTILES) * len(rows)
    texts = {text.text for text in root.iter(f"{space}text")}
    assert {"talkin on <cpu>", "track", "a<b", "p99", "2"} <= texts
