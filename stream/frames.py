"""Pictures to and from PyAV's frames, without touching a sample where the format allows it."""

from __future__ import annotations

import av
import numpy as np
from av.video.plane import VideoPlane

from retalk_models.picture import U8, Picture

_PLANAR = ("yuv420p", "yuvj420p")


def picture_of(frame: av.VideoFrame, rotate: int = 0) -> Picture:
    """The picture in a decoded frame; 8-bit 4:2:0 planes are taken as they are, all else is converted.

    rotate: degrees counter-clockwise (a multiple of 90) by which the picture is turned, without loss.
    """
    if frame.format.name not in _PLANAR:
        frame = frame.reformat(format="yuv420p")
    width, height = frame.width, frame.height
    half = (height + 1) // 2, (width + 1) // 2
    y = _plane(frame, 0, height, width)
    u, v = _plane(frame, 1, *half), _plane(frame, 2, *half)
    turns = rotate // 90 % 4
    if turns:
        y, u, v = (np.rot90(plane, turns) for plane in (y, u, v))
    return packed(y, u, v)


def packed(y: U8, u: U8, v: U8) -> Picture:
    """A picture from its planes; y is (height, width), u and v are half that, rounded up."""
    height, width = y.shape
    if height % 2 or width % 2:
        y = np.pad(y, ((0, height % 2), (0, width % 2)), mode="edge")
    planes = np.empty((y.shape[0] * 3 // 2, y.shape[1]), np.uint8)
    planes[: y.shape[0]] = y
    chroma = planes[y.shape[0] :].reshape(-1)
    chroma[: u.size].reshape(u.shape)[:] = u
    chroma[u.size :].reshape(v.shape)[:] = v
    return Picture(planes, width, height)


def rotated(picture: Picture, rotate: int) -> Picture:
    """The picture turned counter-clockwise by a multiple of 90 degrees, without loss."""
    turns = rotate // 90 % 4
    if not turns:
        return picture
    y = picture.y[: picture.height, : picture.width]
    return packed(*(np.rot90(plane, turns) for plane in (y, picture.u, picture.v)))


def frame_of(picture: Picture) -> av.VideoFrame:
    """A yuv420p frame of the picture, an odd edge left off: what live codecs take.

    Where it can be it is the picture's own memory. Raises ValueError where nothing would be left.
    """
    width, height = picture.width & ~1, picture.height & ~1
    if not width or not height:
        raise ValueError(f"a picture of {picture.width}x{picture.height} has no 2x2 pixels to encode")
    if (width, height) == (picture.padded_width, picture.padded_height):
        # PyAV takes a buffer's height for a multiple of four.
        take = av.VideoFrame.from_ndarray if height % 4 else av.VideoFrame.from_numpy_buffer
        return take(picture.planes, format="yuv420p")
    frame = av.VideoFrame(width, height, "yuv420p")
    for index, plane in enumerate((picture.y, picture.u, picture.v)):
        _fill(frame, index, plane)
    return frame


def full_frame_of(picture: Picture) -> av.VideoFrame:
    """A frame of exactly the picture's size: yuv420p, or yuv444p where a side is odd."""
    if picture.width % 2 == 0 and picture.height % 2 == 0:
        return frame_of(picture)
    frame = av.VideoFrame(picture.width, picture.height, "yuv444p")
    _fill(frame, 0, picture.y)
    for index, plane in ((1, picture.u), (2, picture.v)):
        _fill(frame, index, plane.repeat(2, axis=0).repeat(2, axis=1))
    return frame


def _plane(frame: av.VideoFrame, index: int, height: int, width: int) -> U8:
    plane = frame.planes[index]
    return _lines(plane)[:height, :width]


def _fill(frame: av.VideoFrame, index: int, values: U8) -> None:
    plane = frame.planes[index]
    _lines(plane)[: plane.height, : plane.width] = values[: plane.height, : plane.width]


def _lines(plane: VideoPlane) -> U8:
    """The plane's memory as lines, padding included; a view that can be written to."""
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
