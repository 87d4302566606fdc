"""Receives one track: reorders, asks for what is missing, decodes in a thread of its own, hands frames on.

Stands in for aiortc's RTCRtpReceiver with the methods that its peer connection and transport call.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import av
from aiortc.codecs import depayload, get_decoder, is_rtx
from aiortc.jitterbuffer import JitterFrame
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rate import RemoteBitrateEstimator
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpCodecParameters, RTCRtpReceiveParameters
from aiortc.rtcrtpreceiver import RemoteStreamTrack, StreamStatistics
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    AnyRtcpPacket,
    RtcpByePacket,
    RtcpPsfbPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtcpSrPacket,
    RtpPacket,
    pack_remb_fci,
    unwrap_rtx,
)
from aiortc.stats import RTCStatsReport
from av.codec.context import Flags

from server.rtp_reorder import AudioReorderer, EncodedFrame, Packet, VideoAssembler, h264_is_key, vp8_is_key

logger = logging.getLogger(__name__)

MAX_SIDE = 1920
"""The longest picture side that is taken, in pixels."""

MAX_DECODED_PIXELS = 4096 * 4096
"""What FFmpeg may allocate for a picture, so that a crafted header cannot cost gigabytes. Well above what is
taken, so that an honest camera that is too large is told so."""

DECODER_BACKLOG = 32
"""Encoded frames a decoder may be behind; a second of video. Beyond that, video restarts at a key frame."""

KEY_REQUEST_INTERVAL_US = 500_000

LEAST_REMB_BPS = 1_500_000
"""Upstream's estimator takes the time at which this process got round to a packet for its arrival, so a busy
moment of ours looks like a jammed path, and it never rises above what a camera happens to send. Below this
rate it is not believed, unless packets are lost too."""

LEAST_REMB_LOSSY_BPS = 200_000
LOSSY = 5
"""256ths of the packets lost between two reports, from which on the estimate is believed."""

TIMER_S = 0.02
STOP_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """One decoded frame.

    timestamp: its RTP time stamp as sent (32 bits). arrived_us: time.monotonic in microseconds at which its
    last packet came.
    """

    frame: av.VideoFrame | av.AudioFrame
    timestamp: int
    arrived_us: int


Sink = Callable[[Decoded], None]
"""Takes decoded frames, in the decoder's thread."""

ReportSink = Callable[[int, int], None]
"""Takes a sender report's NTP time (64 bits) and RTP time (32 bits)."""


class PictureTooLargeError(ValueError):
    """A publisher sends pictures beyond MAX_SIDE."""


def monotonic_us() -> int:
    """The clock that arrivals are stamped with."""
    return time.monotonic_ns() // 1000


