"""The registry of sessions: create, find, admit or refuse, drain, close."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from retalk_models.engine import Idle
from server.auth import same
from server.errors import ApiError, forbidden, invalid, unauthorised, unavailable, unknown_session
from server.hosted import HostedSession, SessionPlan, Stream
from server.metrics import Metrics
from server.settings import Settings
from stream.admission import Admission
from stream.memory import return_memory
from stream.session import Policy

logger = logging.getLogger(__name__)

SAMPLE_PRESENTER = "sample"
PRESENTER_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".mp4", ".mov", ".mkv", ".webm"})
RETRY_FULL_S = 15
LEAST_HOLD_MS = 600
FAREWELL_S = 1.0
RETRY_LOADING_S = 5


class FileSource(BaseModel):
    """A presenter: a file of the operator's presenters folder, or "sample"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(min_length=1, max_length=200)


class SessionRequest(BaseModel):
    """The body of POST /v1/sessions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["webrtc"] | FileSource = "webrtc"
    engine: str | None = Field(None, max_length=64)
    consent: bool = Field(False, strict=True)
    latency_budget_ms: int | None = None
    policy: Policy = Policy.LIVE
    hold_ms: int | None = None
    idle: Idle = Idle.SOURCE
    mark: bool = Field(True, strict=True)


OpenStream = Callable[[SessionPlan], Awaitable[Stream]]
"""Makes a session's stream. Raises stream.errors.InputError for a presenter that cannot be used."""


def sample_presenter() -> Path:
    """The public-domain portrait that scikit-image installs. Raises ApiError (422) where it is not."""
    package = importlib.util.find_spec("skimage")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        picture = Path(folder) / "data" / "astronaut.png"
        if picture.is_file():
            return picture
    raise invalid(
        "unknown_source",
        "the sample presenter is not installed on this server",
        "pip install 'retalk[demo]', publish a camera, or name a file of the presenters folder",
    )


