"""The browser's signalling: JSON over one WebSocket, any number of roles on it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from server.errors import ApiError, bad_request, first_problem
from server.hosted import HostedSession
from server.peers import End, Peer, Role
from server.sdp import MAX_SDP_BYTES, vet_offer
from server.settings import Settings

logger = logging.getLogger(__name__)

MAX_MESSAGE = MAX_SDP_BYTES + 64 * 1024
STATS_INTERVAL_S = 0.5
OUTBOX = 64
"""Messages that may wait for a slow client; beyond that its connection is given up."""

NORMAL, GOING_AWAY, POLICY = 1000, 1001, 1008


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OfferMessage(_Message):
    """A new peer connection. voice: mid of the audio m-line that carries the dubbed speech."""

    type: Literal["offer"]
    role: Role
    sdp: str
    voice: str | None = None


class AnswerMessage(_Message):
    """Part of the protocol's vocabulary; this server makes no offers that it could answer."""

    type: Literal["answer"]
    role: Role | None = None
    sdp: str = ""


class Candidate(BaseModel):
    """As RTCIceCandidate.toJSON() gives it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    candidate: str = Field(max_length=1024)


class CandidateMessage(_Message):
    """A trickled candidate; null says that no more will come. role: needed where the socket has several."""

    type: Literal["candidate"]
    role: Role | None = None
    candidate: Candidate | None = None


class StatsMessage(BaseModel):
    """What the page measures; kept as the peer's last report."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: Literal["stats"]
    role: Role | None = None


class InterruptMessage(_Message):
    """Silence the voice now."""

    type: Literal["interrupt"]


class ByeMessage(_Message):
    """End one role's peer, or all of this socket's. reason is for the log."""

    type: Literal["bye"]
    role: Role | None = None
    reason: str | None = Field(None, max_length=200)


ClientMessage = Annotated[
    OfferMessage | AnswerMessage | CandidateMessage | StatsMessage | InterruptMessage | ByeMessage,
    Field(discriminator="type"),
]

_MESSAGES: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage)


def parse(text: str) -> ClientMessage:
    """One message. Raises ApiError (400 or 413) that says what is wrong with it."""
    if len(text) > MAX_MESSAGE:
        raise ApiError(413, "message_too_large", f"the message is longer than {MAX_MESSAGE} characters")
    try:
        return _MESSAGES.validate_json(text)
    except ValidationError as error:
        problem = first_problem(list(error.errors()))
    raise bad_request(
        "bad_message",
        f"the message cannot be used: {problem}",
        "send JSON with a type of offer, candidate, stats, interrupt or bye",
    )


class Signalling:
    """One client's socket.

    Its peers outlive it while their media flows, so that a proxy that drops sockets costs no stream; without
    a bye, it is the media watchdog that ends them.
    """

    def __init__(self, socket: WebSocket, session: HostedSession, settings: Settings) -> None:
        self._socket = socket
        self._session = session
        self._settings = settings
        self._peers: dict[Role, Peer] = {}
        self._outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue(OUTBOX)

    async def run(self) -> None:
        """Serve the socket until either side closes it, or the session ends."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write(), name="signalling-write")
                group.create_task(self._report(), name="signalling-stats")
                group.create_task(self._end_with_session(), name="signalling-session-end")
                await self._read()
                raise _Over
        except* (_Over, WebSocketDisconnect):
            pass

    async def _read(self) -> None:
        while True:
            event = await self._socket.receive()
            if event["type"] == "websocket.disconnect":
                return
            try:
                await self._handle(parse(_text(event)))
            except ApiError as error:
                self._say({"type": "error", "error": error.body()})
            except Exception:
                logger.exception("a signalling message could not be handled")
                body = ApiError(500, "internal", "this message could not be handled", "try again").body()
                self._say({"type": "error", "error": body})

    async def _handle(self, message: ClientMessage) -> None:
        match message:
            case OfferMessage():
                await self._offer(message)
            case CandidateMessage():
                peer = self._peer(message.role)
                if message.candidate is not None:
                    await peer.add_candidate(message.candidate.candidate)
            case StatsMessage():
                self._session.note_client_stats(message.model_extra or {})
            case InterruptMessage():
                self._session.interrupt()
            case ByeMessage():
                await self._bye(message.role)
            case AnswerMessage():
                raise bad_request(
                    "unexpected_answer",
                    "this server has made no offer",
                    "send an offer; the answer comes back",
                )

    async def _offer(self, message: OfferMessage) -> None:
        offer = vet_offer(message.sdp, self._settings.allow_private_candidates)
        former = self._peers.pop(message.role, None)
        if former is not None:
            await former.close(End.REPLACED)
        peer = self._session.new_peer(message.role, self._ended)
        self._peers[message.role] = peer
        sdp = await peer.answer(offer, message.voice)
        if peer.is_source:
            await self._session.replace_source(peer)
        if peer.role is Role.VOICE:
            await self._session.replace_voice(peer)
        self._say({"type": "answer", "role": message.role, "sdp": sdp})

    def _peer(self, role: Role | None) -> Peer:
        if role is None and len(self._peers) == 1:
            return next(iter(self._peers.values()))
        peer = None if role is None else self._peers.get(role)
        if peer is None:
            raise bad_request(
                "no_such_peer", "there is no peer of that role on this socket", "send its offer first"
            )
        return peer

    async def _bye(self, role: Role | None) -> None:
        peers = list(self._peers.values()) if role is None else [self._peer(role)]
        for peer in peers:
            await peer.close(End.CLOSED)

    def _ended(self, peer: Peer, reason: End, fault: ApiError | None) -> None:
        if self._peers.get(peer.role) is peer:
            del self._peers[peer.role]
        elif reason is End.REPLACED:
            return  # by this socket's own next offer, whose answer says enough
        if reason is End.REFUSED and fault is None:
            return  # the offer itself was refused, and its error says why
        if fault is not None:
            self._say({"type": "error", "error": fault.body()})
        self._say({"type": "bye", "role": peer.role, "reason": reason})

    def _say(self, message: dict[str, Any]) -> None:
        try:
            self._outbox.put_nowait(message)
        except asyncio.QueueFull:
            logger.debug("a signalling client reads too slowly; its oldest message is dropped")
            self._outbox.get_nowait()
            self._outbox.put_nowait(message)

    async def _write(self) -> None:
        while True:
            message = await self._outbox.get()
            if self._socket.application_state is not WebSocketState.CONNECTED:
                raise _Over
            await self._socket.send_text(json.dumps(message, allow_nan=False))
            if message["type"] == "bye" and message.get("reason") == End.SESSION_ENDED:
                await self._socket.close(GOING_AWAY)
                raise _Over

    async def _report(self) -> None:
        while True:
            self._say({"type": "stats", **self._session.stats()})
            await asyncio.sleep(STATS_INTERVAL_S)

    async def _end_with_session(self) -> None:
        await self._session.ended.wait()
        self._say({"type": "bye", "reason": End.SESSION_ENDED})


class _Over(Exception):
    """The socket is done with."""


def _text(event: Mapping[str, Any]) -> str:
    text = event.get("text")
    if text is None:
        raise bad_request("bad_message", "signalling is text", "send JSON in text frames")
    return str(text)
