"""What is left of clients that died, and of an engine whose server stopped."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from typing import Any
from unittest.mock import Mock

import pytest
from aiortc import RTCSessionDescription

from retalk_models.engine import Engine
from server import app, streams
from server.aiortc_compat import PeerConnection
from server.errors import ApiError
from server.inlet import VideoInlet, VoiceInlet
from server.peers import End, Peer, Role
from server.sdp import vet_offer
from server.settings import Settings
from server.streams import Streams
from stream.admission import Demand
from stream.clock import VirtualClock
from stream.encode import Codec, EncodedHub, Subscription
from stream.process_engine import ProcessEngine
from tests.server.churn import churn
from tests.server.conftest import StartServer
from tests.server.engines import PatchEngine
from tests.server.rtc import client, until


async def test_a_stopped_server_stops_its_engines_threads() -> None:
    class Threaded(PatchEngine):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    engine = Threaded()
    await Streams(engine).close()
    assert engine.closed == 1
    await Streams(PatchEngine()).close()


async def test_what_loading_made_is_not_looked_through_for_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[bool] = []
    monkeypatch.setattr(streams, "load_to_serve", lambda *_: PatchEngine())
    monkeypatch.setattr(streams, "_measured", lambda _: (Demand(0.1, 0.1), {}))
    # The test's own process is not to keep for good what it has made.
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    await (await streams.load(Settings())).close()
    assert frozen == [True]


async def test_the_look_ahead_of_the_settings_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load(*arguments: object) -> PatchEngine:
        asked.append(arguments)
        return PatchEngine()

    monkeypatch.setattr(streams, "load_to_serve", load)
    monkeypatch.setattr(streams, "_measured", lambda _: (Demand(0.1, 0.1), {}))
    monkeypatch.setattr(gc, "freeze", lambda: None)
    await (await streams.load(Settings(look_ahead_ms=80, engine_processes=0))).close()
    assert asked == [("talkin", "auto", 0, 80)]


async def test_an_engine_that_cannot_be_measured_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server goes on to say that it has none; the engine's processes are not to stay."""

    class Lost(PatchEngine):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    def dies(engine: Engine) -> Demand:
        raise RuntimeError("engine process 1 ended with -9")

    engine = Lost()
    monkeypatch.setattr(streams, "load_to_serve", lambda *_: engine)
    monkeypatch.setattr(streams, "_measured", dies)
    with pytest.raises(RuntimeError, match="ended with -9"):
        await streams.load(Settings())
    assert engine.closed == 1


class Cycle:
    """Holds itself: counting references never frees it."""

    itself: Cycle


