"""One session as the network sees it: its stream, who may join, who has, and what it says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from retalk_models.engine import Idle, Rung
from server.auth import new_secret
from server.errors import ApiError, unavailable, unknown_session
from server.inlet import VideoInlet, VoiceInlet
from server.metrics import Metrics
from server.peers import End, Peer, Role
from server.settings import Settings
from stream.clock import Clock
from stream.encode import Codec, EncodedHub, Subscription
from stream.errors import VoiceFull
from stream.media import PLAYOUT_RATE
from stream.presenter import present
from stream.rtp_time import SenderClock
from stream.session import Policy
from stream.source import SourceBuffer
from stream.stats import Figures, SessionStats, Spread
from stream.voice import VoiceFormat, VoiceTrack

OBSERVE_INTERVAL_S = 1.0
FIGURES_FOR_S = 0.2
RETRY_VIEWER_S = 15
MOST_OTHER_PEERS = 8
"""Peers of a session beside its viewers: a source and a voice, and those that take over from them."""

MOST_SOCKETS = 32


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """A request that was found to be possible.

    presenter: the file that is shown in place of a camera; None where the source publishes over WebRTC.
    latency_budget_ms: of an aligned session, how long frames are held.
    """

    presenter: Path | None
    latency_budget_ms: int
    idle: Idle
    mark: bool
    policy: Policy = Policy.LIVE


class Stream(Protocol):
    """What is used of stream.session.Session."""

    @property
    def clock(self) -> Clock: ...

    @property
    def source(self) -> SourceBuffer: ...

    @property
    def voice(self) -> VoiceTrack: ...

    @property
    def hub(self) -> EncodedHub: ...

    def stats(self) -> SessionStats: ...

    def take_figures(self) -> Figures: ...

    def interrupt(self) -> int: ...

    async def run(self) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Seen:
    """A stream's counters as they were told to Prometheus. engaged: frames that the engine made."""

    late: int = 0
    engaged: int = 0
    drops: Mapping[str, int] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    counted: Mapping[str, int] = field(default_factory=dict)


