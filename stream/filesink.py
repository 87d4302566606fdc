"""A session's output as a file: H.264 and AAC in MP4, with the source's own times, size, turn and colours."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream

from stream.files import ColourTags
from stream.frames import full_frame_of, rotated
from stream.media import PLAYOUT_RATE, AudioFrame, DubbedFrame
from stream.stereo import StereoSound

COMMENT = "AI dubbed by retalk: the speech and the lips are synthetic"

_AAC_FRAME = 1024
_AAC_BPS = 128_000
_WAITING = 16


@dataclass(frozen=True, slots=True)
class FileShape:
    """What the output takes over from the source. width, height and rotation as VideoFile gives them."""

    width: int
    height: int
    rotation: int
    time_base: Fraction
    rate: Fraction
    colour: ColourTags
    sample_aspect_ratio: Fraction | None


class FileSink:
    """Encodes on a thread of its own; a full queue makes the session wait, so nothing is ever dropped.

    stereo: what is heard in place of the voice's one channel, sample for sample; read on that thread.
    pts_of: the source's own time stamp, in its time base, of a frame by its session time.
    A fault of the encoder or the disk is raised from the next call, and from `finish`.
    """

    def __init__(
        self, path: Path, shape: FileShape, pts_of: Callable[[int], int], stereo: StereoSound | None = None
    ) -> None:
        self._path = path
        self.stereo = stereo
        self._shape = shape
        self._pts_of = pts_of
        self._queue: queue.Queue[DubbedFrame | AudioFrame | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, name="retalk-write", daemon=True)
        self._fault: BaseException | None = None
        self._end_samples: int | None = None
        self._final_duration = 0
        self.frames = 0
        self._thread.start()

    def video(self, frame: DubbedFrame) -> None:
        self._put(frame)

    def audio(self, frame: AudioFrame) -> None:
        self._put(frame)

    def interrupt(self, epoch: int) -> None:
        """What has been released is in the file; there is nothing to take back."""

    def counts(self) -> dict[str, int]:
        return {"written": self.frames}

    async def run(self) -> None:
        return None

    def end_at(self, samples: int, last_duration: int) -> None:
        """Write exactly so many samples of sound; show the last frame for so many time base units."""
        self._end_samples = samples
        self._final_duration = last_duration

    def finish(self) -> None:
        """Complete the file; blocks until it is written."""
        self._put(None)
        self._thread.join()
        self._raise_fault()

    def abort(self) -> None:
        """Stop at once and leave a partial file behind; the caller removes it. Idempotent."""
        self._fault = self._fault or RuntimeError("aborted")
        while self._thread.is_alive():
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                self._queue.get()
            self._thread.join(0.05)

    def _put(self, item: DubbedFrame | AudioFrame | None) -> None:
        self._raise_fault()
        self._queue.put(item)

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _work(self) -> None:
        try:
            options = {
                "video_track_timescale": str(self._shape.time_base.denominator),
                "movflags": "+faststart",
            }
            with av.open(str(self._path), "w", format="mp4", options=options) as container:
                container.metadata["comment"] = COMMENT
                _Writer(container, self._shape, self).run()
        except BaseException as error:
            self._fault = self._fault or error
            while self._queue.get() is not None:
                pass

    def take(self) -> DubbedFrame | AudioFrame | None:
        """The writer's next piece of work; None at the end."""
        return None if self._fault is not None else self._queue.get()

    def pts_of(self, frame: DubbedFrame) -> int:
        return self._pts_of(frame.time_us)

    @property
    def seconds(self) -> float:
        """How long the file is."""
        return (self._end_samples or 0) / PLAYOUT_RATE

    @property
    def end_samples(self) -> int | None:
        return self._end_samples

    @property
    def final_duration(self) -> int:
        return self._final_duration


class _Writer:
    """The thread's side: two encoders and a muxer."""

    def __init__(self, container: OutputContainer, shape: FileShape, sink: FileSink) -> None:
        self._container = container
        self._shape = shape
        self._sink = sink
        self._video = self._video_stream()
        self._audio = self._audio_stream()
        self._sound = np.zeros(0, np.int16)
        self._samples = 0
        self._last_pts: int | None = None
        self._following: dict[int, int] = {}

    def run(self) -> None:
        while (item := self._sink.take()) is not None:
            if isinstance(item, DubbedFrame):
                self._write_video(item)
            else:
                self._write_audio(item)
        self._flush()

    def _video_stream(self) -> VideoStream:
        shape = self._shape
        turned = shape.rotation % 180 != 0
        width, height = (shape.height, shape.width) if turned else (shape.width, shape.height)
        stream = self._container.add_stream("libx264", rate=shape.rate)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        stream.time_base = shape.time_base
        context = stream.codec_context
        context.time_base = shape.time_base
        context.options = {"crf": "17", "preset": "fast"}
        context.color_primaries = shape.colour.primaries
        context.color_trc = shape.colour.transfer
        context.colorspace = shape.colour.matrix
        context.color_range = shape.colour.range
        if shape.sample_aspect_ratio:
            context.sample_aspect_ratio = shape.sample_aspect_ratio
        if shape.rotation:
            stream.set_display_rotation(shape.rotation)
        return stream

    def _audio_stream(self) -> AudioStream:
        layout = "mono" if self._sink.stereo is None else "stereo"
        stream = self._container.add_stream("aac", rate=PLAYOUT_RATE, layout=layout)
        stream.bit_rate = _AAC_BPS
        return stream

    def _write_video(self, dubbed: DubbedFrame) -> None:
        frame = full_frame_of(rotated(dubbed.picture, -self._shape.rotation))
        frame.pts = self._sink.pts_of(dubbed)
        frame.time_base = self._shape.time_base
        frame.color_range, frame.colorspace = self._shape.colour.range, self._shape.colour.matrix
        if self._last_pts is not None:
            self._following[self._last_pts] = frame.pts
        self._last_pts = frame.pts
        self._mux_video(frame)
        self._sink.frames += 1

    def _mux_video(self, frame: av.VideoFrame | None) -> None:
        for packet in self._video.encode(frame):
            # Shown until the next one, which is known by now: the encoder looks ahead.
            if packet.pts is not None:
                following = self._following.pop(packet.pts, packet.pts + self._sink.final_duration)
                packet.duration = following - packet.pts
            self._container.mux(packet)

    def _write_audio(self, audio: AudioFrame) -> None:
        self._sound = np.concatenate([self._sound, audio.samples])
        self._encode_sound(whole_only=True)

    def _encode_sound(self, whole_only: bool) -> None:
        if self._sink.end_samples is not None:
            self._sound = self._sound[: max(0, self._sink.end_samples - self._samples)]
        while self._sound.size >= (_AAC_FRAME if whole_only else 1):
            piece, self._sound = self._sound[:_AAC_FRAME], self._sound[_AAC_FRAME:]
            stereo = self._sink.stereo
            heard, layout = (piece, "mono") if stereo is None else (stereo.take(piece.size), "stereo")
            frame = av.AudioFrame.from_ndarray(heard.reshape(1, -1), format="s16", layout=layout)
            frame.sample_rate = PLAYOUT_RATE
            frame.pts = self._samples
            frame.time_base = Fraction(1, PLAYOUT_RATE)
            self._samples += piece.size
            for packet in self._audio.encode(frame):
                self._container.mux(packet)

    def _flush(self) -> None:
        self._encode_sound(whole_only=False)
        self._mux_video(None)
        for packet in self._audio.encode(None):
            self._container.mux(packet)
