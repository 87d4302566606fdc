"""A page with a camera, as a test plays it: it publishes and watches in one connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiortc import MediaStreamTrack, RTCPeerConnection
from websockets.asyncio.client import ClientConnection

from tests.server.conftest import Session, negotiate
from tests.server.rtc import Camera, client
from tests.server.watcher import Watcher


@asynccontextmanager
async def duplex(
    session: Session, camera: Camera, microphone: MediaStreamTrack | None = None
) -> AsyncIterator[tuple[RTCPeerConnection, Watcher, ClientConnection]]:
    """Connect a camera, and a microphone if there is one; peer, what it sees and its signalling socket."""
    peer = client()
    watcher = Watcher(peer)
    peer.addTransceiver(camera, direction="sendrecv")
    if microphone is None:
        peer.addTransceiver("audio", direction="recvonly")
    else:
        peer.addTransceiver(microphone, direction="sendrecv")
    async with session.socket("signal") as socket:
        await negotiate(socket, peer, "duplex")
        try:
            yield peer, watcher, socket
        finally:
            await peer.close()
            await watcher.done()


def kill(peer: RTCPeerConnection) -> None:
    """End a peer without a goodbye of any kind, as when its process is killed."""
    transport = peer.getTransceivers()[0].sender.transport.transport

    async def nothing(data: bytes) -> None:
        return

    transport._send = nothing
    for protocol in transport._connection._protocols:
        protocol.transport.abort()
