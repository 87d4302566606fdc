"""The ASGI application: routes and lifespan, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from server.aiortc_compat import check_upstream
from server.auth import bearer, check_host, check_origin, require
from server.errors import ApiError, first_problem, invalid
from server.hosted import HostedSession
from server.metrics import CONTENT_TYPE, Metrics
from server.serving import Server, listen
from server.sessions import Registry, SessionRequest
from server.settings import Settings
from server.signalling import MAX_MESSAGE, Signalling
from server.streams import Streams, load
from server.voice_socket import VoiceSocket
from stream.errors import InputError
from stream.memory import return_memory

logger = logging.getLogger(__name__)

CLIENT_WEB = Path(__file__).resolve().parent.parent / "client_web"
MAX_BODY = 16 * 1024
USE_INTERVAL_S = 1.0
MEMORY_INTERVAL_S = 60.0
POLICY_VIOLATION = 1008

LoadStreams = Callable[[Settings], Awaitable[Streams]]


def create_app(settings: Settings, load_streams: LoadStreams = load) -> Starlette:
    """The whole server as one ASGI application.

    load_streams: loads the engine; tests give one of their own. Raises UnsupportedUpstreamError where the
    installed WebRTC stack is not one that this server can use.
    """
    check_upstream()
    house = House(settings, load_streams)
    app = Starlette(
        routes=[
            Route("/healthz", house.healthz),
            Route("/readyz", house.readyz),
            Route("/metrics", house.metrics_page),
            Route("/v1/presenters", house.presenters),
            Route("/v1/sessions", house.create_session, methods=["POST"]),
            Route("/v1/sessions/{id}", house.session, methods=["GET", "DELETE"]),
            Route("/v1/sessions/{id}/poster", house.poster),
            WebSocketRoute("/v1/sessions/{id}/signal", house.signal),
            WebSocketRoute("/v1/sessions/{id}/voice", house.voice),
        ],
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=settings.allowed_origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["Authorization", "Content-Type"],
            )
        ]
        if settings.allowed_origins
        else [],
        exception_handlers={
            ApiError: house.refuse,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _fault,
        },
        lifespan=house.lifespan,
    )
    # A default, not a mount: a mount at / would swallow wrong methods on the routes above.
    app.router.default = Elsewhere(Client(directory=CLIENT_WEB, html=True, check_dir=False))
    app.state.registry = house.registry
    return app


class Client(StaticFiles):
    """The browser client. Never cached without asking: page and modules must be of one version."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


