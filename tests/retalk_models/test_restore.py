"""Restoration around its net: where, how much, how steadily. The real package has its own tests (gfpgan/)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from retalk_models.engine import EngineOptions, Idle, Rung
from retalk_models.face.geometry import template
from retalk_models.picture import F32, U8, Box
from retalk_models.restore import MouthRestorer, RestorationError, available, load_gfpgan, load_restorer
from retalk_models.store import CheckpointStore
from retalk_models.videoretalking.engine import VideoRetalkingEngine
from tests.retalk_models.videoretalking.cheap import CheapStages
from tests.retalk_models.videoretalking.clip import pictures
from tests.retalk_models.videoretalking.test_engine import windows

BOX = Box(100, 60, 300, 310)


def points() -> F32:
    """A face that fills BOX."""
    shape = template().copy()
    low, high = shape[:, :2].min(axis=0), shape[:, :2].max(axis=0)
    shape[:, :2] = (shape[:, :2] - low) / (high - low) * (160, 210) + (120, 75)
    return shape


class Brighter:
    """Adds a level; counts its calls."""

    def __init__(self, by: int) -> None:
        self.by, self.calls = by, 0

    def __call__(self, face: U8) -> U8:
        assert face.shape == (512, 512, 3)
        self.calls += 1
        return np.asarray(np.minimum(face.astype(int) + self.by, 255), np.uint8)


def grey() -> torch.Tensor:
    return torch.full((1, 3, 384, 384), 0.4)


def test_only_the_mouth_changes_and_at_most_by_half() -> None:
    restoring = MouthRestorer(Brighter(51), {}).open()
    drawn = grey()
    out = restoring.restore(drawn, BOX, points(), 0.04)
    change = (out - drawn).abs().amax(dim=1)[0].numpy()
    assert change.max() == pytest.approx(0.5 * 0.2, abs=0.01)
    rows, columns = np.nonzero(change)
    scale = np.array([384 / BOX.width, 384 / BOX.height])
    mouth = (points()[[61, 291, 0, 17], :2] - (BOX.left, BOX.top)) * scale
    assert mouth[:, 0].min() - 30 < columns.min() < columns.max() < mouth[:, 0].max() + 30
    assert mouth[:, 1].min() - 30 < rows.min() < rows.max() < mouth[:, 1].max() + 30
    assert (change > 0).mean() < 0.15


def test_restorations_that_jump_are_shown_steadily() -> None:
    net = Brighter(0)
    restoring = MouthRestorer(net, {}).open()
    drawn, middle = grey(), (0, 0)
    shown = []
    for by in (40, 40, 0, 80, 40):
        net.by = by
        change = (restoring.restore(drawn, BOX, points(), 0.04) - drawn)[0, 0]
        middle = middle or np.unravel_index(int(change.argmax()), change.shape)
        shown.append(float(change.max()))
    raw = np.abs(np.diff(np.array([40, 40, 0, 80, 40]) / 255 * 0.5))
    assert np.abs(np.diff(shown)).max() < 0.4 * raw.max()
    restoring.reset()
    net.by = 0
    assert float((restoring.restore(drawn, BOX, points(), 0.04) - drawn).abs().max()) < 0.004


def test_points_that_fit_no_face_leave_it_as_it_is() -> None:
    drawn = grey()
    out = MouthRestorer(Brighter(50), {}).open().restore(drawn, BOX, np.zeros((478, 3), np.float32), 0.04)
    assert torch.equal(out, drawn)


def test_it_is_the_first_to_go(clips: Path) -> None:
    net = Brighter(30)
    engine = VideoRetalkingEngine(CheapStages(), {}, MouthRestorer(net, {}))
    session = engine.open_session(EngineOptions(idle=Idle.REST, patient=True))
    face = pictures(clips / "open" / "o1_man_glasses_512.mp4", 8, side=384)
    for window in windows(face[:4]):
        result = session.process(window)
    assert net.calls == 4
    assert result.stage_ms["restoration"] > 0
    for window in windows(face[4:], Rung.NO_RESTORATION, start=4):
        result = session.process(window)
    assert net.calls == 4
    assert result.stage_ms["restoration"] == 0
    session.close()


def test_without_the_extra_or_its_file_there_is_none(tmp_path: Path) -> None:
    assert load_restorer(CheckpointStore(tmp_path), torch.device("cpu")) is None


def test_the_extra_without_torchvision_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gfpgan", "basicsr", "facexlib"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert not available()


def test_a_torchvision_that_does_not_import_was_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RestorationError, match="RuntimeError: operator nms does not exist"):
        load_gfpgan(tmp_path / "x.pth", torch.device("cpu"))


def test_a_package_that_does_not_import_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gfpgan").mkdir()
    (tmp_path / "gfpgan" / "__init__.py").write_text("raise ImportError('no such luck')")
    (tmp_path / "torchvision" / "transforms").mkdir(parents=True)
    for place in ("torchvision", "torchvision/transforms"):
        (tmp_path / place / "__init__.py").write_text("")
    (tmp_path / "torchvision" / "transforms" / "functional.py").write_text("rgb_to_grayscale = None")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RestorationError, match=r"ImportError: no such luck.*pip install 'retalk\[gfpgan\]'"):
        load_gfpgan(tmp_path / "x.pth", torch.device("cpu"))
