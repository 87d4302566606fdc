"""Each thing that aiortc forces on us: fails when upstream changes under it."""

from __future__ import annotations

import asyncio
import fractions
import logging
import statistics
import time
from typing import Any

import av
import numpy as np
import pytest
from aioice import ice
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCRtpSender, rtp
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtcpSrPacket

from server import aiortc_compat
from server.aiortc_compat import (
    PINNED,
    NtpAnchor,
    PeerConnection,
    Sender,
    UnsupportedUpstreamError,
    check_upstream,
    receiver_of,
)
from server.rtp_receiver import Decoded, Receiver
from server.rtp_reorder import EncodedFrame
from stream.clock import MonotonicClock
from stream.encode import OpusEncoder, VideoEncoder
from stream.frames import picture_of
from stream.media import AudioFrame
from tests.server.rtc import Camera, Microphone, answer_with, client, connect, impair, plane_picture, until


def listen(peer: PeerConnection) -> dict[str, list[tuple[float, Decoded]]]:
    """Keep what a peer's receivers decode, with the time it was handed over."""
    kept: dict[str, list[tuple[float, Decoded]]] = {"audio": [], "video": []}

    def on_track(track: MediaStreamTrack) -> None:
        for transceiver in peer.getTransceivers():
            if transceiver.receiver.track is track:
                sink = kept[track.kind]
                receiver_of(transceiver).sink = lambda d, sink=sink: sink.append((time.monotonic(), d))

    peer.on("track", on_track)
    return kept


def note(reports: dict[str, tuple[int, int]], kind: str, ntp: int, rtp_time: int) -> None:
    """Keep a sender report's pair of times."""
    reports[kind] = (ntp, rtp_time)


class Encoded(MediaStreamTrack):
    """Packets encoded beforehand, as a session's hub gives them; `late_s` delays sending, not pts."""

    def __init__(self, kind: str, late_s: float = 0.0) -> None:
        super().__init__()
        self.kind = kind
        self._clock = MonotonicClock()
        self._late_s = late_s
        self._index = 0
        self._video = VideoEncoder("H264")
        self._opus = OpusEncoder()
        self.wanted_keys = 0
        self.bitrates: list[int] = []

    def request_key_frame(self) -> None:
        self.wanted_keys += 1

    def limit_bitrate(self, bits_per_second: int) -> None:
        self.bitrates.append(bits_per_second)

    async def recv(self) -> av.Packet[Any]:
        if self.readyState != "live":
            raise MediaStreamError
        step_us, rate = (40_000, 90_000) if self.kind == "video" else (20_000, 48_000)
        due_us = self._index * step_us
        await self._clock.sleep_until(due_us + round(self._late_s * 1e6))
        if self.kind == "video":
            frame = av.VideoFrame.from_ndarray(plane_picture(320, 240, self._index), format="yuv420p")
            encoded: Any = self._video.encode(picture_of(frame), due_us, due_us, self._index % 25 == 0, None)
        else:
            samples = np.full(960, 500, np.int16)
            encoded = self._opus.encode(AudioFrame(samples, due_us, self._index * 960, 0))
        self._index += 1
        packet: av.Packet[Any] = av.Packet(encoded.data)
        packet.pts = due_us * rate // 1_000_000
        packet.time_base = fractions.Fraction(1, rate)
        return packet


