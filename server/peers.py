"""The life of one peer connection: a source, a voice, a viewer, or all of them in one (duplex)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from enum import StrEnum
from fractions import Fraction
from typing import Any, Protocol

from aiortc import MediaStreamTrack, RTCIceServer, RTCRtpSender, RTCRtpTransceiver, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from aiortc.sdp import candidate_from_sdp
from av.packet import Packet

from server.aiortc_compat import PeerConnection, receiver_of
from server.errors import ApiError, bad_request
from server.inlet import OPUS_RATE, VIDEO_RATE, VideoInlet, VoiceInlet
from server.rtp_receiver import PictureTooLargeError
from server.sdp import MAX_CANDIDATES, Offer, Section, admits_candidate, broken
from server.settings import Settings
from stream.encode import Codec, EncodedAudio, EncodedVideo, Subscription, SubscriptionClosed
from stream.rtp_time import SenderClock

logger = logging.getLogger(__name__)

WATCH_INTERVAL_S = 1.0
START_KBPS = 1500
NEGOTIATION_TIMEOUT_S = 6.0
"""Upstream waits five seconds at most, for a STUN or TURN server that is not there."""

UNHEARD_S = 15.0
"""How long a connected peer that sends no media may be silent: its consent checks come every five seconds."""


class Role(StrEnum):
    """What a peer is to its session."""

    SOURCE = "source"
    VOICE = "voice"
    VIEWER = "viewer"
    DUPLEX = "duplex"

    @property
    def watches(self) -> bool:
        return self in (Role.VIEWER, Role.DUPLEX)


class End(StrEnum):
    """Why a peer ended."""

    CLOSED = "closed"
    REPLACED = "replaced"
    VANISHED = "vanished"
    TIMEOUT = "timeout"
    FAILED = "failed"
    REFUSED = "refused"
    SESSION_ENDED = "session_ended"


class Stage(Protocol):
    """What a peer needs of the session that it belongs to."""

    def video_inlet(
        self, loop: asyncio.AbstractEventLoop, owner: object, sender: SenderClock
    ) -> VideoInlet | None: ...

    def voice_inlet(
        self, loop: asyncio.AbstractEventLoop, owner: object, sender: SenderClock
    ) -> VoiceInlet: ...

    def subscribe(self, codec: Codec) -> Subscription: ...


class OutgoingTrack(MediaStreamTrack):
    """A track whose packets were encoded once, for every viewer of the session.

    They are those from the first `recv` on, which the stack calls once the peer is connected: what went out
    while it connected would come as one burst, and old.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self._subscription: Subscription | None = None

    def attach(self, subscription: Subscription) -> None:
        """Give the track its packets; called when negotiation has settled on a codec."""
        subscription.pause()
        self._subscription = subscription

    async def recv(self) -> Packet[Any]:
        """The next packet; pts is its release on the session's clock. Raises MediaStreamError at the end."""
        if self._subscription is None or self.readyState != "live":
            raise MediaStreamError
        self._subscription.resume()
        encoded: EncodedVideo | EncodedAudio
        try:
            if self.kind == "video":
                encoded, rate = await self._subscription.next_video(), VIDEO_RATE
            else:
                encoded, rate = await self._subscription.next_audio(), OPUS_RATE
        except SubscriptionClosed:
            self.stop()
            raise MediaStreamError from None
        packet: Packet[Any] = Packet(encoded.data)
        packet.pts = encoded.due_us * rate // 1_000_000
        packet.time_base = Fraction(1, rate)
        return packet

    def request_key_frame(self) -> None:
        if self._subscription is not None and self.kind == "video":
            self._subscription.request_keyframe()

    def limit_bitrate(self, bits_per_second: int) -> None:
        if self._subscription is not None and self.kind == "video":
            self._subscription.set_bitrate(bits_per_second)