class Registry:
    """All sessions of one server."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._sessions: dict[str, HostedSession] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._opening = 0
        self._places: dict[str, object] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False
        self.engine: str | None = None
        self.open_stream: OpenStream | None = None
        self.admission: Admission | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def free(self) -> int:
        """How many more sessions would be admitted now."""
        if self.draining or self.open_stream is None:
            return 0
        places = self._settings.max_sessions - len(self._sessions) - self._opening
        fits = places if self.admission is None else self.admission.room().free
        return max(0, min(places, fits))

    def plan(self, request: SessionRequest) -> SessionPlan:
        """Decide whether a request is allowed and possible. Raises ApiError (403, 422) where it is not."""
        settings = self._settings
        if not request.consent:
            raise forbidden(
                "consent_required",
                "a session needs the consent of the person whose face and of the one whose voice is used",
                'send "consent": true when you have it',
            )
        if not request.mark and not settings.allow_unmarked:
            raise forbidden(
                "mark_required",
                "this server marks every dubbed picture as synthetic",
                'leave out "mark", or let the operator set allow_unmarked',
            )
        if request.engine is not None and self.engine is not None and request.engine != self.engine:
            raise invalid(
                "unknown_engine",
                f"the engine {request.engine[:40]!r} is not loaded here",
                f"use {self.engine!r}, or leave it out",
            )
        asked = request.latency_budget_ms
        budget = settings.latency_budget_ms if asked is None else asked
        least, most = settings.min_latency_budget_ms, settings.max_latency_budget_ms
        if not least <= budget <= most:
            raise invalid(
                "bad_latency_budget",
                f"a latency budget of {budget} ms is not possible here",
                f"ask for {least} to {most} ms",
            )
        if request.policy is Policy.ALIGNED:
            budget = self._hold_ms(request)
        elif request.hold_ms is not None:
            raise invalid("bad_hold", "only aligned sessions hold frames", 'add "policy": "aligned"')
        presenter = None if request.source == "webrtc" else self.presenter(request.source.file)
        return SessionPlan(presenter, budget, request.idle, request.mark, request.policy)

    def _hold_ms(self, request: SessionRequest) -> int:
        most = self._settings.max_hold_ms
        hold = min(3000, most) if request.hold_ms is None else request.hold_ms
        if not LEAST_HOLD_MS <= hold <= most:
            raise invalid(
                "bad_hold",
                f"holding frames for {hold} ms is not possible here",
                f"ask for {LEAST_HOLD_MS} to {most} ms",
            )
        return hold

    def presenters(self) -> list[tuple[str, str]]:
        """Name and label of every presenter there is."""
        found = []
        with contextlib.suppress(ApiError):
            sample_presenter()
            found.append((SAMPLE_PRESENTER, "Sample presenter"))
        folder = self._settings.presenters_dir
        for path in sorted(folder.iterdir()) if folder is not None and folder.is_dir() else []:
            with contextlib.suppress(ApiError):
                if path.suffix.lower() in PRESENTER_SUFFIXES and self.presenter(path.name):
                    found.append((path.name, path.stem))
        return found

    def presenter(self, name: str) -> Path:
        """The file of that name. Raises ApiError (422) where there is none in the presenters folder."""
        if name == SAMPLE_PRESENTER:
            return sample_presenter()
        folder = self._settings.presenters_dir
        hint = f'name a file of the operator\'s presenters folder, or "{SAMPLE_PRESENTER}"'
        if folder is None or "/" in name or "\\" in name or name.startswith(".") or "\0" in name:
            raise invalid("unknown_source", f"there is no presenter {name[:60]!r}", hint)
        try:
            path = (folder / name).resolve()
            there = path.parent == folder.resolve() and path.is_file()
        except (
            OSError,
            RuntimeError,
            UnicodeError,
        ):  # a name too long for the file system, a circle of links
            there = False
        if not there:
            raise invalid("unknown_source", f"there is no presenter {name[:60]!r}", hint)
        return path

    async def create(self, request: SessionRequest) -> HostedSession:
        """Admit and start a session. Raises ApiError: 403 and 422 as `plan`, 503 where there is no room."""
        plan = self.plan(request)
        if self.draining:
            raise unavailable(
                "draining", "this server is being shut down", "use another, or wait", RETRY_FULL_S
            )
        if self.open_stream is None:
            raise unavailable("loading", "the engine is still being loaded", "try again", RETRY_LOADING_S)
        if self.free == 0:
            raise unavailable("full", self._why_full(), "try again when one has ended", RETRY_FULL_S)
        # Counted before the first await, or fifty requests at once would all find the one free place.
        place = object()
        self._take(place)
        self._opening += 1
        try:
            stream = await self.open_stream(plan)
        except BaseException:
            self._give_up(place)
            raise
        finally:
            self._opening -= 1
        session = HostedSession(plan, stream, self._settings, self._metrics)
        session.on_idle = lambda: self._end_soon(session, "idle")
        session.on_flow = lambda flows: self._flow(place, flows)
        self._places[session.id] = place
        self._sessions[session.id] = session
        self._empty.clear()
        self._tasks[session.id] = asyncio.create_task(self._run(session), name="session")
        session.watch_idleness()
        self._metrics.sessions_created.inc()
        logger.info(
            "session %s... created: source %s, budget %d ms, consent given%s",
            session.id[:6],
            "webrtc" if plan.presenter is None else "file",
            plan.latency_budget_ms,
            "" if plan.mark else ", UNMARKED",
        )
        return session

    def _take(self, place: object) -> None:
        if self.admission is not None:
            self.admission.join(place)

    def _flow(self, place: object, flows: bool) -> None:
        if self.admission is not None:
            self.admission.live(place, flows)

    def _give_up(self, place: object) -> None:
        if self.admission is not None:
            self.admission.leave(place)

    def _why_full(self) -> str:
        if len(self._sessions) + self._opening >= self._settings.max_sessions or self.admission is None:
            return f"all {self._settings.max_sessions} sessions of this server are taken"
        room = self.admission.room()
        return (
            f"one session more would be too much for this machine: "
            f"{room.device:.0%} of its device and {room.cores:.0%} of its cores are taken"
        )

    def find(self, session_id: str, token: str | None) -> HostedSession:
        """The session, for whoever has its token. Raises ApiError: 404 for none such, 401 without it."""
        session = self._sessions.get(session_id)
        if session is None:
            raise unknown_session()
        if not same(token, session.token):
            raise unauthorised("this needs the session's token", "send the token that creating it returned")
        return session

    async def end(self, session: HostedSession, reason: str) -> None:
        """End a session and wait until nothing of it is left. Idempotent."""
        task = self._tasks.pop(session.id, None)
        if self._sessions.pop(session.id, None) is None:
            return
        logger.info("session %s... ends: %s", session.id[:6], reason)
        self._metrics.sessions_ended.labels(reason).inc()
        try:
            await session.close()
        except Exception:
            logger.exception("a session did not close cleanly")
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._give_up(self._places.pop(session.id, None))
        if not self._sessions:
            self._empty.set()
        await asyncio.to_thread(return_memory)

    def _end_soon(self, session: HostedSession, reason: str) -> None:
        task = asyncio.create_task(self.end(session, reason), name="session-end")
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _run(self, session: HostedSession) -> None:
        reason = "finished"
        try:
            await session.run()
        except asyncio.CancelledError:
            raise
        except Exception:
            reason = "fault"
            logger.exception("session %s... failed", session.id[:6])
        self._end_soon(session, reason)

    def drain(self) -> None:
        """Admit nobody any more; running sessions go on."""
        self.draining = True

    async def empty(self) -> None:
        """Wait until no session is left."""
        await self._empty.wait()

    async def close_all(self) -> None:
        """End every session, and let those who are connected be told."""
        self.draining = True
        sessions = list(self._sessions.values())
        await asyncio.gather(*(self.end(session, "shutdown") for session in sessions))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await asyncio.gather(*(session.empty.wait() for session in sessions))
        if self._endings:
            await asyncio.gather(*self._endings, return_exceptions=True)
