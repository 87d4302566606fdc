"""Dubbed speech as PCM over a WebSocket: start, samples, interrupt, end; credit and playhead back."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from server.errors import ApiError, first_problem
from server.hosted import HostedSession
from stream.errors import VoiceFull
from stream.session import Policy
from stream.voice import VoiceFormat

logger = logging.getLogger(__name__)

MAX_CHUNK = 64 * 1024
MAX_TEXT = 4096
MAX_HELD = 4 * 1024 * 1024
"""Bytes of samples that a client may send beyond its credit; they wait here, so that reading never stops."""

REPORT_INTERVAL_S = 0.1
LEAST_GRANT_MS = 100
MOST_AHEAD_MS = 10_000
ROUND_OFF_MS = 20
"""Credit is whole milliseconds and resampling keeps a few samples; this much is always kept back."""

GOING_AWAY, BAD_DATA, POLICY = 1001, 1007, 1008


class Start(BaseModel):
    """How the binary messages that follow are to be read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["start"]
    rate: int = Field(ge=8000, le=48000)
    channels: int = Field(1, ge=1, le=2)
    format: Literal["s16le", "f32le"] = "s16le"


class Interrupt(BaseModel):
    """Silence everything not yet heard."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["interrupt"]


class At(BaseModel):
    """The samples that follow dub what was said at this time of the session's clock, in milliseconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["at"]
    ms: float = Field(ge=0, le=1e12)