async def test_freed_memory_goes_back_while_sessions_run_and_only_then(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bug: a soak's server kept 12 MB more every hour, none of it in any object."""
    returned: list[int] = []
    monkeypatch.setattr(app, "MEMORY_INTERVAL_S", 0.02)
    server = await start_server()
    monkeypatch.setattr(app, "return_memory", lambda: returned.append(len(server.registry)))
    await asyncio.sleep(0.1)
    assert returned == []
    await server.create()
    gc.disable()  # as good as a server whose last full look is long ago
    try:
        cycle = Cycle()
        cycle.itself = cycle
        gone = weakref.ref(cycle)
        del cycle
        await until(lambda: len(returned) >= 3)
    finally:
        gc.enable()
    assert gone() is None
    assert set(returned) == {1}


async def test_a_server_stopped_while_its_spare_process_loads_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Waiting(ProcessEngine):
        def __init__(self) -> None:
            self.begun, self.ended = threading.Event(), threading.Event()

        def prepare(self, free: int = 2, *, wait: bool = False) -> None:
            self.begun.set()
            assert self.ended.wait(10)

        def close(self) -> None:
            self.ended.set()

    engine = Waiting()
    monkeypatch.setattr(streams, "load_to_serve", lambda *_: engine)
    monkeypatch.setattr(streams, "_measured", lambda _: (Demand(0.1, 0.1), {}))
    loading = asyncio.create_task(streams.load(Settings()))
    await until(engine.begun.is_set)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert engine.ended.is_set()


async def viewers_offer() -> str:
    """The SDP of one who wants to watch and listen."""
    peer = client()
    for kind in ("video", "audio"):
        peer.addTransceiver(kind, direction="recvonly")
    await peer.setLocalDescription(await peer.createOffer())
    sdp = str(peer.localDescription.sdp)
    await peer.close()
    return sdp


async def test_a_page_closed_while_its_offer_is_answered_leaves_no_session(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bug: the peer had no watchdog yet, and kept its session for ever."""
    answering, going_on = asyncio.Event(), asyncio.Event()
    describe = PeerConnection.setLocalDescription

    async def slow(peer: PeerConnection, description: RTCSessionDescription) -> None:
        answering.set()
        await going_on.wait()
        await describe(peer, description)

    monkeypatch.setattr(PeerConnection, "setLocalDescription", slow)
    server = await start_server(idle_timeout_s=0.2)
    session = await server.create()
    hosted = server.registry.find(session.id, session.token)
    async with session.socket("signal") as socket:
        await socket.send(json.dumps({"type": "offer", "role": "viewer", "sdp": await viewers_offer()}))
        await answering.wait()
        socket.transport.abort()
    await until(lambda: all(isinstance(who, Peer) for who in hosted._joined))
    going_on.set()
    await until(lambda: len(server.registry) == 0, within_s=3)


class Shown:
    """As much of a session as a viewer needs."""

    def __init__(self) -> None:
        self.hub = EncodedHub(VirtualClock())

    def subscribe(self, codec: Codec) -> Subscription:
        return self.hub.subscribe(codec)

    def video_inlet(self, *_: object) -> VideoInlet | None:
        raise AssertionError("a viewer sends nothing")

    def voice_inlet(self, *_: object) -> VoiceInlet:
        raise AssertionError("a viewer says nothing")


@pytest.mark.parametrize("leaving", ["who asked", "the session"])
async def test_a_peer_given_up_at_any_moment_of_its_answer_leaves_nothing(
    leaving: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bug: sockets opened after it had been closed stayed open, and so did a subscription made then."""
    loop = asyncio.get_running_loop()
    opened: list[asyncio.DatagramTransport] = []
    create = loop.create_datagram_endpoint

    async def noted(*given: Any, **named: Any) -> tuple[asyncio.DatagramTransport, Any]:
        transport, protocol = await create(*given, **named)
        opened.append(transport)
        return transport, protocol

    monkeypatch.setattr(loop, "create_datagram_endpoint", noted)
    offer = vet_offer(await viewers_offer(), True)
    given_up = 0
    while True:
        stage, ended = Shown(), Mock()
        peer = Peer(Role.VIEWER, stage, Settings(), ended)
        answer = asyncio.create_task(peer.answer(offer))
        for _ in range(given_up + 1):
            await asyncio.sleep(0)
        answered = answer.done()
        if leaving == "who asked":
            answer.cancel()
            await asyncio.wait({answer})
            assert answered or peer.ended is End.CLOSED
        await peer.close()
        await asyncio.wait({answer})
        ended.assert_called_once_with(peer, End.CLOSED, None)
        assert stage.hub.counts()["viewers"] == 0
        assert all(transport.is_closing() for transport in opened)
        if answered:
            break
        assert isinstance(answer.exception(), ApiError) if leaving == "the session" else answer.cancelled()
        given_up += 1
    assert given_up > 5
    assert opened


@pytest.mark.parametrize("deaths", [8])
async def test_clients_that_die_leave_nothing_behind(start_server: StartServer, deaths: int) -> None:
    """benchmarks/churn.py does it 200 times."""
    server = await start_server(silence_timeout_s=1.0, idle_timeout_s=1.0, handshake_timeout_s=5.0)
    before, after = await churn(server, deaths)
    print(before, after)
    assert after.tasks <= before.tasks
    assert after.threads <= before.threads
    assert after.descriptors <= before.descriptors
    # A session's voice alone is 3 MB; the allocator's own ups and downs are less.
    assert after.memory_mb - before.memory_mb < 1.5 * deaths
