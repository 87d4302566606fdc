"""A server started as a user starts it, and the film, the voice and the browser that are pointed at it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Playwright, sync_playwright

from tests.e2e.camera import Camera, make_camera
from tests.e2e.chromium import chromium_path

READY_S = 60.0


@dataclass(frozen=True)
class Served:
    """A running server: its address, its process and the file its output goes to."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> tuple[int, Any]:
        """Status and parsed JSON (or text) of one GET."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                status, body = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read().decode()
        try:
            return status, json.loads(body)
        except json.JSONDecodeError:
            return status, body


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(log: Path, port: int | None = None, **environment: str) -> Iterator[Served]:
    """`retalk serve` on a free port, ready; stopped as by Ctrl-C, killed only where that does not help."""
    port = port or free_port()
    command = [sys.executable, "-m", "server.cli", "serve", "--port", str(port)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    served = Served(f"http://localhost:{port}", process, log)
    try:
        wait_ready(served)
        yield served
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(served: Served) -> None:
    """Raises AssertionError with the server's own words where it ends or is not ready in time."""
    give_up = time.monotonic() + READY_S
    while time.monotonic() < give_up:
        assert served.process.poll() is None, f"the server ended: {served.log.read_text()[-2000:]}"
        try:
            if served.get("/readyz")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"the server was not ready within {READY_S:.0f} s: {served.log.read_text()[-2000:]}")


@pytest.fixture(scope="session", autouse=True)
def _browser_is_here() -> None:
    chromium_path()


@pytest.fixture(scope="module")
def driver() -> Iterator[Playwright]:
    """Playwright's own event loop runs while this is open: no wider, or tests of other rooms meet it."""
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("server") / "server.log") as served:
        yield served


@pytest.fixture(scope="session")
def film(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Camera:
    """The fake camera: a real face that talks without pause, so that a dub which leaks it is found out."""
    clip = clips / "open" / "o2_woman_blue_700_vfr22.mp4"
    return make_camera(clip, tmp_path_factory.mktemp("camera") / "film.y4m")


@pytest.fixture(scope="session")
def voice(clips: Path) -> Path:
    """A real voice with long pauses: speech and silence must be told apart on the mouth."""
    return clips / "speech" / "en_male_jfk_PD_11s.flac"
