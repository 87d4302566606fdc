"""What is left of clients that died, and of an engine whose server stopped."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from retalk_models.engine import Engine
from server import app, streams
from server.settings import Settings
from server.streams import Streams
from stream.admission import Demand
from stream.process_engine import ProcessEngine
from tests.server.churn import churn
from tests.server.conftest import StartServer
from tests.server.engines import PatchEngine
from tests.server.rtc import until


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
    monkeypatch.setattr(streams, "_measured", lambda _: Demand(0.1, 0.1))
    # The test's own process is not to keep for good what it has made.
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    await (await streams.load(Settings())).close()
    assert frozen == [True]


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
    monkeypatch.setattr(streams, "_measured", lambda _: Demand(0.1, 0.1))
    loading = asyncio.create_task(streams.load(Settings()))
    await until(engine.begun.is_set)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert engine.ended.is_set()


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