class Receiver:
    """One incoming track.

    Set `sink` before media flows; without one, packets are counted and dropped undecoded. on_fault is called
    on the event loop, once, with what made the track useless.
    """

    def __init__(self, kind: str, transport: RTCDtlsTransport) -> None:
        self.kind = kind
        self.sink: Sink | None = None
        self.on_report: ReportSink | None = None
        self.on_fault: Callable[[Exception], None] | None = None
        self.packets_received = 0
        self._enabled = True
        self._track: RemoteStreamTrack | None = None
        self._transport = transport
        self._codecs: dict[int, RTCRtpCodecParameters] = {}
        self._rtx_ssrcs: dict[int, int] = {}
        self._rtcp_ssrc: int | None = None
        self._video: VideoAssembler | None = None
        self._audio = AudioReorderer()
        self._estimator = RemoteBitrateEstimator() if kind == "video" else None
        self._statistics: dict[int, StreamStatistics] = {}
        self._last_reports: dict[int, tuple[int, float]] = {}
        self._media_ssrc = 0
        self._lost_share = 0
        self._codec: RTCRtpCodecParameters | None = None
        self._key_requested_us = 0
        self._timer: asyncio.TimerHandle | None = None
        self._feedback: set[asyncio.Task[None]] = set()
        self._decoder: DecoderThread | None = None
        self._reports: asyncio.Task[None] | None = None

    @property
    def track(self) -> MediaStreamTrack | None:
        return self._track

    @property
    def transport(self) -> RTCDtlsTransport:
        return self._transport

    @property
    def skipped(self) -> int:
        """Audio packets that never came, or video frames withheld until a key frame."""
        return self._video.dropped_frames if self._video is not None else self._audio.skipped

    def setTransport(self, transport: RTCDtlsTransport) -> None:
        self._transport = transport

    def _set_rtcp_ssrc(self, ssrc: int) -> None:
        self._rtcp_ssrc = ssrc

    async def getStats(self) -> RTCStatsReport:
        return RTCStatsReport()

    async def receive(self, parameters: RTCRtpReceiveParameters) -> None:
        """Start. Called again on every renegotiation; only the first time counts."""
        if self._decoder is not None:
            return
        self._codecs = {c.payloadType: c for c in parameters.codecs if c.payloadType is not None}
        self._rtx_ssrcs = {e.rtx.ssrc: e.ssrc for e in parameters.encodings if e.rtx}
        self._decoder = DecoderThread(self.kind, asyncio.get_running_loop(), self._decoded, self._undecodable)
        self._transport._register_rtp_receiver(self, parameters)
        self._reports = asyncio.create_task(self._report_regularly(), name=f"{self.kind}-receiver-reports")

    async def stop(self) -> None:
        """Stop for good. Returns when the decoder's thread has ended, or has been given up."""
        self._transport._unregister_rtp_receiver(self)
        self._halt()
        if self._reports is not None:
            self._reports.cancel()
            await asyncio.gather(self._reports, return_exceptions=True)
        if self._feedback:
            await asyncio.gather(*self._feedback, return_exceptions=True)
        if self._decoder is not None:
            await self._decoder.join()

    def _handle_disconnect(self) -> None:
        self._halt()

    def _halt(self) -> None:
        self._enabled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._decoder is not None:
            self._decoder.stop()
        if self._track is not None:
            self._track.stop()

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpSrPacket):
            info = packet.sender_info
            self._last_reports[packet.ssrc] = ((info.ntp_timestamp >> 16) & 0xFFFFFFFF, time.time())
            if self.on_report is not None and packet.ssrc == self._media_ssrc:
                self.on_report(info.ntp_timestamp, info.rtp_timestamp)
        elif isinstance(packet, RtcpByePacket):
            self._halt()

    async def _handle_rtp_packet(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        codec = self._codecs.get(packet.payload_type)
        if not self._enabled or codec is None:
            return
        now_us = monotonic_us()
        self.packets_received += 1
        if self._estimator is not None and packet.extensions.abs_send_time is not None:
            self._estimate(packet, arrival_time_ms)
        if packet.ssrc not in self._statistics:
            self._statistics[packet.ssrc] = StreamStatistics(codec.clockRate)
        self._statistics[packet.ssrc].add(packet)
        unwrapped = self._unwrap_rtx(packet, codec) if is_rtx(codec) else packet
        if unwrapped is None:
            return
        packet, codec = unwrapped, self._codecs[unwrapped.payload_type]
        if self.sink is None:
            return
        try:
            data = depayload(codec, packet.payload) if packet.payload else b""
        except (ValueError, IndexError):
            return
        if codec is not self._codec or packet.ssrc != self._media_ssrc:
            self._restart(codec, packet.ssrc)
        part = Packet(packet.sequence_number, packet.timestamp, bool(packet.marker), data, now_us)
        self._forward(self._video.add(part) if self._video is not None else self._audio.add(part), now_us)

    def _restart(self, codec: RTCRtpCodecParameters, ssrc: int) -> None:
        """A new source, or a new codec, numbers its packets anew."""
        self._codec, self._media_ssrc = codec, ssrc
        if self.kind == "video":
            self._video = VideoAssembler(h264_is_key if codec.name == "H264" else vp8_is_key)
        else:
            self._audio = AudioReorderer()

    def _unwrap_rtx(self, packet: RtpPacket, codec: RTCRtpCodecParameters) -> RtpPacket | None:
        original = self._rtx_ssrcs.get(packet.ssrc)
        apt = codec.parameters.get("apt")
        if original is None or len(packet.payload) < 2 or not isinstance(apt, int) or apt not in self._codecs:
            return None
        return unwrap_rtx(packet, payload_type=apt, ssrc=original)

    def _forward(self, frames: list[EncodedFrame], now_us: int) -> None:
        assert self._codec is not None
        for frame in frames:
            if self._decoder is not None and not self._decoder.put(self._codec, frame) and self._video:
                self._video.lose(now_us)
        if self._video is not None:
            if missing := self._video.nacks(now_us):
                self._send(self._nack(missing))
            if now_us - self._key_requested_us >= KEY_REQUEST_INTERVAL_US and self._video.take_key_request():
                self._key_requested_us = now_us
                self._send(self._pli())
        waits = self._video.waits if self._video is not None else self._audio.waits
        if waits and self._timer is None and self._enabled:
            self._timer = asyncio.get_running_loop().call_later(TIMER_S, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now_us = monotonic_us()
        self._forward((self._video or self._audio).expire(now_us), now_us)

    def _decoded(self, decoded: Decoded) -> None:
        if self.sink is not None and self._enabled:
            self.sink(decoded)

    def _undecodable(self, fault: Exception) -> None:
        if isinstance(fault, PictureTooLargeError):
            self._enabled = False
            if self.on_fault is not None:
                self.on_fault(fault)
        elif self._video is not None:
            self._video.lose(monotonic_us())

    def _nack(self, missing: list[int]) -> RtcpRtpfbPacket:
        packet = RtcpRtpfbPacket(fmt=RTCP_RTPFB_NACK, ssrc=self._rtcp_ssrc or 0, media_ssrc=self._media_ssrc)
        packet.lost = missing
        return packet

    def _pli(self) -> RtcpPsfbPacket:
        return RtcpPsfbPacket(fmt=RTCP_PSFB_PLI, ssrc=self._rtcp_ssrc or 0, media_ssrc=self._media_ssrc)

    def _estimate(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        assert self._estimator is not None
        remb = self._estimator.add(
            abs_send_time=packet.extensions.abs_send_time or 0,
            arrival_time_ms=arrival_time_ms,
            payload_size=len(packet.payload) + packet.padding_size,
            ssrc=packet.ssrc,
        )
        if remb is not None:
            bitrate, ssrcs = remb
            least = LEAST_REMB_LOSSY_BPS if self._lost_share >= LOSSY else LEAST_REMB_BPS
            fci = pack_remb_fci(max(bitrate, least), ssrcs)
            self._send(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=self._rtcp_ssrc or 0, media_ssrc=0, fci=fci))

    def _send(self, packet: AnyRtcpPacket) -> None:
        if self._rtcp_ssrc is None:
            return
        task = asyncio.create_task(self._send_quietly(packet))
        self._feedback.add(task)
        task.add_done_callback(self._feedback.discard)

    async def _send_quietly(self, packet: AnyRtcpPacket) -> None:
        try:
            await self._transport._send_rtp(bytes(packet))
        except ConnectionError:
            logger.debug("feedback could not be sent: the transport is gone")

    async def _report_regularly(self) -> None:
        while True:
            # RFC 3550 section 6.2 asks for intervals varied over 0.5 to 1.5 times the nominal one.
            await asyncio.sleep(0.5 + random.random())
            reports = [self._report(ssrc, stream) for ssrc, stream in self._statistics.items()]
            if reports:
                self._send(RtcpRrPacket(ssrc=self._rtcp_ssrc or 0, reports=reports))

    def _report(self, ssrc: int, stream: StreamStatistics) -> RtcpReceiverInfo:
        lsr, at = self._last_reports.get(ssrc, (0, 0.0))
        delay = time.time() - at
        fraction_lost = stream.fraction_lost
        if ssrc == self._media_ssrc:
            self._lost_share = fraction_lost
        return RtcpReceiverInfo(
            ssrc=ssrc,
            fraction_lost=fraction_lost,
            packets_lost=stream.packets_lost,
            highest_sequence=stream.max_seq or 0,
            jitter=stream.jitter,
            lsr=lsr,
            dlsr=int(delay * 65536) if lsr and 0 < delay < 65536 else 0,
        )


class DecoderThread:
    """Decodes one track's frames in order, with a bounded backlog, until stopped.

    deliver is called in the thread; fail on the event loop.
    """

    def __init__(
        self,
        kind: str,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[Decoded], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self._kind = kind
        self._loop = loop
        self._deliver = deliver
        self._fail = fail
        self._ended = asyncio.Event()
        self._stopping = False
        self._backlog: queue.Queue[tuple[RTCRtpCodecParameters, EncodedFrame] | None] = queue.Queue(
            DECODER_BACKLOG
        )
        # A daemon, so that a decoder that hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"{kind}-decoder", daemon=True)
        self._thread.start()

    def put(self, codec: RTCRtpCodecParameters, frame: EncodedFrame) -> bool:
        """Queue a frame; False where the decoder is too far behind to take it."""
        try:
            self._backlog.put_nowait((codec, frame))
        except queue.Full:
            return False
        return True

    def stop(self) -> None:
        """Ask the thread to end. Does not wait."""
        if self._stopping:
            return
        self._stopping = True
        while True:
            try:
                self._backlog.put_nowait(None)
                return
            except queue.Full:
                try:
                    self._backlog.get_nowait()
                except queue.Empty:
                    continue

    async def join(self) -> None:
        """Wait until the thread has ended, for at most STOP_TIMEOUT_S."""
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._ended.wait()
        except TimeoutError:
            logger.warning("a %s decoder did not stop within %.0f s", self._kind, STOP_TIMEOUT_S)

    def _run(self) -> None:
        decoders: dict[str, Decode] = {}
        while (task := self._backlog.get()) is not None and not self._stopping:
            codec, frame = task
            if not frame.data:
                continue  # to a decoder, nothing means the end of the stream
            try:
                decode = decoders.get(codec.name) or decoders.setdefault(codec.name, open_decoder(codec))
                for picture in decode(frame):
                    self._deliver(Decoded(picture, frame.timestamp, frame.arrived_us))
            except Exception as fault:
                # Whatever a stranger's bytes do to a decoder costs frames, never the thread. Video goes on
                # at a key frame in any case, so a decoder of unknown state is not kept.
                decoders.pop(codec.name, None)
                logger.debug("a %s frame could not be decoded: %s", codec.name, fault)
                self._tell(self._fail, fault)
        decoders.clear()
        self._tell(self._ended.set)

    def _tell(self, callback: Callable[..., Any], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            logger.debug("the event loop ended before its decoder did")


Decode = Callable[[EncodedFrame], list[Any]]


def open_decoder(codec: RTCRtpCodecParameters) -> Decode:
    """A decoder of the codec: encoded frame in, decoded frames (often one, sometimes none) out."""
    if codec.mimeType.startswith("video/"):
        return _open_video("h264" if codec.name == "H264" else "vp8")
    decoder = get_decoder(codec)

    def decode(frame: EncodedFrame) -> list[Any]:
        return list(decoder.decode(JitterFrame(frame.data, frame.timestamp)))

    return decode


def _open_video(name: Literal["h264", "vp8"]) -> Decode:
    context: Any = av.CodecContext.create(name, "r")
    context.options = {"max_pixels": str(MAX_DECODED_PIXELS)}
    context.thread_count = 1
    context.flags |= Flags.low_delay

    def decode(frame: EncodedFrame) -> list[Any]:
        frames = context.decode(av.Packet(frame.data))
        if max(context.width, context.height) > MAX_SIDE:
            raise PictureTooLargeError(
                f"the video is {context.width}x{context.height}; at most {MAX_SIDE} pixels a side are taken"
            )
        return list(frames)

    return decode
