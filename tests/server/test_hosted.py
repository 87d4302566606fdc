"""What a session tells of itself while it runs, on a stream of the test's own."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from retalk_models.engine import Idle, Rung
from server import hosted
from server.hosted import HostedSession, SessionPlan
from server.metrics import Metrics
from server.peers import Role
from server.settings import Settings
from server.streams import Streams
from stream.clock import Bell, MonotonicClock
from stream.encode import EncodedHub
from stream.files import FilmOf
from stream.rtp_time import SenderClock
from stream.source import SourceBuffer
from stream.stats import Counts, Figures, SessionState, SessionStats
from stream.voice import VoiceTrack
from tests.stream.fakes import FakeEngine
from tests.stream.harness import running as running_stream
from tests.stream.media_files import write_video


class ScriptedStream:
    """Counts on as `script` says, a step before every look; ends when the script does."""

    def __init__(self, still: SessionStats, script: list[Callable[[ScriptedStream], None]]) -> None:
        self.clock = MonotonicClock()
        self.source = SourceBuffer(self.clock, 8, Bell())
        self.voice = VoiceTrack(self.clock, 0, Bell())
        self.hub = EncodedHub(self.clock, Counts())
        self.now = still
        self.figures = Figures()
        self._script = script
        self._over = asyncio.Event()

    def show(self, rung: Rung, count: int = 25) -> None:
        """So many frames come out at this rung."""
        rungs = Counter(self.now.rungs)
        rungs[rung.name.lower()] += count
        self.now = replace(self.now, frames_out=self.now.frames_out + count, rungs=rungs)

    def stats(self) -> SessionStats:
        if self._script:
            self._script.pop(0)(self)
        else:
            self._over.set()
        return self.now

    def take_figures(self) -> Figures:
        taken, self.figures = self.figures, Figures()
        return taken

    def interrupt(self) -> int:
        return 0

    async def run(self) -> None:
        await self._over.wait()

    async def close(self) -> None:
        self._over.set()


async def still() -> SessionStats:
    """The stats of a real session that nobody has used, but live."""
    async with running_stream() as rig:
        return replace(rig.session.stats(), state=SessionState.LIVE, rung=Rung.FULL)


def host(stream: ScriptedStream, metrics: Metrics) -> HostedSession:
    plan = SessionPlan(presenter=None, latency_budget_ms=400, idle=Idle.SOURCE, mark=True)
    return HostedSession(plan, stream, Settings(), metrics)


async def test_only_frames_that_the_engine_made_say_that_a_session_flows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bug: one whose camera had paused or whose engine hung flowed for ever, and its place was given away."""
    monkeypatch.setattr(hosted, "OBSERVE_INTERVAL_S", 0)
    steps: list[tuple[Callable[[ScriptedStream], None], bool]] = [
        (lambda stream: None, False),  # no camera yet
        (lambda stream: stream.show(Rung.PASS_THROUGH), False),  # its engine opens
        (lambda stream: stream.show(Rung.FULL), True),
        (lambda stream: stream.show(Rung.HALF_RATE), True),
        (lambda stream: None, False),  # the camera pauses
        (lambda stream: stream.show(Rung.FULL), True),
        (lambda stream: stream.show(Rung.PASS_THROUGH), False),  # the engine hangs, or is left out
        (lambda stream: stream.show(Rung.FULL), True),
    ]
    said: list[bool] = []
    session = host(ScriptedStream(await still(), [step for step, _ in steps]), Metrics())
    session.on_flow = said.append
    await session.run()
    assert said[: len(steps)] == [flows for _, flows in steps]


async def test_the_last_second_of_a_session_is_in_its_figures() -> None:
    """bug: whatever came after the last of the looks, one a second, reached no histogram and no counter."""
    metrics = Metrics()
    stream = ScriptedStream(await still(), [])
    stream.now = replace(stream.now, late=3, drops={"source_full": 2}, engine_counts={"windows": 7})
    stream.figures = Figures(added_latency_ms=[50.0] * 20)
    session = host(stream, metrics)
    running = asyncio.create_task(session.run())
    await asyncio.sleep(0)  # it has begun, and is a second from its first look
    await asyncio.sleep(0)
    await session.close()
    await running
    text = metrics.exposition().decode()
    assert "retalk_added_latency_ms_count 20.0" in text
    assert "retalk_late_frames_total 3.0" in text
    assert 'retalk_dropped_frames_total{cause="source_full"} 2.0' in text
    assert 'retalk_engine_counts_total{what="windows"} 7.0' in text


async def test_inlets_of_ended_peers_are_let_go_and_still_counted() -> None:
    """bug: every reconnect left the camera's inlet, and all of its state, with the session."""
    session = host(ScriptedStream(await still(), []), Metrics())
    loop = asyncio.get_running_loop()
    held = []
    for lost in (2, 3):
        peer = session.new_peer(Role.SOURCE, lambda *_: None)
        inlet = session.video_inlet(loop, peer, SenderClock())
        assert inlet is not None
        inlet._mailbox.dropped = lost
        held.append(weakref.ref(inlet))
        del inlet
        before = session.about()["drops"]["inlet_full"]
        await peer.close()
        assert session.about()["drops"]["inlet_full"] == before
    gc.collect()
    assert before == 2 + 3
    assert [one() for one in held] == [None, None]
    await session.close()


async def test_a_presenter_is_a_film_that_the_engine_may_look_at_and_a_camera_is_none(tmp_path: Path) -> None:
    video = tmp_path / "anna.mp4"
    write_video(video, 5)
    streams = Streams(FakeEngine())
    films = [
        (await streams.open(SessionPlan(source, 400, Idle.REST, True))).config.engine_options().film
        for source in (None, video)
    ]
    assert films == [None, FilmOf.file(video, bt601=True)]
    assert films[1] is not None
    await streams.close()