class Elsewhere:
    """Whatever is no route: a file of the client, or nothing, said in the form that was asked in."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            socket = WebSocket(scope, receive, send)
            await socket.accept()
            await _say_no(socket, _unknown_route(scope["path"]))
        elif scope["path"].startswith("/v1/"):
            raise HTTPException(404)
        else:
            await self._client(scope, receive, send)


class House:
    """The routes' shared state."""

    def __init__(self, settings: Settings, load_streams: LoadStreams) -> None:
        self._settings = settings
        self._load_streams = load_streams
        self._load_error = ""
        self._streams: Streams | None = None
        self.metrics = Metrics()
        self.registry = Registry(settings, self.metrics)
        self.metrics.watch("sessions", "Sessions running", lambda: float(len(self.registry)))
        self.metrics.watch(
            "free_sessions", "Sessions that would be admitted", lambda: float(self.registry.free)
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Load the engine beside serving; end everything on the way out."""
        loading = asyncio.create_task(self._load(), name="engine-load")
        watching = asyncio.create_task(self._watch_use(), name="use-watch")
        tidying = asyncio.create_task(self._return_memory(), name="memory-return")
        try:
            yield
        finally:
            await self.registry.close_all()
            loading.cancel()
            watching.cancel()
            tidying.cancel()
            streams = (await asyncio.gather(loading, return_exceptions=True))[0]
            if isinstance(streams, Streams):
                await streams.close()

    async def _load(self) -> Streams | None:
        try:
            streams = await self._load_streams(self._settings)
        except Exception as error:
            self._load_error = f"{type(error).__name__}: {error}".splitlines()[0]
            logger.error("the engine %r could not be loaded: %s", self._settings.engine, error)
            return None
        self._streams = streams
        self.registry.engine = streams.engine.name
        self.registry.admission = streams.admission
        self.registry.open_stream = streams.open
        logger.info("engine %s is ready on %s", streams.engine.name, streams.engine.device)
        return streams

    async def _watch_use(self) -> None:
        while True:
            await asyncio.sleep(USE_INTERVAL_S)
            if self.registry.admission is not None:
                self.registry.admission.sample()

    async def _return_memory(self) -> None:
        # Cycles of dead objects hold pictures, and Python looks for them only once they are a quarter of all;
        # what is freed lies scattered in an arena per thread. Together megabytes more every hour.
        while True:
            await asyncio.sleep(MEMORY_INTERVAL_S)
            if len(self.registry):
                gc.collect()  # here, not in a thread: finalisers of what belongs to this loop run in it
                await asyncio.to_thread(return_memory)

    # --- health

    async def healthz(self, request: Request) -> Response:
        """Whether the process answers at all."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Whether a session would be admitted now; 503 and why, where not."""
        registry = self.registry
        reason = ""
        if registry.draining:
            reason = "draining"
        elif self._load_error:
            reason = f"engine failed: {self._load_error}"
        elif registry.open_stream is None:
            reason = "loading"
        elif registry.free == 0:
            reason = "full"
        body = {
            "ready": not reason,
            "reason": reason,
            "engine": registry.engine,
            "sessions": len(registry),
            "free": registry.free,
        }
        if registry.admission is not None:
            room = registry.admission.room()
            body["used"] = {"device": round(room.device, 3), "cores": round(room.cores, 3)}
        return JSONResponse(body, 503 if reason else 200, {"Retry-After": "5"} if reason else None)

    async def metrics_page(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self.metrics.exposition(), media_type=CONTENT_TYPE)

    # --- presenters

    async def presenters(self, request: Request) -> Response:
        """What a session may name as its source, for whoever may create one."""
        self._check_caller(request)
        self._require_key(request)
        listed = [
            {"name": name, "label": label}
            for name, label in self.registry.presenters()
            if self._streams is None or await self._streams.is_usable(self.registry.presenter(name))
        ]
        return JSONResponse({"presenters": listed}, headers={"Cache-Control": "no-store"})

    # --- sessions

    async def create_session(self, request: Request) -> Response:
        """Admit a session: 201 with its id, token and addresses."""
        self._check_caller(request)
        self._require_key(request)
        try:
            body = SessionRequest.model_validate_json(await _json_body(request), strict=True)
        except ValidationError as error:
            problem = first_problem(list(error.errors()))
            raise invalid(
                "bad_request", problem, 'send {"source": "webrtc" or {"file": name}, "consent": true}'
            ) from None
        if self._load_error:
            raise ApiError(503, "engine_failed", f"the engine could not be loaded: {self._load_error}")
        try:
            session = await self.registry.create(body)
        except InputError as error:
            # Where the operator keeps files is nobody else's business.
            name = Path(error.what).name
            wrong = error.wrong.replace(error.what, name)
            raise invalid("unusable_source", f"{name}: {wrong}", error.right) from None
        path = f"/v1/sessions/{session.id}"
        urls = {"session": path, "signal": f"{path}/signal", "voice": f"{path}/voice"}
        if session.plan.presenter is not None:
            urls["poster"] = f"{path}/poster?token={session.token}"
        answer = {
            "id": session.id,
            "token": session.token,
            "urls": urls,
            "ice_servers": [s.model_dump(exclude_none=True) for s in self._settings.ice_servers],
        }
        return JSONResponse(answer, 201, {"Location": path, "Cache-Control": "no-store"})

    async def session(self, request: Request) -> Response:
        """GET: what a session says about itself. DELETE: end it; 204 also where it has ended already."""
        self._check_caller(request)
        session_id = request.path_params["id"]
        if request.method == "DELETE":
            try:
                session = self.registry.find(session_id, bearer(request.headers))
            except ApiError as error:
                if error.status == 404:
                    return Response(status_code=204)
                raise
            await self.registry.end(session, "deleted")
            return Response(status_code=204)
        session = self.registry.find(session_id, bearer(request.headers))
        return JSONResponse(session.about(), headers={"Cache-Control": "no-store"})

    async def poster(self, request: Request) -> Response:
        """The presenter's picture, to be shown beside the dubbed one; the token may be in the address."""
        self._check_caller(request)
        token = request.query_params.get("token") or bearer(request.headers)
        session = self.registry.find(request.path_params["id"], token)
        if session.plan.presenter is None or self._streams is None:
            raise ApiError(
                404, "no_poster", "this session's source is no file", "show the camera's own picture"
            )
        try:
            picture = await self._streams.poster(session.plan.presenter)
        except InputError:
            raise ApiError(
                404, "no_poster", "the presenter's file cannot be read any more", "create another session"
            ) from None
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    # --- sockets

    async def signal(self, socket: WebSocket) -> None:
        """Browser signalling."""
        session = await self._admit(socket)
        if session is not None:
            await _joined(session, socket, Signalling(socket, session, self._settings).run)

    async def voice(self, socket: WebSocket) -> None:
        """Dubbed speech as PCM."""
        session = await self._admit(socket)
        if session is not None:
            await _joined(session, socket, VoiceSocket(socket, session).run)

    async def _admit(self, socket: WebSocket) -> HostedSession | None:
        """Accept the socket and find its session; say why and close where that is not allowed."""
        try:
            self._check_caller(socket)
            token = socket.query_params.get("token") or bearer(socket.headers)
            session = self.registry.find(socket.path_params["id"], token)
            session.join_socket(socket)
        except ApiError as error:
            self.metrics.refused.labels(error.code).inc()
            # A refused handshake would hide the reason from a browser's script; a message does not.
            await socket.accept()
            await _say_no(socket, error)
            return None
        try:
            await socket.accept()
        except BaseException:
            session.leave(socket)
            raise
        return session

    def _check_caller(self, connection: HTTPConnection) -> None:
        check_host(connection.headers, self._settings.loopback_only)
        check_origin(connection.headers, self._settings.allowed_origins)

    def _require_key(self, request: Request) -> None:
        key = self._settings.server_key
        if key is not None:
            require(bearer(request.headers), key.get_secret_value(), "the server key")

    # --- errors

    async def refuse(self, request: Request, error: Exception) -> Response:
        """A refusal as JSON."""
        assert isinstance(error, ApiError)
        self.metrics.refused.labels(error.code).inc()
        return _error(error)


async def _joined(session: HostedSession, socket: WebSocket, run: Callable[[], Awaitable[None]]) -> None:
    """Run a socket that has joined its session, and close it properly whatever happens."""
    try:
        await run()
    finally:
        session.leave(socket)
        if socket.application_state is not WebSocketState.DISCONNECTED:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await socket.close()


async def _say_no(socket: WebSocket, error: ApiError) -> None:
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        await socket.send_text(json.dumps({"type": "error", "error": error.body()}))
        await socket.close(POLICY_VIOLATION, error.code)


async def _json_body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415,
            "not_json",
            f"the body is {kind or 'of no stated type'}",
            "send Content-Type: application/json",
        )
    # Closing spares both sides the rest of what is refused.
    too_large = ApiError(
        413,
        "body_too_large",
        f"the body is larger than {MAX_BODY} bytes",
        "send less",
        {"Connection": "close"},
    )
    if int(request.headers.get("content-length", 0)) > MAX_BODY:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise too_large
    return bytes(body)


