from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from retalk_models import checkpoints, hearing
from server import doctor
from server.doctor import Verdict


def test_a_taken_port_is_found_and_another_proposed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finding = doctor.check_port("127.0.0.1", port)
    assert finding.verdict is Verdict.BROKEN
    assert f"127.0.0.1:{port}" in finding.detail
    assert "--port" in finding.remedy
    assert doctor.check_port("127.0.0.1", port).verdict is Verdict.OK


def test_the_codecs_that_the_product_needs_are_here() -> None:
    assert doctor.check_codecs().verdict is Verdict.OK


def test_an_absent_gpu_is_broken_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # What torch says of a machine without a card, so that the test says the same on one with a card.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.check_device("cuda").verdict is Verdict.BROKEN
    assert doctor.check_device("auto").verdict is Verdict.OK


def test_a_changed_weight_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"not it")
    (tmp_path / checkpoints.SUMS).write_text(f"{'0' * 64}  net.safetensors\n")
    found = checkpoints.bundled(tmp_path)
    monkeypatch.setattr(checkpoints, "bundled", lambda: found)
    finding = doctor.check_weights()
    assert finding.verdict is Verdict.BROKEN
    assert "net.safetensors is not the file that was shipped" in finding.detail


def test_the_face_tracker_and_voice_activity_really_run() -> None:
    assert doctor.check_face_tracker().verdict is Verdict.OK
    assert doctor.check_voice_activity().verdict is Verdict.OK


def test_hearing_is_checked_and_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_hearing().verdict is Verdict.OK

    def missing() -> hearing.SpeechEncoder:
        raise hearing.SpeechEncoderError("the package moonshine-voice is not installed")

    monkeypatch.setattr(hearing, "speech_encoder", missing)
    finding = doctor.check_hearing()
    assert finding.verdict is Verdict.BROKEN
    assert "pip install" in finding.remedy


def test_a_check_that_raises_is_a_finding_and_the_rest_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> doctor.Finding:
        raise OSError("libGL.so.1: cannot open\nshared object file")

    monkeypatch.setattr(doctor, "check_face_tracker", broken)
    findings = {finding.name: finding for finding in doctor.examine("127.0.0.1", 0, "cpu")}
    assert findings["face tracker"].verdict is Verdict.BROKEN
    assert findings["face tracker"].detail == "libGL.so.1: cannot open shared object file"
    assert findings["ICE"].verdict is not Verdict.BROKEN
