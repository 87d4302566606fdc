"""The live codecs: H.264 and VP8 without delay, Opus in 20 ms."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Literal

import av
from av.audio.codeccontext import AudioCodecContext
from av.video.codeccontext import VideoCodecContext

from retalk_models.picture import Picture
from stream.frames import frame_of
from stream.media import PLAYOUT_RATE, AudioFrame

Codec = Literal["H264", "VP8"]

MOST_BPS = 8_000_000
"""No picture is given more bits per second."""

_TIME_BASE = Fraction(1, 1_000_000)
_GROUP_S = 2
_BITS_PER_PIXEL = 0.16
_LARGE = 1_500_000
"""Pixels from which libx264 takes its fastest preset: a quarter less time, for a decibel that nobody sees in
so large a picture."""

_OPUS_BPS = 48_000
_NVENC = "h264_nvenc"
_BT601 = 6
_LIMITED = 1


@dataclass(frozen=True, slots=True, eq=False)
class EncodedVideo:
    """One encoded frame: an Annex B access unit (H264) or a VP8 frame. due_us: when it was released."""

    data: bytes
    time_us: int
    due_us: int
    keyframe: bool
    width: int
    height: int


@dataclass(frozen=True, slots=True, eq=False)
class EncodedAudio:
    """One Opus packet of exactly 20 ms, 48 kHz mono. position: its first sample on the voice time line."""

    data: bytes
    due_us: int
    position: int


class VideoEncoder:
    """One open video encoder; remakes itself when the picture's size changes, VP8 also for another bit rate.

    FFmpeg tells libvpx a bit rate only while it opens it: an open VP8 encoder goes on at its first one,
    whatever is set. A new encoder begins with a key frame; the hub says when that is worth it.

    H.264 is constrained baseline with no delay of its own, by NVENC where that works; VP8 runs without the
    denoiser, which would blur the face. Colours are BT.601 limited, as Picture says.
    """

    def __init__(self, codec: Codec, fps: int = 25) -> None:
        self._codec = codec
        self._fps = fps
        self._context: VideoCodecContext | None = None
        self._size = (0, 0)
        self._bit_rate = 0
        self._since_keyframe = 0
        self._last_pts = -1
        self.builds = 0

    @property
    def retunes(self) -> bool:
        """Whether another bit rate costs neither a new encoder nor a key frame."""
        return self._codec == "H264"

    @property
    def bit_rate(self) -> int:
        """What the encoder keeps to, in bits per second; 0 before the first frame."""
        return self._bit_rate

    @property
    def keyframe_due(self) -> bool:
        """Whether the next frame is a key frame though nobody asks: the first, and one every two seconds."""
        return self._context is None or self._since_keyframe >= _GROUP_S * self._fps

    def reachable(self, bit_rate: int | None) -> int:
        """What an encoder that is asked for this would keep to: no more than the size asks for."""
        most = default_bit_rate(*self._size)
        return most if bit_rate is None else min(most, bit_rate)

    def encode(
        self, picture: Picture, due_us: int, time_us: int, keyframe: bool, bit_rate: int | None
    ) -> EncodedVideo | None:
        """Encode one frame. bit_rate: what the path carries, where that is less than the size asks for."""
        frame = frame_of(picture)
        most = default_bit_rate(frame.width, frame.height)
        rate = most if bit_rate is None else min(most, bit_rate)
        changed = self._bit_rate != rate
        if (
            self._context is None
            or self._size != (frame.width, frame.height)
            or (changed and not self.retunes)
        ):
            self._open(frame.width, frame.height, rate)
            keyframe = True
        elif changed:
            self._context.bit_rate = self._bit_rate = rate
        assert self._context is not None
        frame.pts = self._last_pts = max(due_us, self._last_pts + 1)
        frame.time_base = _TIME_BASE
        if keyframe:
            frame.pict_type = av.video.frame.PictureType.I
        packets = self._context.encode(frame)
        if not packets:
            return None
        data = b"".join(bytes(packet) for packet in packets)
        is_key = any(packet.is_keyframe for packet in packets)
        self._since_keyframe = 1 if is_key else self._since_keyframe + 1
        return EncodedVideo(data, time_us, due_us, is_key, frame.width, frame.height)

    def _open(self, width: int, height: int, bit_rate: int) -> None:
        name = h264_encoder() if self._codec == "H264" else "libvpx"
        try:
            self._context = _opened(name, width, height, bit_rate, self._fps)
        except av.FFmpegError:
            if name != _NVENC:
                raise
            # A card encodes so many pictures at once and no more, and none below a certain size.
            self._context = _opened("libx264", width, height, bit_rate, self._fps)
        self._size, self._bit_rate = (width, height), bit_rate
        self.builds += 1


def _opened(name: str, width: int, height: int, bit_rate: int, fps: int) -> VideoCodecContext:
    context = av.CodecContext.create(name, "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height = width, height
    context.pix_fmt = "yuv420p"
    context.time_base = _TIME_BASE
    context.framerate = Fraction(fps)
    context.bit_rate = bit_rate
    context.gop_size = _GROUP_S * fps
    context.max_b_frames = 0
    context.thread_count = 1
    context.colorspace, context.color_range = _BT601, _LIMITED
    # FFmpeg tells an H.264 encoder of a changed bit_rate only where maxrate and bufsize are its own.
    most = default_bit_rate(width, height)
    if name == "libx264":
        context.profile = "Baseline"
        context.options = {
            "preset": "superfast" if width * height < _LARGE else "ultrafast",
            "tune": "zerolatency",
            "forced-idr": "1",
            "maxrate": str(most),
            "bufsize": str(most // 2),
            # The fastest preset would leave these out; blocks would be seen, most of all in dark, even parts.
            "x264-params": "scenecut=0:deblock=0,0:aq-mode=1",
        }
    elif name == _NVENC:
        context.options = {
            "profile": "baseline",
            "preset": "p2",
            "tune": "ull",
            "zerolatency": "1",
            "delay": "0",
            "rc": "vbr",
            "forced-idr": "1",
            "no-scenecut": "1",
            "maxrate": str(most),
            "bufsize": str(most // 2),
        }
    else:
        context.options = {
            "deadline": "realtime",
            "cpu-used": "-6",
            "noise-sensitivity": "0",
            "lag-in-frames": "0",
            "error-resilient": "1",
            "static-thresh": "1",
            "max-intra-rate": "300",
            "maxrate": str(bit_rate),
            "minrate": str(bit_rate // 4),
            "bufsize": str(bit_rate // 2),
        }
    context.open()
    return context


@cache
def h264_encoder() -> str:
    """FFmpeg's name of the H.264 encoder to use: NVENC where a card really encodes, else libx264."""
    try:
        context = _opened(_NVENC, 640, 360, 1_000_000, 25)
        frame = av.VideoFrame(640, 360, "yuv420p")
        frame.pts, frame.time_base = 0, _TIME_BASE
        packets = [*context.encode(frame), *context.encode(None)]
    except (av.FFmpegError, ValueError):  # ValueError: FFmpeg was built without it
        return "libx264"
    return _NVENC if packets else "libx264"


class OpusEncoder:
    """20 ms Opus frames, 48 kHz mono, for speech."""

    def __init__(self) -> None:
        context = av.CodecContext.create("libopus", "w")
        assert isinstance(context, AudioCodecContext)
        context.sample_rate = PLAYOUT_RATE
        context.layout = "mono"
        context.format = "s16"
        context.bit_rate = _OPUS_BPS
        context.time_base = Fraction(1, PLAYOUT_RATE)
        context.options = {"application": "voip", "frame_duration": "20"}
        context.open()
        self._context = context
        self._pts = 0

    def encode(self, audio: AudioFrame) -> EncodedAudio | None:
        frame = av.AudioFrame.from_ndarray(audio.samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = PLAYOUT_RATE
        frame.pts = self._pts
        self._pts += audio.samples.size
        packets = self._context.encode(frame)
        return EncodedAudio(bytes(packets[0]), audio.due_us, audio.position) if packets else None


def default_bit_rate(width: int, height: int) -> int:
    """Bits per second for a talking head of this size at 25 to 30 frames per second."""
    return int(min(MOST_BPS, max(400_000, width * height * 25 * _BITS_PER_PIXEL)))