class HostedSession:
    """One session as the network sees it: its stream, who may join, and who has."""

    def __init__(self, plan: SessionPlan, stream: Stream, settings: Settings, metrics: Metrics) -> None:
        self.id = new_secret()
        self.token = new_secret()
        self.plan = plan
        self.ended = asyncio.Event()
        self.empty = asyncio.Event()
        self.empty.set()
        self.created_at = time.monotonic()
        self.client_stats: dict[str, float] = {}
        self._stream = stream
        self._settings = settings
        self._metrics = metrics
        self._peers: dict[Peer, Callable[[Peer, End, ApiError | None], None]] = {}
        self._inlets: dict[object, VideoInlet] = {}
        self._inlet_full = 0  # of inlets whose peers have ended
        self._joined: set[object] = set()
        self._speakers: list[tuple[object, asyncio.Event]] = []
        self._idle_timer: asyncio.TimerHandle | None = None
        self._taken: tuple[float, SessionStats] | None = None
        self.on_idle: Callable[[], None] = lambda: None
        self.on_flow: Callable[[bool], None] = lambda flows: None

    @property
    def voice(self) -> VoiceTrack:
        return self._stream.voice

    def played_ms(self) -> int:
        """How much of the voice time line has been heard, in milliseconds."""
        return self._stream.voice.played * 1000 // PLAYOUT_RATE

    def now_ms(self) -> int:
        """The session's clock, which a dub's time stamps count on, in milliseconds."""
        return self._stream.clock.now_us() // 1000

    def interrupt(self) -> int:
        """Silence the voice everywhere, at once; gives the new epoch."""
        return self._stream.interrupt()

    # --- who is there

    def join(self, who: object) -> None:
        """Someone is connected: the session is in use."""
        self._joined.add(who)
        self.empty.clear()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def join_socket(self, socket: object) -> None:
        """A socket is about to be opened. Raises ApiError (503) where the session has more than enough."""
        sockets = sum(not isinstance(who, Peer) for who in self._joined)
        if sockets >= MOST_SOCKETS:
            raise unavailable(
                "sockets_full",
                f"this session has {sockets} sockets open",
                "close some of them first",
                RETRY_VIEWER_S,
            )
        self.join(socket)

    def leave(self, who: object) -> None:
        """Someone has gone; a session without anybody ends after the idle timeout."""
        self._joined.discard(who)
        if not self._joined:
            self.empty.set()
        self.watch_idleness()

    def watch_idleness(self) -> None:
        if self._joined or self._idle_timer is not None or self.ended.is_set():
            return
        loop = asyncio.get_running_loop()
        self._idle_timer = loop.call_later(self._settings.idle_timeout_s, lambda: self.on_idle())

    # --- the voice: whoever claimed it last holds it

    def claim_voice(self, who: object) -> asyncio.Event:
        """Take the voice over. The event given is set when someone else takes it."""
        for _, lost in self._speakers:
            lost.set()
        claim = asyncio.Event()
        self._speakers.append((who, claim))
        return claim

    def holds_voice(self, who: object) -> bool:
        """Whether `who` is the one that is heard."""
        return bool(self._speakers) and self._speakers[-1][0] is who

    def release_voice(self, who: object) -> None:
        """Give the voice back to whoever held it before and is still there."""
        self._speakers = [(holder, lost) for holder, lost in self._speakers if holder is not who]

    # --- peers

    def new_peer(self, role: Role, on_end: Callable[[Peer, End, ApiError | None], None]) -> Peer:
        """A peer of this session, not negotiated yet.

        Raises ApiError: 409 for a source where a file is the source, 503 beyond max_viewers and a few others.
        """
        if self.ended.is_set():
            raise unknown_session()
        if role is Role.SOURCE and self.plan.presenter is not None:
            raise ApiError(
                409,
                "source_is_a_file",
                "this session's source is a presenter file",
                'create one with "source": "webrtc" to publish a camera',
            )
        watching = sum(peer.role.watches for peer in self._peers)
        if role.watches and watching >= self._settings.max_viewers:
            raise unavailable(
                "viewers_full",
                f"this session has {watching} viewers already",
                "try again when one has left",
                RETRY_VIEWER_S,
            )
        if len(self._peers) >= self._settings.max_viewers + MOST_OTHER_PEERS:
            raise unavailable(
                "peers_full",
                f"this session has {len(self._peers)} peers already",
                "end those that are not needed first",
                RETRY_VIEWER_S,
            )
        peer = Peer(role, self, self._settings, self._peer_ended)
        self._peers[peer] = on_end
        self.join(peer)
        self._metrics.peers_opened.labels(role).inc()
        return peer

    async def replace_source(self, newcomer: Peer) -> None:
        """A session has one source: end the peers that were it before."""
        for peer in [p for p in self._peers if p is not newcomer and p.is_source]:
            await peer.close(End.REPLACED)

    async def replace_voice(self, newcomer: Peer) -> None:
        """A session is spoken to by one microphone: end the peers that were nothing but that before."""
        for peer in [p for p in self._peers if p is not newcomer and p.role is Role.VOICE]:
            await peer.close(End.REPLACED)

    def _peer_ended(self, peer: Peer, reason: End, fault: ApiError | None) -> None:
        on_end = self._peers.pop(peer, None)
        inlet = self._inlets.pop(peer, None)
        if inlet is not None:
            self._inlet_full += inlet.dropped
        if self.holds_voice(peer):
            self.voice.end()
        self.release_voice(peer)
        self._metrics.peers_ended.labels(peer.role, reason).inc()
        self.leave(peer)
        if on_end is not None:
            on_end(peer, reason, fault)

    def video_inlet(
        self, loop: asyncio.AbstractEventLoop, owner: object, sender: SenderClock
    ) -> VideoInlet | None:
        """Where a source's decoded frames go; nowhere for a duplex peer of a session with a presenter."""
        if self.plan.presenter is not None:
            return None
        inlet = VideoInlet(loop, self._stream.clock, self._stream.source.push, sender)
        self._inlets[owner] = inlet
        return inlet

    def voice_inlet(self, loop: asyncio.AbstractEventLoop, owner: object, sender: SenderClock) -> VoiceInlet:
        """Where a speaker's decoded audio goes, for as long as that speaker holds the voice."""
        self.claim_voice(owner)

        def push(samples: NDArray[Any], form: VoiceFormat) -> None:
            if not self.holds_voice(owner):
                return
            with contextlib.suppress(VoiceFull):  # a live speaker cannot be slowed down, only not be heard
                self.voice.push(samples, form, realtime=True)

        return VoiceInlet(loop, push, self._stream.clock, sender)

    def subscribe(self, codec: Codec) -> Subscription:
        """A viewer's share of the encoded output."""
        return self._stream.hub.subscribe(codec)

    # --- figures

    def note_client_stats(self, report: Mapping[str, Any]) -> None:
        """Keep what a page measured: a few finite numbers, the last of each."""
        for name, value in list(report.items())[:16]:
            known = name in self.client_stats or (len(self.client_stats) < 16 and len(name) <= 40)
            with contextlib.suppress(OverflowError):  # JSON has integers beyond any float
                if known and isinstance(value, int | float) and math.isfinite(value):
                    self.client_stats[name] = float(value)

    def _figures(self) -> SessionStats:
        """The stream's figures, taken anew at most five times a second however many ask."""
        now = time.monotonic()
        if self._taken is None or now - self._taken[0] > FIGURES_FOR_S:
            self._taken = (now, self._stream.stats())
        return self._taken[1]

    def stats(self) -> dict[str, Any]:
        """The live figures, as both the signalling socket and GET show them."""
        stats = self._figures()
        return {
            "state": str(stats.state),
            "added_latency_ms": _spread(stats.added_latency_ms),
            "skew_ms": round(stats.skew_ms.p50, 1),
            "fps": round(stats.fps_out, 1),
            "fps_in": round(stats.fps_in, 1),
            "rung": stats.rung.name.lower(),
            "face": str(stats.face),
            "speaking": stats.speaking,
            "late": stats.late,
            "stale": stats.stale,
            "dropped": stats.dropped,
            "dubbed": stats.dubbed,
            "frames": stats.frames_out,
            "gaps": stats.gaps,
            "skipped_ms": stats.skipped_ms,
            "voice_buffered_ms": stats.voice_buffered_ms,
            "played_ms": stats.played_ms,
            "epoch": stats.epoch,
            "playout_delay_ms": stats.playout_delay_ms,
            "stage_ms": {name: _spread(spread) for name, spread in stats.stage_ms.items()},
            "faults": stats.faults,
        }

    def about(self) -> dict[str, Any]:
        """Everything that GET /v1/sessions/{id} shows."""
        stats = self._figures()
        return {
            "id": self.id,
            "age_s": round(time.monotonic() - self.created_at, 1),
            "source": "webrtc" if self.plan.presenter is None else "file",
            "latency_budget_ms": self.plan.latency_budget_ms,
            "policy": str(self.plan.policy),
            "idle": str(self.plan.idle),
            "mark": self.plan.mark,
            "peers": [{"role": str(peer.role), "state": peer.state} for peer in self._peers],
            **self.stats(),
            "faces": dict(stats.faces),
            "rungs": dict(stats.rungs),
            "rung_changes": dict(stats.rung_changes),
            "drops": self._drops(stats),
            "queues": dict(stats.queues),
            "engine_counts": dict(stats.engine_counts),
            "client": dict(self.client_stats),
        }

    # --- life

    async def run(self) -> None:
        """Run the stream until it ends or this is cancelled."""
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(self._observe(), name="session-observe")]
            if self.plan.presenter is not None:
                showing = present(self.plan.presenter, self._stream.source, self._stream.clock)
                beside.append(group.create_task(showing, name="session-presenter"))
            await self._stream.run()
            for task in beside:
                task.cancel()

    async def _observe(self) -> None:
        seen = _Seen()
        try:
            while True:
                await asyncio.sleep(OBSERVE_INTERVAL_S)
                before, seen = seen, self._look(seen)
                self.on_flow(seen.engaged > before.engaged)
        finally:
            self._look(seen)  # or the last second of every session would be in no figure

    def _look(self, before: _Seen) -> _Seen:
        """Tell Prometheus what has happened since `before`."""
        stats = self._stream.stats()
        now = _Seen(stats.late, _engaged(stats), self._drops(stats), stats.rung_changes, stats.engine_counts)
        self._metrics.observe(self._stream.take_figures())
        self._metrics.late_frames.inc(max(0, now.late - before.late))
        self._metrics.count(before.drops, now.drops, self._metrics.dropped_frames)
        self._metrics.count(before.steps, now.steps, self._metrics.rung_changes)
        self._metrics.count(before.counted, now.counted)
        return now

    def _drops(self, stats: SessionStats) -> dict[str, int]:
        """Frames that never came out, by where they were lost, the way into the stream included."""
        inlet_full = self._inlet_full + sum(inlet.dropped for inlet in self._inlets.values())
        return {**stats.drops, "inlet_full": inlet_full}

    async def close(self) -> None:
        """End every peer and the stream. Idempotent."""
        self.ended.set()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        await asyncio.gather(*(peer.close(End.SESSION_ENDED) for peer in list(self._peers)))
        await self._stream.close()


def _engaged(stats: SessionStats) -> int:
    """Frames that the engine made: none while the source pauses or the engine opens, hangs or is left out."""
    return stats.frames_out - stats.rungs.get(Rung.PASS_THROUGH.name.lower(), 0)


def _spread(spread: Spread) -> dict[str, float]:
    return {"p50": round(spread.p50, 1), "p95": round(spread.p95, 1)}