class Finish(BaseModel):
    """The utterance is complete."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["end"]


Header = Annotated[Start | At | Interrupt | Finish, Field(discriminator="type")]
_HEADERS: TypeAdapter[Header] = TypeAdapter(Header)

START_HINT = (
    '{"type":"start","rate":24000,"channels":1,"format":"s16le"} with rate 8000..48000, then binary PCM'
)


class Refusal(Exception):
    """The client broke the protocol; the socket closes with `code`, the session goes on."""

    def __init__(self, code: int, error: ApiError) -> None:
        super().__init__(str(error))
        self.code = code
        self.error = error


@dataclass(frozen=True, slots=True)
class _Held:
    """Samples that the voice had no room for when they came; none at all for the end of an utterance."""

    samples: NDArray[Any]
    form: VoiceFormat
    at_us: int | None

    @property
    def milliseconds(self) -> float:
        return _milliseconds(self.samples, self.form)


class VoiceSocket:
    """One client that speaks. A later one takes the voice over; so does a client that reconnects.

    The socket is read without a pause, or an interruption would wait behind the very speech that it is to
    silence. After an interruption, whoever asked for it, nothing is speech until the client begins anew.
    """

    def __init__(self, socket: WebSocket, session: HostedSession) -> None:
        self._socket = socket
        self._session = session
        self._start: Start | None = None
        self._outstanding_ms = 0.0
        self._held: deque[_Held] = deque()
        self._held_bytes = 0
        self._epoch = self._told = session.voice.epoch
        self._silenced = False
        self._rest = b""
        self._at_us: int | None = None

    async def run(self) -> None:
        """Serve the socket until either side closes it, it loses the voice, or the session ends."""
        replaced = self._session.claim_voice(self)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._report(), name="voice-socket-report")
                group.create_task(self._leave_when(replaced, "replaced"), name="voice-socket-replaced")
                group.create_task(self._leave_when(self._session.ended, "session_ended"), name="voice-end")
                await self._read()
                raise _Over
        except* (_Over, WebSocketDisconnect):
            pass
        except* Refusal as refusals:
            refusal = next(e for e in refusals.exceptions if isinstance(e, Refusal))
            await self._refuse(refusal)
        finally:
            if self._session.holds_voice(self):
                self._session.voice.end()
            self._session.release_voice(self)

    async def _read(self) -> None:
        while True:
            event = await self._socket.receive()
            if event["type"] == "websocket.disconnect":
                return
            if event.get("text") is not None:
                await self._control(str(event["text"]))
            else:
                self._hear(event.get("bytes") or b"")

    async def _control(self, text: str) -> None:
        if len(text) > MAX_TEXT:
            raise _bad(POLICY, "message_too_large", f"a text message is longer than {MAX_TEXT} characters")
        try:
            header = _HEADERS.validate_json(text, strict=True)
        except ValidationError as error:
            problem = first_problem(list(error.errors()))
            raise _bad(POLICY, "bad_header", f"the message cannot be used: {problem}") from None
        self._notice_interruption()
        match header:
            case Start():
                self._start = header
                self._rest = b""
                self._silenced = False
                await self._send(self._credit())
            case At():
                if self._session.plan.policy is not Policy.ALIGNED:
                    raise _bad(POLICY, "not_aligned", "time stamps need a session of policy aligned")
                if header.ms > self._session.now_ms() + MOST_AHEAD_MS:
                    raise _bad(POLICY, "bad_time", f"a time stamp is more than {MOST_AHEAD_MS} ms ahead")
                self._rest = b""
                self._at_us = round(header.ms * 1000)
            case Interrupt():
                # Whoever has lost the voice has nothing left to silence but somebody else's speech.
                if self._session.holds_voice(self):
                    self._session.interrupt()
                await self._tell_interruption()
            case Finish():
                self._rest = b""
                if not self._silenced:
                    self._held.append(_Held(np.zeros(0, np.int16), VoiceFormat(), None))
                    self._advance()

    def _hear(self, data: bytes) -> None:
        if self._start is None:
            raise _bad(POLICY, "no_start", "samples came before a start message")
        if len(data) > MAX_CHUNK:
            raise _bad(POLICY, "chunk_too_large", f"a binary message is longer than {MAX_CHUNK} bytes")
        self._notice_interruption()
        samples, self._rest = _samples(self._rest + data, self._start)
        form = VoiceFormat(self._start.rate, self._start.channels)
        self._outstanding_ms = max(0.0, self._outstanding_ms - _milliseconds(samples, form))
        if self._silenced or not samples.size:
            return
        self._held.append(_Held(samples, form, self._at_us))
        self._held_bytes += samples.nbytes
        self._at_us = None
        self._advance()
        if self._held_bytes > MAX_HELD:
            raise _bad(POLICY, "credit_exceeded", f"more than {MAX_HELD} bytes were sent beyond the credit")

    def _advance(self) -> None:
        """Give the voice what it has room for."""
        voice = self._session.voice
        while self._held:
            first = self._held[0]
            try:
                if first.samples.size:
                    voice.push(first.samples, first.form, at_us=first.at_us)
                else:
                    voice.end()
            except VoiceFull:
                return
            self._held.popleft()
            self._held_bytes -= first.samples.nbytes

    def _notice_interruption(self) -> None:
        """Drop what was not said yet where anybody has interrupted the voice since this was last asked."""
        if self._session.voice.epoch == self._epoch:
            return
        self._epoch = self._session.voice.epoch
        self._silenced = True
        self._held.clear()
        self._held_bytes = 0
        self._rest = b""
        self._at_us = None

    async def _tell_interruption(self) -> None:
        self._notice_interruption()
        if self._told != self._epoch:
            self._told = self._epoch
            await self._send({"type": "interrupted", "epoch": self._epoch})

    async def _report(self) -> None:
        buffered_before = 0
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            await self._tell_interruption()
            self._advance()
            voice = self._session.voice
            buffered = voice.buffered_ms() + self._held_ms()
            if buffered or buffered_before:
                await self._send(
                    {
                        "type": "playhead",
                        "played_ms": self._session.played_ms(),
                        "buffered_ms": buffered,
                        "epoch": voice.epoch,
                        "now_ms": self._session.now_ms(),
                    }
                )
            buffered_before = buffered
            if self._start is not None and not self._silenced and self._owed() >= LEAST_GRANT_MS:
                await self._send(self._credit())

    def _held_ms(self) -> int:
        return int(sum(held.milliseconds for held in self._held))

    def _owed(self) -> int:
        room = self._session.voice.credit_ms() - self._held_ms()
        return int(room - ROUND_OFF_MS - self._outstanding_ms)

    def _credit(self) -> dict[str, Any]:
        more = max(0, self._owed())
        self._outstanding_ms += more
        return {"type": "credit", "ms": more, "now_ms": self._session.now_ms()}

    async def _leave_when(self, event: asyncio.Event, reason: str) -> None:
        await event.wait()
        await self._socket.close(GOING_AWAY, reason)
        raise _Over

    async def _send(self, message: dict[str, Any]) -> None:
        # Another task may be closing the socket at this moment.
        if self._socket.application_state is not WebSocketState.CONNECTED:
            raise _Over
        await self._socket.send_text(json.dumps(message))

    async def _refuse(self, refusal: Refusal) -> None:
        logger.info("a voice socket was refused: %s", refusal)
        try:
            await self._send({"type": "error", "error": refusal.error.body()})
            await self._socket.close(refusal.code, refusal.error.code)
        except (WebSocketDisconnect, _Over):
            logger.debug("a refused voice socket had gone already")


class _Over(Exception):
    """The socket is done with."""


def _bad(close_code: int, code: str, message: str) -> Refusal:
    return Refusal(close_code, ApiError(400, code, message, f"send {START_HINT}"))


def _milliseconds(samples: NDArray[Any], form: VoiceFormat) -> float:
    return len(samples) / form.channels * 1000 / form.rate


def _samples(data: bytes, start: Start) -> tuple[NDArray[Any], bytes]:
    """Whole frames as an interleaved array, and the bytes of a frame that a message boundary cut."""
    kind = np.dtype("<i2" if start.format == "s16le" else "<f4")
    whole = len(data) - len(data) % (kind.itemsize * start.channels)
    samples = np.frombuffer(data[:whole], kind)
    if kind.kind == "f" and not np.isfinite(samples).all():
        raise _bad(BAD_DATA, "bad_samples", "f32le samples must be finite numbers in -1..1")
    return samples.astype(kind.newbyteorder("=")), data[whole:]
