"""`serve` as a process: it says where it listens, drains when told to stop, and ends well."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from websockets.sync.client import connect

PROGRAM = """
import asyncio, sys
from server import app
from server.console import configure_logging
from server.settings import load_settings
from server.streams import Streams
from tests.server.engines import PatchEngine

async def load(settings):
    return Streams(PatchEngine())

configure_logging("debug")
app.create_app.__defaults__ = (load,)
app.serve(load_settings(overrides={"port": int(sys.argv[1]), "host": sys.argv[2], "drain_timeout_s": 10}))
"""


@contextmanager
def serving(repository: Path, port: int, host: str = "127.0.0.1") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(port), host],
        cwd=repository,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def ready(http: httpx.Client, within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            if http.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "the server did not become ready"
        time.sleep(0.05)


@contextmanager
def ready_server(
    repository: Path, host: str = "127.0.0.1"
) -> Iterator[tuple[subprocess.Popen[str], httpx.Client, str]]:
    """A ready server: its process, a client of its HTTP routes, and what its sockets' URLs begin with."""
    port = free_port()
    with (
        serving(repository, port, host) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        ready(http)
        yield process, http, f"ws://127.0.0.1:{port}"


def test_told_to_stop_it_lets_sessions_finish_and_exits_with_0(repository: Path) -> None:
    with ready_server(repository, host="0.0.0.0") as (process, http, _):
        given = http.post("/v1/sessions", json={"consent": True}).json()
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while http.get("/readyz").json()["reason"] != "draining":
            assert time.monotonic() < deadline
        refused = http.post("/v1/sessions", json={"consent": True})
        assert refused.json()["error"]["code"] == "draining"
        bearer = {"Authorization": f"Bearer {given['token']}"}
        assert http.get(given["urls"]["session"], headers=bearer).status_code == 200
        assert process.poll() is None
        http.delete(given["urls"]["session"], headers=bearer)
        begun = time.monotonic()
        said, _ = process.communicate(timeout=10)
        assert process.returncode == 0, said
        assert time.monotonic() - begun < 5
        assert "this machine only is served" in said
        assert "Traceback" not in said


def test_a_port_that_is_taken_is_an_error_in_words(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with serving(repository, port) as process:
            said, _ = process.communicate(timeout=30)
    assert f"SettingsError: cannot listen on 127.0.0.1:{port}: Address already in use; " in said


def test_a_token_never_appears_in_the_log(repository: Path) -> None:
    with ready_server(repository) as (process, http, sockets):
        given = http.post("/v1/sessions", json={"consent": True}).json()
        for what in ("voice", "signal"):
            url = f"{sockets}{given['urls'][what]}?token={given['token']}"
            with connect(url) as socket:
                socket.send("{}")
                socket.recv()
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
    assert "serving on" in said
    assert given["id"][:6] in said
    assert given["token"] not in said
    assert given["id"] not in said


def test_shutdown_says_goodbye_on_open_sockets(repository: Path) -> None:
    with ready_server(repository) as (process, http, sockets):
        given = http.post("/v1/sessions", json={"consent": True}).json()
        with connect(f"{sockets}{given['urls']['signal']}?token={given['token']}") as socket:
            socket.recv()
            process.send_signal(signal.SIGINT)
            messages = [json.loads(message) for message in socket]
            assert messages[-1] == {"type": "bye", "reason": "session_ended"}
        process.communicate(timeout=20)


def test_a_compressed_message_cannot_stall_the_server(repository: Path) -> None:
    with ready_server(repository) as (process, _, sockets):
        url = f"{sockets}/v1/sessions/none/voice"
        with connect(url, compression="deflate") as socket:
            assert socket.protocol.extensions == []
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
