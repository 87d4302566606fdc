"""The encoders themselves: presets, bit rates, and which one is taken."""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext

from retalk_models.picture import Picture
from stream import codecs
from stream.codecs import Codec, EncodedVideo, VideoEncoder
from tests.stream.fakes import flat_picture, grainy_picture


@pytest.mark.parametrize(("width", "height", "fastest"), [(1280, 720, False), (1920, 1080, True)])
def test_the_largest_pictures_are_encoded_fastest_and_keep_what_hides_blocks(
    width: int, height: int, fastest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecs, "h264_encoder", lambda: "libx264")
    packet = VideoEncoder("H264").encode(flat_picture(100, width, height), 0, 0, True, None)
    assert packet is not None
    # x264 says in the stream how it was told to work.
    for told, wanted in ((b"subme=0", fastest), (b"deblock=1:0:0", True), (b"aq=1:", True)):
        assert (told in packet.data) == wanted, told


@pytest.mark.parametrize("codec", ["H264", "VP8"])
def test_a_picture_may_change_as_soon_as_it_is_encoded(codec: Codec) -> None:
    streams = []
    for changed in (False, True):
        encoder, packets = VideoEncoder(codec), []
        for index in range(8):
            shown = grainy_picture(index)
            packet = encoder.encode(shown, index * 40_000, index * 40_000, index == 0, None)
            if changed:
                shown.planes[:] = 0
            packets.append(b"" if packet is None else packet.data)
        streams.append(packets)
    assert streams[0] == streams[1]


def _grainy_film(
    encoder: VideoEncoder, width: int, height: int, slow: range, rate: int
) -> Iterator[tuple[bool, EncodedVideo]]:
    """200 grainy pictures at 25 a second, held to a rate while slow: whether a key frame was due, packet."""
    rng = np.random.default_rng(1)
    grain = [rng.integers(0, 60, (height * 3 // 2, width)).astype(np.uint8) for _ in range(8)]
    for k in range(200):
        planes = (grainy_picture(k % 50, width, height).planes // 2 + grain[k % 8]).astype(np.uint8)
        due = encoder.keyframe_due
        noisy = Picture(planes, width, height)
        packet = encoder.encode(noisy, k * 40_000, 0, False, rate if k in slow else None)
        assert packet is not None
        yield due, packet


def test_an_open_h264_encoder_changes_its_rate_without_a_key_frame() -> None:
    encoder = VideoEncoder("H264")
    sizes, keys = [], 0
    for _, packet in _grainy_film(encoder, 320, 240, range(75, 140), 150_000):
        sizes.append(len(packet.data) * 8 * 25)
        keys += packet.keyframe
    full, least, again = np.mean(sizes[25:75]), np.mean(sizes[110:140]), np.mean(sizes[175:])
    assert least < 0.35 * full
    assert again > 0.6 * full
    assert encoder.builds == 1
    assert keys == 200 // 50


def test_a_new_vp8_encoder_keeps_to_the_new_rate_at_no_more_key_frames() -> None:
    encoder = VideoEncoder("VP8")
    sizes, keys = [], 0
    for k, (due, packet) in enumerate(_grainy_film(encoder, 640, 480, range(50, 150), 500_000)):
        assert due == (k % 50 == 0)
        sizes.append(len(packet.data) * 8 * 25)
        keys += packet.keyframe
    full, least, again = np.mean(sizes[25:50]), np.mean(sizes[110:150]), np.mean(sizes[175:])
    assert least < 0.65 * full
    assert again > 0.8 * full
    assert (encoder.builds, keys) == (3, 200 // 50)


def test_where_the_cards_encoder_will_not_open_the_processors_takes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    opened = codecs._opened

    def refusing(name: str, width: int, height: int, bit_rate: int, fps: int) -> VideoCodecContext:
        asked.append(name)
        if name == "h264_nvenc":
            raise av.FFmpegError(-22, "no capable devices found")
        return opened(name, width, height, bit_rate, fps)

    monkeypatch.setattr(codecs, "_opened", refusing)
    monkeypatch.setattr(codecs, "h264_encoder", lambda: "h264_nvenc")
    packet = VideoEncoder("H264").encode(grainy_picture(0, 320, 240), 0, 0, True, None)
    assert asked == ["h264_nvenc", "libx264"]
    assert packet is not None
    assert packet.keyframe


def test_an_encoder_that_is_built_in_but_has_no_card_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object) -> VideoCodecContext:
        raise av.FFmpegError(-1, "Cannot load libcuda.so.1")

    monkeypatch.setattr(codecs, "_opened", refusing)
    assert codecs.h264_encoder.__wrapped__() == "libx264"