class Peer:
    """One peer connection of a session.

    on_end is called once, on the event loop, with the reason and, where the peer is at fault, the error.
    """

    def __init__(
        self,
        role: Role,
        stage: Stage,
        settings: Settings,
        on_end: Callable[[Peer, End, ApiError | None], None],
    ) -> None:
        self.role = role
        self.state = "new"
        self.ended: End | None = None
        self.is_source = False
        self._stage = stage
        self._settings = settings
        self._on_end = on_end
        self._subscription: Subscription | None = None
        self._candidates = 0
        self._negotiation: asyncio.Task[None] | None = None
        self._watchdog: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._tracks: list[OutgoingTrack] = []
        self._pc = PeerConnection(
            [RTCIceServer(s.urls, s.username, s.credential) for s in settings.ice_servers]
        )

    async def answer(self, offer: Offer, voice_mid: str | None = None) -> str:
        """Negotiate and give the answer's SDP; media starts by itself once connected.

        voice_mid: the m-line whose audio is the dubbed speech; see `choose_voice`.
        Raises ApiError (400) for an SDP that cannot be used; the peer has ended then.
        """
        if self.ended is not None:
            raise _closed()
        negotiation = asyncio.create_task(
            self._negotiate(offer, voice_mid), name=f"{self.role}-peer-negotiation"
        )
        self._negotiation = negotiation
        try:
            # Upstream, cut off in the middle of this, leaves sockets open and servers asked.
            await asyncio.shield(negotiation)
        except ApiError:
            await self.close(End.REFUSED)
            raise
        except Exception as error:
            # Upstream's parser answers a broken SDP with whichever exception its line of code meets first.
            logger.debug("an offer could not be used", exc_info=True)
            await self.close(End.REFUSED)
            raise broken(str(error) or type(error).__name__) from None
        except asyncio.CancelledError:
            # Who asked has gone and gets no answer; nobody else would ever end the peer.
            self._end_soon(End.CLOSED)
            raise
        if self.ended is not None:
            raise _closed()
        self._watchdog = asyncio.create_task(self._watch(), name=f"{self.role}-peer-watchdog")
        return str(self._pc.localDescription.sdp)

    async def _negotiate(self, offer: Offer, voice_mid: str | None) -> None:
        voice = choose_voice(self.role, offer, voice_mid)
        self._prepare(offer)
        await self._pc.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
        self._connect_tracks(offer, voice)
        for candidate in offer.candidates:
            await self._add(candidate)
        await self._pc.setLocalDescription(await self._pc.createAnswer())

    async def add_candidate(self, text: str) -> None:
        """Add a trickled candidate; those that must not be connected to are ignored.

        Raises ApiError (400) for a line that is no candidate, and beyond 30 of them.
        """
        self._candidates += 1
        if self._candidates > MAX_CANDIDATES:
            raise bad_request("too_many_candidates", f"more than {MAX_CANDIDATES} candidates", "send fewer")
        if not text or not admits_candidate(text, self._settings.allow_private_candidates):
            return
        try:
            await self._add(text)
        except Exception as error:
            raise bad_request(
                "bad_candidate", f"the candidate cannot be used: {error}", "send RTCIceCandidate.toJSON()"
            ) from None

    async def _add(self, text: str) -> None:
        # Given to the one transport there is: upstream would keep only the last m-line's, and take none for
        # an m-line that is bundled.
        candidate = candidate_from_sdp(text.removeprefix("candidate:"))
        for transport in self._pc.ice_transports():
            await transport.addRemoteCandidate(candidate)

    async def close(self, reason: End = End.CLOSED, fault: ApiError | None = None) -> None:
        """End the connection and everything that belongs to it. Never raises. Idempotent."""
        if self._closing is None:
            self.ended = reason
            self._closing = asyncio.create_task(self._close(reason, fault), name=f"{self.role}-peer-close")
        await asyncio.shield(self._closing)

    async def _close(self, reason: End, fault: ApiError | None) -> None:
        if self._watchdog is not None and self._watchdog is not asyncio.current_task():
            self._watchdog.cancel()
        if self._negotiation is not None:
            # What it has yet to open, closing now would miss.
            await asyncio.wait({self._negotiation}, timeout=NEGOTIATION_TIMEOUT_S)
        for track in self._tracks:
            track.stop()
        if self._subscription is not None:
            self._subscription.close()
        await self._pc.close()
        self.state = "closed"
        logger.info("%s peer ended: %s", self.role, reason)
        self._on_end(self, reason, fault)

    def _prepare(self, offer: Offer) -> None:
        """Make every transceiver before upstream pairs them with m-lines, in the order of these."""
        unsent = {"audio", "video"} if self.role.watches else set()
        for section in offer.sections:
            if section.kind not in ("audio", "video"):
                continue
            transceiver = self._transceiver(section, outgoing=section.receives and section.kind in unsent)
            if transceiver.direction != "recvonly":
                unsent.discard(section.kind)
            if section.kind == "video":
                transceiver.setCodecPreferences(_preferred("video", ("video/H264", "video/VP8", "video/rtx")))
            elif transceiver.direction != "recvonly":
                transceiver.setCodecPreferences(_preferred("audio", ("audio/opus",)))
            # All share one transport from the start. Upstream would take it for a left-over and stop it
            # where the offer's first m-line is not its first transceiver's.
            transceiver._bundled = True

    def _transceiver(self, section: Section, outgoing: bool) -> RTCRtpTransceiver:
        if not outgoing:
            return self._pc.addTransceiver(section.kind, direction="recvonly")
        track = OutgoingTrack(section.kind)
        self._tracks.append(track)
        return self._pc.addTransceiver(track, direction="sendrecv" if section.sends else "sendonly")

    def _connect_tracks(self, offer: Offer, voice: str | None) -> None:
        loop, sender = asyncio.get_running_loop(), SenderClock()
        sends = {section.mid for section in offer.sections if section.sends}
        for transceiver in self._pc.getTransceivers():
            receiver = receiver_of(transceiver)
            receiver.on_fault = self._at_fault
            if transceiver.mid not in sends:
                continue
            if transceiver.kind == "video" and self.role in (Role.SOURCE, Role.DUPLEX):
                inlet = self._stage.video_inlet(loop, self, sender)
                receiver.sink = inlet
                self.is_source = inlet is not None
                receiver.on_report = inlet.report if inlet is not None else None
                # Browsers begin at 300 kbit/s and take half a minute to trust the path, while the dub can be
                # no sharper than its source. Congestion control brings it down where the path is narrow.
                for codec in transceiver._codecs[:1]:
                    codec.parameters["x-google-start-bitrate"] = START_KBPS
            elif transceiver.kind == "audio" and transceiver.mid == voice:
                voice_inlet = self._stage.voice_inlet(loop, self, sender)
                receiver.sink, receiver.on_report = voice_inlet, voice_inlet.report
        if self._tracks:
            self._subscription = self._stage.subscribe(self._negotiated_codec())
            for track in self._tracks:
                track.attach(self._subscription)

    def _negotiated_codec(self) -> Codec:
        """What the viewer's video m-line settled on."""
        for transceiver in self._pc.getTransceivers():
            if transceiver.kind == "video" and transceiver._codecs:
                return "H264" if transceiver._codecs[0].name == "H264" else "VP8"
        return "H264"

    def _at_fault(self, fault: Exception) -> None:
        if isinstance(fault, PictureTooLargeError):
            error = ApiError(413, "picture_too_large", str(fault), "publish 1920x1080 or less")
        else:
            error = bad_request("undecodable", str(fault))
        self._end_soon(End.REFUSED, error)

    def _end_soon(self, reason: End, fault: ApiError | None = None) -> None:
        if self._closing is None:
            self.ended = reason
            self._closing = asyncio.create_task(self._close(reason, fault), name=f"{self.role}-peer-close")

    async def _watch(self) -> None:
        """End the peer when it never connects, fails, or is not heard any more."""
        deadline = time.monotonic() + self._settings.handshake_timeout_s
        while True:
            await asyncio.sleep(min(WATCH_INTERVAL_S, self._settings.silence_timeout_s / 4))
            now = time.monotonic()
            state = self._pc.connectionState
            self.state = state
            if state in ("failed", "closed"):
                return self._end_soon(End.FAILED if state == "failed" else End.CLOSED)
            if state != "connected":
                if now > deadline:
                    return self._end_soon(End.TIMEOUT)
                continue
            patience = self._settings.silence_timeout_s if self._pc.media_heard else UNHEARD_S
            if now - self._pc.heard_at > patience:
                return self._end_soon(End.VANISHED)


def _closed() -> ApiError:
    return bad_request("closed", "the peer was closed while it was being answered")


def _preferred(kind: str, order: tuple[str, ...]) -> list[Any]:
    """The stack's capabilities of these MIME types, in this order."""
    codecs = RTCRtpSender.getCapabilities(kind).codecs
    return [codec for mime in order for codec in codecs if codec.mimeType.lower() == mime.lower()]


def choose_voice(role: Role, offer: Offer, named: str | None) -> str | None:
    """The mid of the m-line that carries the dubbed speech, None where there is none.

    An m-line named by the client wins. Else a voice's audio is the voice; of two audio m-lines, the second
    is (the first being the source's own sound); a duplex peer's only audio is. Raises ApiError (400) for a
    name that is no sending audio m-line of the offer.
    """
    sending = [section.mid for section in offer.of_kind("audio") if section.sends]
    if named is not None:
        if named not in sending:
            raise bad_request(
                "unknown_voice_track",
                f"no audio m-line with mid {named[:40]!r} is sent",
                "name the mid of the audio transceiver that carries the dubbed speech, or none",
            )
        return named
    if role is Role.VIEWER or not sending:
        return None
    if role is Role.SOURCE:
        return sending[1] if len(sending) > 1 else None
    return sending[-1]
