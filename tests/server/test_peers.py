"""Peers over real WebRTC on loopback: what goes in comes out dubbed, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from typing import Any

import av
import numpy as np
from aiortc import RTCRtpSender
from aiortc.mediastreams import MediaStreamError
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection

from server.peers import OutgoingTrack
from stream.clock import VirtualClock
from stream.encode import EncodedAudio, EncodedHub, EncodedVideo
from tests.server.conftest import LiveServer, StartServer, negotiate, next_of
from tests.server.duplex import duplex, kill
from tests.server.engines import LIGHT, QUIET
from tests.server.rtc import VIDEO_CLOCK, Camera, Microphone, client, impair, until
from tests.server.watcher import Watcher

Speech = tuple[int, NDArray[np.int16]]


class Speaker(Microphone):
    """Says the speech over and over, as a live speaker would."""

    def __init__(self, speech: Speech) -> None:
        super().__init__()
        rate, samples = speech
        self._samples = np.interp(np.arange(0, len(samples), rate / 48_000), np.arange(len(samples)), samples)

    async def recv(self) -> av.AudioFrame:
        start = self._index * 960
        frame = await super().recv()
        wanted = np.arange(start, start + 960) % len(self._samples)
        said = av.AudioFrame.from_ndarray(
            self._samples[wanted].astype(np.int16)[None], format="s16", layout="mono"
        )
        said.sample_rate, said.pts, said.time_base = 48_000, frame.pts, frame.time_base
        return said


async def say(socket: ClientConnection, speech: Speech, seconds: float) -> None:
    """Send speech over the voice socket at once, as a synthesiser would."""
    rate, samples = speech
    await socket.send(json.dumps({"type": "start", "rate": rate, "channels": 1, "format": "s16le"}))
    data = samples[: int(rate * seconds)].astype("<i2").tobytes()
    for at in range(0, len(data), 60_000):
        await socket.send(data[at : at + 60_000])


async def test_a_camera_comes_back_dubbed_with_the_voice_socket_s_speech(
    server: LiveServer, speech: Speech
) -> None:
    session = await server.create()
    camera = Camera()
    async with duplex(session, camera) as (_, watcher, socket), session.socket("voice") as voice:
        await until(lambda: abs(watcher.patch - QUIET) < 12)
        assert watcher.loudness(0.3) < 20
        await say(voice, speech, 2.0)
        await until(lambda: abs(watcher.patch - LIGHT) < 25, within_s=3)
        await until(lambda: watcher.loudness(0.3) > 300, within_s=2)
        await until(lambda: abs(watcher.patch - QUIET) < 12, within_s=5)
        stats = await next_of(socket, "stats")
        assert stats["state"] == "live"
        assert stats["face"] == "tracked"
        assert stats["added_latency_ms"]["p95"] <= server.settings.latency_budget_ms
    assert abs(len(watcher.video) - len(camera.stamped)) <= 12
    frame = watcher.video[-1][1]
    assert (frame.width, frame.height) == (320, 240)


async def test_a_microphone_in_the_same_connection_is_the_voice(server: LiveServer, speech: Speech) -> None:
    session = await server.create()
    async with duplex(session, Camera(), Speaker(speech)) as (_, watcher, _socket):
        await until(lambda: abs(watcher.patch - LIGHT) < 25)
        await until(lambda: watcher.loudness(0.3) > 300)


async def test_source_voice_and_viewer_may_be_three_peers(server: LiveServer, speech: Speech) -> None:
    session = await server.create()
    source, speaker, viewer = client(), client(), client()
    watcher = Watcher(viewer)
    source.addTransceiver(Camera(), direction="sendonly")
    source.addTransceiver(Microphone(), direction="sendonly")
    speaker.addTransceiver(Speaker(speech), direction="sendonly")
    viewer.addTransceiver("audio", direction="recvonly")  # audio first, as some clients order them
    viewer.addTransceiver("video", direction="recvonly")
    async with session.socket("signal") as socket, session.socket("signal") as other:
        await negotiate(socket, source, "source")
        await negotiate(other, viewer, "viewer")
        await until(lambda: abs(watcher.patch - QUIET) < 12)
        assert watcher.loudness(0.3) < 20, "the source's own sound is not the voice"
        await negotiate(socket, speaker, "voice")
        await until(lambda: abs(watcher.patch - LIGHT) < 25)
        await until(lambda: watcher.loudness(0.3) > 300)
        roles = sorted(peer["role"] for peer in (await session.about())["peers"])
        assert roles == ["source", "viewer", "voice"]
    for peer in (source, speaker, viewer):
        await peer.close()
    await watcher.done()


async def test_of_two_audio_tracks_the_second_or_the_named_one_is_the_voice(
    server: LiveServer, speech: Speech
) -> None:
    for named in (None, "1"):
        session = await server.create()
        source, viewer = client(), client()
        watcher = Watcher(viewer)
        source.addTransceiver(Camera(), direction="sendonly")
        first, second = Speaker(speech), Microphone()
        if named is None:
            first, second = second, first  # type: ignore[assignment]
        source.addTransceiver(first, direction="sendonly")
        source.addTransceiver(second, direction="sendonly")
        viewer.addTransceiver("video", direction="recvonly")
        viewer.addTransceiver("audio", direction="recvonly")
        async with session.socket("signal") as socket:
            await negotiate(socket, source, "source", **({} if named is None else {"voice": named}))
            await negotiate(socket, viewer, "viewer")
            # A steady tone is no speech, so only the right track lights the square.
            await until(lambda w=watcher: abs(w.patch - LIGHT) < 25)  # type: ignore[misc]
        await source.close()
        await viewer.close()


async def test_picture_and_sound_come_as_one_stream_in_step(server: LiveServer, speech: Speech) -> None:
    session = await server.create()
    async with duplex(session, Camera()) as (peer, watcher, _), session.socket("voice") as voice:
        lines = str(peer.remoteDescription.sdp).splitlines()
        streams = {line.split()[0] for line in lines if line.startswith("a=msid:")}
        assert len(streams) == 1
        await until(lambda: len(watcher.video) > 10)
        await say(voice, speech, 2.5)
        await until(lambda: abs(watcher.patch - LIGHT) < 25, within_s=3)
        await asyncio.sleep(0.3)
        lit = next(at for (at, _), p in zip(watcher.video, watcher.pictures, strict=True) if _bright(p))
        heard = next(
            at for at, frame in watcher.audio if np.abs(frame.to_ndarray().astype(np.int32)).max() > 800
        )
        # The square lights when speech is near; the sound itself follows within the activity's lead.
        assert abs(heard - lit) < 0.2


def _bright(picture: Any) -> bool:
    from tests.server.engines import mean_of

    return abs(mean_of(picture) - LIGHT) < 40


async def test_a_viewer_without_h264_gets_vp8(server: LiveServer) -> None:
    session = await server.create()
    source, viewer = client(), client()
    watcher = Watcher(viewer)
    source.addTransceiver(Camera(), direction="sendonly")
    transceiver = viewer.addTransceiver("video", direction="recvonly")
    vp8 = [c for c in RTCRtpSender.getCapabilities("video").codecs if c.mimeType == "video/VP8"]
    transceiver.setCodecPreferences(vp8)
    async with session.socket("signal") as socket:
        await negotiate(socket, source, "source")
        answer = await negotiate(socket, viewer, "viewer")
        assert "H264" not in answer["sdp"]
        await until(lambda: abs(watcher.patch - QUIET) < 12)
    await source.close()
    await viewer.close()


async def test_a_late_viewer_starts_with_a_key_frame(server: LiveServer) -> None:
    session = await server.create()
    async with duplex(session, Camera()) as (_, first, socket):
        await until(lambda: len(first.video) > 20)
        viewer = client()
        watcher = Watcher(viewer)
        viewer.addTransceiver("video", direction="recvonly")
        await negotiate(socket, viewer, "viewer")
        begun = time.monotonic()
        await until(lambda: len(watcher.video) > 5, within_s=3)
        assert watcher.video[0][0] - begun < 1.5
        await viewer.close()


async def test_a_viewer_gets_nothing_from_before_it_was_connected() -> None:
    """bug: up to a second of old sound and picture came as one burst to who took a second to connect."""
    subscription = EncodedHub(VirtualClock()).subscribe("H264")
    tracks = [OutgoingTrack("video"), OutgoingTrack("audio")]
    for track in tracks:
        track.attach(subscription)

    def goes_out(data: bytes, due_us: int) -> None:
        subscription.put_video(EncodedVideo(data, due_us, due_us, True, 320, 240))
        subscription.put_audio(EncodedAudio(data, due_us, 0))

    goes_out(b"while it connects", 1_000_000)
    reading = [asyncio.create_task(track.recv()) for track in tracks]
    await asyncio.sleep(0)
    goes_out(b"at once", 2_000_000)
    packets = await asyncio.gather(*reading)
    assert [(bytes(packet), packet.pts) for packet in packets] == [
        (b"at once", 180_000),
        (b"at once", 96_000),
    ]


async def test_losses_cost_quality_and_not_the_stream(server: LiveServer) -> None:
    session = await server.create()
    camera = Camera()
    async with duplex(session, camera, Microphone()) as (peer, watcher, socket):
        await until(lambda: len(watcher.video) > 5)
        impair(peer, seed=4, loss=0.05, delay_s=lambda chance: chance.uniform(0.01, 0.03))
        await asyncio.sleep(4)
        stats = await next_of(socket, "stats")
        assert stats["fps_in"] > 20, "retransmission heals a twentieth"
        gaps = np.diff([at for at, _ in watcher.video[10:]])
        assert gaps.max() < 0.8


async def test_two_sessions_do_not_mix(server: LiveServer, speech: Speech) -> None:
    one, two = await server.create(), await server.create()
    async with (
        duplex(one, Camera(320, 240)) as (_, first, _a),
        duplex(two, Camera(256, 192)) as (_, second, _b),
        one.socket("voice") as voice,
    ):
        await until(lambda: bool(first.video and second.video))
        await say(voice, speech, 2.0)
        await until(lambda: abs(first.patch - LIGHT) < 25, within_s=4)
        assert abs(second.patch - QUIET) < 12
        assert (second.video[-1][1].width, first.video[-1][1].width) == (256, 320)
        answer = await server.http.get(one.urls["session"], headers=two.bearer)
        assert answer.status_code == 401


async def test_a_killed_client_is_noticed_in_time(start_server: StartServer) -> None:
    server = await start_server(silence_timeout_s=1.5, idle_timeout_s=0.2)
    session = await server.create()
    peer = client()
    watcher = Watcher(peer)
    peer.addTransceiver(Camera(), direction="sendrecv")
    async with session.socket("signal") as socket:
        await negotiate(socket, peer, "duplex")
        await until(lambda: len(watcher.video) > 5)
        kill(peer)
        died = time.monotonic()
        bye = await next_of(socket, "bye", within_s=5)
        assert bye["reason"] == "vanished"
        assert time.monotonic() - died < 3.5
    await until(lambda: len(server.registry) == 0, within_s=3)
    await peer.close()


async def test_an_offer_that_never_connects_is_given_up(start_server: StartServer) -> None:
    server = await start_server(handshake_timeout_s=0.5)
    session = await server.create()
    peer = client()
    peer.addTransceiver("video", direction="recvonly")
    await peer.setLocalDescription(await peer.createOffer())
    async with session.socket("signal") as socket:
        offer = {"type": "offer", "role": "viewer", "sdp": peer.localDescription.sdp}
        await socket.send(json.dumps(offer))
        assert (await next_of(socket, "answer", "error"))["type"] == "answer"
        assert (await next_of(socket, "bye", within_s=4))["reason"] == "timeout"
    await peer.close()
    assert (await session.about())["peers"] == []


async def test_a_picture_too_large_is_refused_in_words(server: LiveServer) -> None:
    session = await server.create()
    source = client()
    source.addTransceiver(Camera(2000, 96, fps=5), direction="sendonly")
    async with session.socket("signal") as socket:
        await negotiate(socket, source, "source")
        error = await next_of(socket, "error")
        assert error["error"]["code"] == "picture_too_large"
        assert "2000x96" in error["error"]["message"]
        assert (await next_of(socket, "bye"))["role"] == "source"
    await source.close()


async def test_odd_and_changing_sizes_are_taken(server: LiveServer) -> None:
    class Turned(Camera):
        async def recv(self) -> av.VideoFrame:
            frame = await super().recv()
            if len(self.stamped) <= 25:
                return frame
            upright = av.VideoFrame.from_ndarray(np.full((400, 178, 3), 90, np.uint8), format="rgb24")
            upright = upright.reformat(format="yuv420p")
            upright.pts, upright.time_base = frame.pts, VIDEO_CLOCK
            return upright

    session = await server.create()
    async with duplex(session, Turned()) as (_, watcher, _socket):
        await until(lambda: bool(watcher.video) and watcher.video[-1][1].height == 400)
        assert watcher.video[0][1].height == 240


async def test_a_second_source_takes_over(server: LiveServer) -> None:
    session = await server.create()
    async with duplex(session, Camera(256, 192)) as (_, watcher, socket):
        await until(lambda: len(watcher.video) > 3)
        newcomer = client()
        newcomer.addTransceiver(Camera(320, 240), direction="sendonly")
        async with session.socket("signal") as other:
            await negotiate(other, newcomer, "source")
            assert (await next_of(socket, "bye"))["reason"] == "replaced"
        await newcomer.close()


async def test_a_presenter_session_takes_no_camera(server: LiveServer) -> None:
    session = await server.create(source={"file": "sample"})
    source, viewer = client(), client()
    watcher = Watcher(viewer)
    source.addTransceiver(Camera(), direction="sendonly")
    viewer.addTransceiver("video", direction="recvonly")
    viewer.addTransceiver("audio", direction="recvonly")
    await source.setLocalDescription(await source.createOffer())
    async with session.socket("signal") as socket:
        offer = {"type": "offer", "role": "source", "sdp": source.localDescription.sdp}
        await socket.send(json.dumps(offer))
        assert (await next_of(socket, "error"))["error"]["code"] == "source_is_a_file"
        await negotiate(socket, viewer, "viewer")
        await until(lambda: len(watcher.video) > 10)
        assert watcher.video[-1][1].width == 512
    await source.close()
    await viewer.close()


async def test_viewers_are_limited(start_server: StartServer) -> None:
    server = await start_server(max_viewers=1)
    session = await server.create()
    async with duplex(session, Camera()) as (_, _watcher, socket):
        viewer = client()
        viewer.addTransceiver("video", direction="recvonly")
        await viewer.setLocalDescription(await viewer.createOffer())
        offer = {"type": "offer", "role": "viewer", "sdp": viewer.localDescription.sdp}
        await socket.send(json.dumps(offer))
        assert (await next_of(socket, "error"))["error"]["code"] == "viewers_full"
        await viewer.close()


async def test_deleting_a_session_ends_its_peers(server: LiveServer) -> None:
    session = await server.create()
    peer = client()
    watcher = Watcher(peer)
    peer.addTransceiver(Camera(), direction="sendrecv")
    async with session.socket("signal") as socket, session.socket("voice") as voice:
        await negotiate(socket, peer, "duplex")
        await until(lambda: len(watcher.video) > 3)
        assert (await server.http.delete(session.urls["session"], headers=session.bearer)).status_code == 204
        assert (await next_of(socket, "bye"))["reason"] == "session_ended"
        await until(lambda: peer.connectionState == "closed")
        await voice.wait_closed()
        assert voice.close_code == 1001
    await watcher.done()
    await peer.close()


async def test_twenty_connections_leave_nothing_behind(server: LiveServer) -> None:
    async def cycle(index: int) -> None:
        session = await server.create()
        peer = client()
        watcher = Watcher(peer)
        peer.addTransceiver(Camera(160, 120, fps=10), direction="sendrecv")
        peer.addTransceiver("audio", direction="recvonly")
        async with session.socket("signal") as socket:
            await negotiate(socket, peer, "duplex")
            if index % 2:
                await until(lambda: bool(watcher.video))
            if index % 3 == 0:
                await peer.close()  # the peer first, then the socket
        await server.http.delete(session.urls["session"], headers=session.bearer)
        await peer.close()
        try:
            await watcher.done()
        except MediaStreamError:
            return

    def tasks_and_threads() -> tuple[set[str], set[str]]:
        gc.collect()
        return {t.get_name() for t in asyncio.all_tasks()}, {t.name for t in threading.enumerate()}

    await cycle(1)
    await asyncio.sleep(0.3)
    tasks, threads = tasks_and_threads()
    for index in range(20):
        await cycle(index)

    def as_before() -> bool:
        now_tasks, now_threads = tasks_and_threads()
        return len(now_tasks) <= len(tasks) and not {n for n in now_threads - threads if "asyncio" not in n}

    await until(as_before, within_s=5)


async def test_media_outlives_a_lost_signalling_socket(server: LiveServer) -> None:
    session = await server.create()
    peer = client()
    watcher = Watcher(peer)
    peer.addTransceiver(Camera(), direction="sendrecv")
    async with session.socket("signal") as socket:
        answer = await negotiate(socket, peer, "duplex")
        assert "x-google-start-bitrate" in answer["sdp"]
        await until(lambda: bool(watcher.video))
    already = len(watcher.video)
    await until(lambda: len(watcher.video) > already + 20)
    assert [p["role"] for p in (await session.about())["peers"]] == ["duplex"]
    await peer.close()


async def test_a_microphone_is_heard_again_when_the_socket_that_took_over_has_gone(
    server: LiveServer, speech: Speech
) -> None:
    session = await server.create()
    async with duplex(session, Camera(), Speaker(speech)) as (_, watcher, _socket):
        await until(lambda: abs(watcher.patch - LIGHT) < 25)
        async with session.socket("voice") as voice:
            await voice.send(json.dumps({"type": "start", "rate": 24_000}))
            await next_of(voice, "credit")
            await until(lambda: abs(watcher.patch - QUIET) < 12)
        await until(lambda: abs(watcher.patch - LIGHT) < 25)


async def test_frames_pass_an_idle_server_quickly(server: LiveServer) -> None:
    session = await server.create()
    async with duplex(session, Camera()) as (_, watcher, socket):
        await until(lambda: len(watcher.video) > 60)
        stats = await next_of(socket, "stats")
        assert stats["added_latency_ms"]["p50"] < 150
