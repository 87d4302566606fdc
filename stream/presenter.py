"""Presenter sources: a looping video file or a still image in place of a camera."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stream.clock import Clock
from stream.files import FileFrame, VideoFile
from stream.source import SourceBuffer

_FAR_BEHIND_US = 500_000


class FrameReader:
    """Reads frames on a thread of its own, one ahead, so that decoding never holds up the event loop."""

    def __init__(self, file: VideoFile, frames: Iterator[FileFrame]) -> None:
        self._file = file
        self._frames = frames
        self._executor = ThreadPoolExecutor(1, "retalk-read")
        self._next = self._executor.submit(next, self._frames, None)

    async def read(self) -> FileFrame | None:
        """The next frame, None at the end."""
        frame = await asyncio.wrap_future(self._next)
        if frame is not None:
            self._next = self._executor.submit(next, self._frames, None)
        return frame

    def go_on(self, frames: Iterator[FileFrame]) -> None:
        """Read on from other frames of the same file, after the end."""
        self._frames = frames
        self._next = self._executor.submit(next, self._frames, None)

    def close(self) -> None:
        """Stop reading and close the file, on its own thread after the frame under way. Idempotent."""
        with contextlib.suppress(RuntimeError):
            self._executor.submit(self._file.close)
        self._executor.shutdown(wait=False)


async def present(path: Path, source: SourceBuffer, clock: Clock) -> None:
    """Push a file's frames at its own pace, back and forth, until cancelled or the source has ended.

    A reader that falls behind skips frames: the presenter's clock is the session's. Raises InputError.
    """
    loop = asyncio.get_running_loop()
    file = await loop.run_in_executor(None, lambda: VideoFile(path, bt601=True))
    reader = FrameReader(file, file.ping_pong())
    try:
        start_us = clock.now_us()
        while not source.ended:
            frame = await reader.read()
            if frame is None:
                return
            due_us = start_us + file.time_us(frame.pts)
            if clock.now_us() - due_us > _FAR_BEHIND_US:
                continue
            await clock.sleep_until(due_us)
            source.push(frame.picture, due_us)
    finally:
        reader.close()