def test_the_pinned_versions_are_the_installed_ones(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    check_upstream()
    assert caplog.messages == []


def test_another_version_is_warned_of_and_missing_parts_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(PINNED, "aiortc", "9.9.9")
    check_upstream()
    assert "aiortc" in caplog.text
    monkeypatch.setattr(aiortc_compat, "_PRIVATE_NAMES", ((RTCPeerConnection, "_no_such_method"),))
    with pytest.raises(UnsupportedUpstreamError, match=r"RTCPeerConnection\._no_such_method.*aiortc=="):
        check_upstream()


async def test_nothing_upstream_is_patched() -> None:
    before = {name: getattr(RTCPeerConnection, name) for name in dir(RTCPeerConnection)}
    addresses = ice.get_host_addresses
    peer = PeerConnection()
    peer.addTransceiver("video")
    await peer.close()
    assert before == {name: getattr(RTCPeerConnection, name) for name in dir(RTCPeerConnection)}
    assert ice.get_host_addresses is addresses


async def test_our_sender_and_receiver_are_in_every_transceiver() -> None:
    peer, other = PeerConnection(), client()
    other.addTransceiver("audio")
    other.addTransceiver("video")
    await other.setLocalDescription(await other.createOffer())
    await answer_with(peer, other.localDescription)
    kinds: list[tuple[type, type]] = [(type(t.sender), type(t.receiver)) for t in peer.getTransceivers()]
    assert kinds == [(Sender, Receiver)] * 2
    streams = {t.sender._stream_id for t in peer.getTransceivers()}
    assert len(streams) == 1, "one MediaStream for picture and sound"
    await peer.close()
    await other.close()


async def test_point_1_a_frame_leaves_on_its_marker_bit() -> None:
    peer, other = PeerConnection(), client()
    kept = listen(peer)
    camera = Camera(fps=10)
    other.addTrack(camera)
    await connect(other, lambda offer: answer_with(peer, offer))
    await until(lambda: len(kept["video"]) >= 15)
    first = kept["video"][0][1].timestamp
    delays = []
    for at, decoded in kept["video"]:
        index = round((decoded.timestamp - first) % 2**32 / 9000)
        delays.append(at - camera.stamped[index])
    # Stock aiortc gives a frame out when the next one begins: 100 ms at this rate.
    assert statistics.median(delays) < 0.05
    await other.close()
    await peer.close()


async def test_point_1_sound_is_not_prefetched_and_holes_are_skipped() -> None:
    peer, other = PeerConnection(), client()
    kept = listen(peer)
    other.addTrack(Microphone())
    await connect(other, lambda offer: answer_with(peer, offer))
    await until(lambda: len(kept["audio"]) >= 10)
    impair(other, seed=7, loss=0.1)
    already = len(kept["audio"])
    begun = time.monotonic()
    await asyncio.sleep(3)
    times = [at for at, _ in kept["audio"][already:] if at > begun]
    assert len(times) > 115
    assert max(np.diff(times)) < 0.2
    stamps = [decoded.timestamp for _, decoded in kept["audio"]]
    assert stamps == sorted(stamps)
    await other.close()
    await peer.close()


async def test_point_2_rubbish_never_ends_a_decoder() -> None:
    peer, other = PeerConnection(), client()
    kept = listen(peer)
    other.addTrack(Camera())
    await connect(other, lambda offer: answer_with(peer, offer))
    await until(lambda: len(kept["video"]) >= 3)
    receiver = receiver_of(peer.getTransceivers()[0])
    assert receiver._decoder is not None
    assert receiver._codec is not None
    for data in (b"", b"\0", b"\xff" * 2000, b"\0\0\0\1\x67\xff\xff"):
        receiver._decoder.put(receiver._codec, EncodedFrame(data, 0, 0))
    already = len(kept["video"])
    await until(lambda: len(kept["video"]) > already + 10)
    await other.close()
    await peer.close()


async def test_point_3_lost_video_is_asked_for_until_it_comes() -> None:
    peer, other = PeerConnection(), client()
    kept = listen(peer)
    camera = Camera()
    other.addTrack(camera)
    await connect(other, lambda offer: answer_with(peer, offer))
    await until(lambda: len(kept["video"]) >= 5)
    impair(other, seed=3, loss=0.1, delay_s=lambda chance: chance.uniform(0.005, 0.015))
    already, sent = len(kept["video"]), len(camera.stamped)
    await asyncio.sleep(4)
    assert len(kept["video"]) - already > 0.93 * (len(camera.stamped) - sent)
    await other.close()
    await peer.close()


async def test_point_4_feedback_reaches_whoever_encodes() -> None:
    peer, other = PeerConnection(), client()
    track = Encoded("video")
    h264 = [c for c in RTCRtpSender.getCapabilities("video").codecs if c.mimeType == "video/H264"]
    peer.addTransceiver(track).setCodecPreferences(h264)
    await peer.setLocalDescription(await peer.createOffer())
    await other.setRemoteDescription(peer.localDescription)
    await other.setLocalDescription(await other.createAnswer())
    await peer.setRemoteDescription(other.localDescription)
    await until(lambda: peer.connectionState == "connected" and track._index > 5)
    ssrc = peer.getTransceivers()[0].sender._ssrc
    receiver = other.getTransceivers()[0].receiver
    already = track.wanted_keys
    await receiver._send_rtcp_pli(ssrc)
    await until(lambda: track.wanted_keys > already)
    remb = rtp.RtcpPsfbPacket(fmt=rtp.RTCP_PSFB_APP, ssrc=1, media_ssrc=0)
    remb.fci = rtp.pack_remb_fci(600_000, [ssrc])
    await receiver._send_rtcp(remb)
    await until(lambda: 600_000 in track.bitrates)
    await peer.close()
    await other.close()


async def test_point_5_no_audio_level_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: object) -> int:
        raise AssertionError("a third of the event loop's time went into this")

    monkeypatch.setattr(rtp, "compute_audio_level_dbov", never)
    peer, other = PeerConnection(), PeerConnection()
    kept = listen(other)
    peer.addTrack(Encoded("audio"))
    await peer.setLocalDescription(await peer.createOffer())
    await other.setRemoteDescription(peer.localDescription)
    await other.setLocalDescription(await other.createAnswer())
    await peer.setRemoteDescription(other.localDescription)
    await until(lambda: len(kept["audio"]) > 10)
    await peer.close()
    await other.close()