def _error(error: ApiError) -> Response:
    return JSONResponse({"error": error.body()}, error.status, dict(error.headers))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        fault = ApiError(
            405, "method_not_allowed", f"{request.method} is not possible here", f"use {allowed}"
        )
    elif error.status_code == 404:
        fault = _unknown_route(request.url.path)
    else:
        fault = ApiError(error.status_code, "refused", error.detail)
    fault.headers = dict(error.headers or {})
    return _error(fault)


async def _gone(request: Request, error: Exception) -> Response:
    logger.info("a client hung up before the end of its request")
    return Response(status_code=400)  # to nobody


async def _fault(request: Request, error: Exception) -> Response:
    # Starlette logs the traceback itself after this; the user gets none of it.
    return _error(ApiError(500, "internal", "this request met a fault of the server", "try again"))


def _unknown_route(path: str) -> ApiError:
    return ApiError(404, "unknown_route", f"there is nothing at {path[:100]}", "the page is at /")


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. Blocks. Raises SettingsError where the address cannot be listened on."""
    listener = listen(settings)
    app = create_app(settings)
    if settings.listen_host != settings.host:
        logger.warning(
            "no server_key is configured, so this machine only is served: listening on %s, not on %s",
            settings.listen_host,
            settings.host,
        )
    elif settings.loopback_only:
        logger.info("no server_key is configured: only this machine is served")
    if settings.allow_unmarked:
        logger.warning("allow_unmarked is set: sessions may leave out the mark that says what is synthetic")
    config = uvicorn.Config(
        app,
        host=settings.listen_host,
        port=settings.port,
        loop="uvloop",
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE,
        # Nobody may make a little of the network into a lot of work: a message is as large as it was sent.
        ws_per_message_deflate=False,
        log_config=None,
        # Its notes of sockets that were accepted hold their whole addresses, tokens included.
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    logger.info("serving on http://%s:%d", settings.listen_host, listener.getsockname()[1])
    with listener:
        Server(config, app.state.registry, settings.drain_timeout_s).run([listener])
