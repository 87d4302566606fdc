"""A whole server on a free port, in the test's own event loop, with a small engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import wave
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
import websockets
from aiortc import RTCPeerConnection, RTCSessionDescription
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect

from server.app import create_app
from server.sessions import Registry
from server.settings import Settings
from server.streams import Streams
from tests.server.engines import PatchEngine
from tests.server.rtc import until

TERMS = {"consent": True}


@dataclass
class Session:
    """A session as its creator knows it."""

    id: str
    token: str
    urls: dict[str, str]
    server: LiveServer

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def socket(self, what: str) -> connect:
        """The signalling or voice socket, to be entered with `async with`."""
        url = self.server.address.replace("http", "ws") + f"{self.urls[what]}?token={self.token}"
        # No limit on unread messages: a client that reads late must still see the closing handshake.
        return connect(url, max_size=None, max_queue=None)

    async def about(self) -> dict[str, Any]:
        answer = await self.server.http.get(self.urls["session"], headers=self.bearer)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@dataclass
class LiveServer:
    """A server that runs, and a client of it."""

    address: str
    http: httpx.AsyncClient
    registry: Registry
    engine: PatchEngine
    settings: Settings
    sessions: list[Session] = field(default_factory=list)

    async def create(self, **body: Any) -> Session:
        """A session, admitted."""
        answer = await self.http.post("/v1/sessions", json={**TERMS, **body})
        assert answer.status_code == 201, answer.text
        given = answer.json()
        return Session(given["id"], given["token"], given["urls"], self)


StartServer = Callable[..., Awaitable[LiveServer]]


@asynccontextmanager
async def running(settings: Settings, **options: Any) -> AsyncIterator[LiveServer]:
    """Run a server until the block is left. Fails if anything of it is left behind."""
    engine = PatchEngine()

    async def load_streams(_: Settings) -> Streams:
        return Streams(engine)

    app = create_app(settings, options.get("load_streams", load_streams))
    config = uvicorn.Config(
        app, port=0, ws="websockets-sansio", log_config=None, timeout_graceful_shutdown=3, server_header=False
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=address, timeout=10) as http:
        if "load_streams" not in options:
            await until(lambda: app.state.registry.open_stream is not None)
        yield LiveServer(address, http, app.state.registry, engine, settings)
    server.should_exit = True
    await serving
    assert engine.open_sessions == 0, "an engine's session was left open"


@pytest.fixture
async def start_server() -> AsyncIterator[StartServer]:
    """Starts servers with settings of the test's choice; all are stopped at its end."""
    async with _Stack() as stack:
        yield stack.start


class _Stack:
    def __init__(self) -> None:
        self._open: list[Any] = []

    async def __aenter__(self) -> _Stack:
        return self

    async def start(self, load_streams: Any = None, **settings: Any) -> LiveServer:
        options = {} if load_streams is None else {"load_streams": load_streams}
        context = running(Settings(**{"max_sessions": 4, **settings}), **options)
        self._open.append(context)
        return await context.__aenter__()

    async def __aexit__(self, *_: object) -> None:
        for context in reversed(self._open):
            await context.__aexit__(None, None, None)


@pytest.fixture
async def server(start_server: StartServer) -> LiveServer:
    """A server with the settings of tests."""
    return await start_server()


@pytest.fixture(scope="session")
def speech(repository: Path) -> tuple[int, NDArray[np.int16]]:
    """Real speech of a synthesiser: samples per second, and mono samples."""
    with wave.open(str(repository / "client_web" / "sample" / "speech.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        return file.getframerate(), samples[:: file.getnchannels()]


async def next_of(socket: ClientConnection, *kinds: str, within_s: float = 10) -> dict[str, Any]:
    """The next message of one of these types; others are skipped."""
    async with asyncio.timeout(within_s):
        while True:
            message = json.loads(await socket.recv())
            if message["type"] in kinds:
                return dict(message)


async def negotiate(
    socket: ClientConnection, peer: RTCPeerConnection, role: str, **extra: Any
) -> dict[str, Any]:
    """Offer over a signalling socket, take the answer, wait until connected. Gives the answer."""
    await peer.setLocalDescription(await peer.createOffer())
    offer = {"type": "offer", "role": role, "sdp": peer.localDescription.sdp, **extra}
    await socket.send(json.dumps(offer))
    answer = await next_of(socket, "answer", "error")
    assert answer["type"] == "answer", answer
    await peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
    await until(lambda: peer.connectionState == "connected")
    return answer


async def closed_with(socket: ClientConnection, within_s: float = 5) -> int:
    """Read until the other side closes; the close code."""
    async with asyncio.timeout(within_s):
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await socket.recv()
    assert socket.close_code is not None
    return socket.close_code