async def test_point_6_sender_reports_follow_pts_on_one_line() -> None:
    peer, other = PeerConnection(), PeerConnection()
    listen(other)
    peer.addTrack(Encoded("audio"))
    peer.addTrack(Encoded("video", late_s=0.3))
    await peer.setLocalDescription(await peer.createOffer())
    await other.setRemoteDescription(peer.localDescription)
    reports: dict[str, tuple[int, int]] = {}
    for transceiver in other.getTransceivers():
        kind = transceiver.kind
        receiver_of(transceiver).on_report = lambda ntp, rtp_time, kind=kind: reports.update(
            {kind: (ntp, rtp_time)}
        )
    await other.setLocalDescription(await other.createAnswer())
    await peer.setRemoteDescription(other.localDescription)
    await until(lambda: len(reports) == 2)
    # pts 0 of either track: what its report maps to must be one instant, though video is sent 0.3 s late.
    zero = {}
    for transceiver in peer.getTransceivers():
        sender: Any = transceiver.sender
        ntp, rtp_time = reports[transceiver.kind]
        rate = 90_000 if transceiver.kind == "video" else 48_000
        origin = sender._RTCRtpSender__rtp_timestamp - round(sender._pts_seconds * rate)
        zero[transceiver.kind] = ntp / 2**32 - (rtp_time - origin) % 2**32 / rate
    assert abs(zero["audio"] - zero["video"]) < 0.005
    assert all(isinstance(transceiver.sender, Sender) for transceiver in peer.getTransceivers())
    await peer.close()
    await other.close()


async def test_point_6_nothing_is_reported_before_the_first_packet() -> None:
    sent: list[bytes] = []

    class Transport:
        state = "connected"

        async def _send_rtp(self, data: bytes) -> None:
            sent.append(data)

    transport: Any = Transport()
    sender = Sender("video", transport, NtpAnchor())
    info = rtp.RtcpSenderInfo(ntp_timestamp=0, rtp_timestamp=0, packet_count=0, octet_count=0)
    await sender._send_rtcp([RtcpSrPacket(ssrc=1, sender_info=info)])
    assert sent == []
    info.packet_count = 1
    await sender._send_rtcp([RtcpSrPacket(ssrc=1, sender_info=info)])
    assert len(sent) == 1


