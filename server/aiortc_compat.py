"""What aiortc 1.16.0 forces on us, in one room.

Nothing of aiortc is patched: a `PeerConnection` puts our own receiver and sender into its transceivers and
adjusts its own ICE connections, instance by instance. It leans on private names to do so; `check_upstream`
says clearly when they are gone, and tests/server/test_aiortc_compat.py fails when their meaning changes.

The points, by the numbers of the design's list:
1. video leaves on its marker bit and every complete frame is drained at each packet; audio skips holes
   (receiver); 2. empty encoded frames never reach a decoder (rtp_reorder); 3. NACK is retried, and a stalled
   head asks for a key frame; 4. PLI and REMB reach the encoder behind the track (sender); 5. packets arrive
   encoded, so no audio level is ever computed in Python; 6. sender reports are computed from pts, on one
   anchor for all tracks; 8. a host with only loopback gathers candidates; 9. max-bundle; 10. no ICE servers
   unless configured. 7 (RSA cipher suites for GStreamer) belongs to WHIP.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from aioice.ice import Connection
from aiortc import (
    MediaStreamTrack,
    RTCBundlePolicy,
    RTCConfiguration,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpReceiver,
    RTCRtpSender,
    RTCRtpTransceiver,
)
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcicetransport import RTCIceTransport
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtcrtpsender import RTCEncodedFrame
from aiortc.rtp import (
    RTCP_PSFB_APP,
    AnyRtcpPacket,
    RtcpPsfbPacket,
    RtcpSrPacket,
    unpack_remb_fci,
)

from server.rtp_receiver import Receiver

logger = logging.getLogger(__name__)

PINNED = {"aiortc": "1.16.0", "aioice": "0.13.0", "av": "18.1.0"}

_PRIVATE_NAMES: tuple[tuple[type, str], ...] = (
    (RTCPeerConnection, "_RTCPeerConnection__createTransceiver"),
    (RTCPeerConnection, "_RTCPeerConnection__createDtlsTransport"),
    (RTCPeerConnection, "_RTCPeerConnection__connect"),
    (RTCRtpSender, "_next_encoded_frame"),
    (RTCRtpSender, "_send_keyframe"),
    (RTCRtpSender, "_send_rtcp"),
    (RTCRtpSender, "_handle_rtcp_packet"),
    (RTCDtlsTransport, "_register_rtp_receiver"),
    (RTCDtlsTransport, "_unregister_rtp_receiver"),
    (RTCDtlsTransport, "_send_rtp"),
    (Connection, "get_component_candidates"),
    (Connection, "data_received"),
    (Connection, "request_received"),
)

CLOSE_TIMEOUT_S = 5.0
LOOPBACK = ("127.0.0.1",)


class UnsupportedUpstreamError(RuntimeError):
    """The installed aiortc, aioice or av is not one that this module knows."""


def check_upstream() -> None:
    """Refuse to run on an upstream whose insides differ; warn where only the version number does.

    Raises UnsupportedUpstreamError, naming what is missing and which versions would be right.
    """
    wanted = ", ".join(f"{name}=={version}" for name, version in PINNED.items())
    missing = [f"{owner.__name__}.{name}" for owner, name in _PRIVATE_NAMES if not hasattr(owner, name)]
    if missing:
        raise UnsupportedUpstreamError(
            f"the installed WebRTC stack lacks {', '.join(missing)}; install {wanted}"
        )
    for name, version in PINNED.items():
        found = importlib.metadata.version(name)
        if found != version:
            logger.warning(
                "%s %s is installed, but only %s was tested; install %s", name, found, version, wanted
            )


@runtime_checkable
class EncodedTrack(Protocol):
    """What a track of encoded packets may offer its sender on top of `recv()`."""

    def request_key_frame(self) -> None:
        """A viewer lost its place (PLI or FIR)."""
        ...

    def limit_bitrate(self, bits_per_second: int) -> None:
        """A viewer estimates that no more than this gets through (REMB)."""
        ...


class NtpAnchor:
    """Ties the pts of all tracks of one connection to one NTP time line (RFC 3550 section 6.4.1)."""

    def __init__(self) -> None:
        self._zero_us: int | None = None

    def stamp(self, seconds: float) -> int:
        """The 64-bit NTP time of a pts, the first one ever given being now."""
        pts_us = round(seconds * 1_000_000)
        if self._zero_us is None:
            self._zero_us = int(time.time() * 1_000_000) + _NTP_UNIX_US - pts_us
        whole, rest = divmod(self._zero_us + pts_us, 1_000_000)
        return (whole << 32) | ((rest << 32) // 1_000_000)


_NTP_UNIX_US = 2_208_988_800 * 1_000_000
"""Microseconds from NTP's epoch (1900) to Unix's (1970)."""


class Sender(RTCRtpSender):
    """Sends packets that are encoded already, and hands feedback on to whoever encodes them."""

    def __init__(
        self, track_or_kind: MediaStreamTrack | str, transport: RTCDtlsTransport, anchor: NtpAnchor
    ) -> None:
        self._anchor = anchor
        self._pts_seconds: float | None = None
        super().__init__(track_or_kind, transport)

    # Upstream notes the time of sending here after every packet and reports it as that packet's time, which
    # makes a late track look in sync. A data descriptor takes its reads and ignores its writes.
    @property
    def _RTCRtpSender__ntp_timestamp(self) -> int:
        return 0 if self._pts_seconds is None else self._anchor.stamp(self._pts_seconds)

    @_RTCRtpSender__ntp_timestamp.setter
    def _RTCRtpSender__ntp_timestamp(self, _value: int) -> None:
        pass

    async def _next_encoded_frame(self, codec: RTCRtpCodecParameters) -> RTCEncodedFrame | None:
        frame = await super()._next_encoded_frame(codec)
        if frame is not None:
            self._pts_seconds = frame.timestamp / codec.clockRate
        return frame

    def _send_keyframe(self) -> None:
        if isinstance(self.track, EncodedTrack):
            self.track.request_key_frame()

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpPsfbPacket) and packet.fmt == RTCP_PSFB_APP:
            try:
                bitrate, ssrcs = unpack_remb_fci(packet.fci)
            except (ValueError, IndexError):
                return
            if self._ssrc in ssrcs and isinstance(self.track, EncodedTrack):
                self.track.limit_bitrate(bitrate)
            return
        await super()._handle_rtcp_packet(packet)

    async def _send_rtcp(self, packets: list[AnyRtcpPacket]) -> None:
        # A report before the first packet would map RTP time 0 to the year 1900.
        if any(isinstance(p, RtcpSrPacket) and p.sender_info.packet_count == 0 for p in packets):
            return
        await super()._send_rtcp(packets)


class PeerConnection(RTCPeerConnection):
    """An RTCPeerConnection with our receiver and sender, and with a note of when its peer was last heard."""

    def __init__(self, ice_servers: Sequence[RTCIceServer] = ()) -> None:
        self.heard_at = time.monotonic()
        self.media_heard = False
        self._anchor = NtpAnchor()
        super().__init__(
            RTCConfiguration(iceServers=list(ice_servers), bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
        )

    def ice_transports(self) -> set[RTCIceTransport]:
        """The transports in use; one, since everything is bundled."""
        return {t.receiver.transport.transport for t in self.getTransceivers()}

    def _RTCPeerConnection__createTransceiver(
        self, direction: str, kind: str, sender_track: MediaStreamTrack | None = None
    ) -> RTCRtpTransceiver:
        transceiver: RTCRtpTransceiver = super()._RTCPeerConnection__createTransceiver(  # type: ignore[misc]
            direction=direction, kind=kind, sender_track=sender_track
        )
        transport = transceiver.receiver.transport
        sender = Sender(sender_track or kind, transport, self._anchor)
        sender._stream_id = transceiver.sender._stream_id
        receiver = Receiver(kind, transport)
        receiver._set_rtcp_ssrc(sender._ssrc)
        private: Any = transceiver
        private._RTCRtpTransceiver__sender = sender
        private._RTCRtpTransceiver__receiver = receiver
        return transceiver

    def _RTCPeerConnection__createDtlsTransport(self) -> RTCDtlsTransport:
        transport: RTCDtlsTransport = super()._RTCPeerConnection__createDtlsTransport()  # type: ignore[misc]
        connection = transport.transport._connection
        allow_loopback(connection)
        self._listen(connection)
        return transport

    async def _RTCPeerConnection__connect(self) -> None:
        # Upstream starts this as a task that nobody awaits. What fails in it never connects, which the
        # peer's watchdog sees.
        try:
            await super()._RTCPeerConnection__connect()  # type: ignore[misc]
        except Exception:
            logger.debug("a peer connection could not be started", exc_info=True)

    def _listen(self, connection: Connection) -> None:
        data_received, request_received = connection.data_received, connection.request_received

        @functools.wraps(data_received)
        def on_data(*args: Any, **kwargs: Any) -> None:
            self.heard_at = time.monotonic()
            # RFC 7983: 128..191 is RTP or RTCP; the handshake before it does not count as media.
            self.media_heard = self.media_heard or (bool(args[0]) and 127 < args[0][0] < 192)
            data_received(*args, **kwargs)

        @functools.wraps(request_received)
        def on_request(*args: Any, **kwargs: Any) -> None:
            self.heard_at = time.monotonic()
            request_received(*args, **kwargs)

        instance: Any = connection
        instance.data_received = on_data
        instance.request_received = on_request

    async def close(self) -> None:
        """End the connection, whatever state it is in. Never raises, never hangs. Idempotent."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await super().close()
        except Exception:
            logger.warning("closing a peer connection failed; closing its parts one by one", exc_info=True)
            for transceiver in self.getTransceivers():
                transport = transceiver.receiver.transport
                for part in (transceiver.receiver, transceiver.sender, transport, transport.transport):
                    try:
                        async with asyncio.timeout(1):
                            await part.stop()
                    except Exception:
                        logger.debug("stopping %r failed", part, exc_info=True)


def allow_loopback(connection: Connection) -> None:
    """Let a host without any other address offer its loopback one: upstream never lists it."""
    gather = connection.get_component_candidates

    @functools.wraps(gather)
    async def gather_somewhere(component: int, addresses: list[str], **kwargs: Any) -> Any:
        return await gather(component=component, addresses=addresses or list(LOOPBACK), **kwargs)

    instance: Any = connection
    instance.get_component_candidates = gather_somewhere


def receiver_of(transceiver: RTCRtpTransceiver) -> Receiver:
    """The transceiver's receiver, as ours."""
    receiver: RTCRtpReceiver | Receiver = transceiver.receiver
    assert isinstance(receiver, Receiver)
    return receiver
