"""The process: where it listens, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from types import FrameType

import uvicorn

from server.sessions import Registry
from server.settings import Settings, SettingsError

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Uvicorn that drains on SIGTERM: nobody new, and running sessions get their time to finish."""

    def __init__(self, config: uvicorn.Config, registry: Registry, drain_timeout_s: float) -> None:
        super().__init__(config)
        self._registry = registry
        self._drain_timeout_s = drain_timeout_s
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig != signal.SIGTERM:
            super().handle_exit(sig, frame)
        elif self._draining is None and len(self._registry):
            self._registry.drain()
            # This runs in a signal handler, between any two instructions of the loop.
            asyncio.get_running_loop().call_soon_threadsafe(self._begin_drain)
        else:
            # Not upstream's way: it would raise the signal again at the end, and being told to stop and
            # stopping is no failure.
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Before upstream closes every socket without a word: clients are to know that it is over.
        await self._registry.close_all()
        await super().shutdown(sockets)

    def _begin_drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(), name="drain")

    async def _drain(self) -> None:
        logger.info("draining: waiting %.0f s for %d sessions", self._drain_timeout_s, len(self._registry))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_timeout_s):
                await self._registry.empty()
        self.should_exit = True


def listen(settings: Settings) -> socket.socket:
    """A socket on the settings' address. Raises SettingsError, one line, where that cannot be had."""
    address = (settings.listen_host, settings.port)
    try:
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server(address, family=family, backlog=256)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {address[0]}:{address[1]}: {_reason(error)}; "
            "stop what uses that port, or choose another host or port"
        ) from None


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno is None:
        return str(error.strerror or error)
    return os.strerror(error.errno)  # the error's own text repeats the address