async def test_a_track_is_not_read_before_its_peer_is_connected() -> None:
    """A session's packets begin with the first read: earlier, and they come as one burst, and old."""
    peer, other = PeerConnection(), client()
    read: list[str] = []
    both = asyncio.Event()

    class Reading(Encoded):
        async def recv(self) -> av.Packet[Any]:
            if self._index == 0:
                read.append(peer.connectionState)
            if len(read) == 2:
                both.set()
            return await super().recv()

    for kind in ("video", "audio"):
        other.addTransceiver(kind, direction="recvonly")
        peer.addTransceiver(Reading(kind), direction="sendonly")
    await connect(other, lambda offer: answer_with(peer, offer))
    async with asyncio.timeout(10):
        await both.wait()
    assert read == ["connected", "connected"]
    await peer.close()
    await other.close()


async def test_point_8_a_host_with_loopback_only_can_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ice, "get_host_addresses", lambda use_ipv4, use_ipv6: [])
    peer, other = PeerConnection(), PeerConnection()
    kept = listen(peer)
    other.addTrack(Camera())
    await connect(other, lambda offer: answer_with(peer, offer))
    await until(lambda: len(kept["video"]) > 3)
    gathered = [c.ip for t in peer.ice_transports() for c in t.iceGatherer.getLocalCandidates()]
    assert gathered == ["127.0.0.1"]
    await other.close()
    await peer.close()


async def test_points_9_and_10_one_transport_and_no_servers() -> None:
    peer = PeerConnection()
    for kind in ("video", "audio", "audio"):
        peer.addTransceiver(kind)
    transports = peer.ice_transports()
    assert len(transports) == 1
    (transport,) = transports
    assert transport._connection.stun_server is None
    assert transport._connection.turn_server is None
    await peer.close()


async def test_closing_is_contained_and_ends_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    close = RTCPeerConnection.close
    peer, other = PeerConnection(), client()

    async def broken(self: RTCPeerConnection) -> None:
        if self is peer:
            raise RuntimeError("upstream's close failed half way")
        await close(self)

    kept = listen(peer)
    other.addTrack(Camera())
    await connect(other, lambda offer: answer_with(peer, offer))
    await until(lambda: bool(kept["video"]))
    decoder = receiver_of(peer.getTransceivers()[0])._decoder
    assert decoder is not None
    monkeypatch.setattr(RTCPeerConnection, "close", broken)
    await peer.close()
    monkeypatch.undo()
    assert not decoder._thread.is_alive()
    await other.close()


async def test_the_last_sign_of_life_is_noted() -> None:
    peer, other = PeerConnection(), client()
    other.addTrack(Camera())
    assert not peer.media_heard
    await connect(other, lambda offer: answer_with(peer, offer))
    await until(lambda: peer.media_heard)
    assert time.monotonic() - peer.heard_at < 0.5
    await other.close()
    await peer.close()


async def test_a_busy_moment_of_ours_does_not_starve_the_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []

    class Transport:
        async def _send_rtp(self, data: bytes) -> None:
            sent.append(data)

    transport: Any = Transport()
    receiver = Receiver("video", transport)
    receiver._set_rtcp_ssrc(7)
    monkeypatch.setattr(receiver._estimator, "add", lambda **_: (64_000, [42]))
    packet = rtp.RtpPacket(payload_type=96)
    packet.extensions.abs_send_time = 1
    receiver._estimate(packet, 0)
    await until(lambda: bool(sent))
    (feedback,) = rtp.RtcpPacket.parse(sent[0])
    assert isinstance(feedback, rtp.RtcpPsfbPacket)
    assert rtp.unpack_remb_fci(feedback.fci) == (1_500_000, [42])
