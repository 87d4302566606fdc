"""A voice file as left and right, for whoever hears the dub; the engine needs one channel only."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from stream.files import AudioFile
from stream.media import I16, PLAYOUT_RATE


class StereoSound:
    """A sound file as stereo at PLAYOUT_RATE, read from its beginning on; silence beyond its end."""

    def __init__(self, path: Path) -> None:
        self._file = AudioFile(path)
        self._pieces = self._resampled()
        self._rest: NDArray[np.int16] = np.zeros((0, 2), np.int16)

    def close(self) -> None:
        """Let go of the file, once nobody reads any more."""
        self._pieces.close()
        self._file.close()

    def take(self, count: int) -> I16:
        """(count, 2) int16: the next samples."""
        parts, have = [self._rest], len(self._rest)
        while have < count and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            have += len(piece)
        if have < count:
            parts.append(np.zeros((count - have, 2), np.int16))
        joined = np.concatenate(parts)
        self._rest = joined[count:]
        return joined[:count]

    def _resampled(self) -> Generator[I16, None, None]:
        mixer = av.AudioResampler(format="s16", layout="stereo", rate=PLAYOUT_RATE)
        for frame in self._file.decoded():
            for mixed in mixer.resample(frame):
                yield np.asarray(mixed.to_ndarray().reshape(-1, 2), np.int16)
        for mixed in mixer.resample(None):
            yield np.asarray(mixed.to_ndarray().reshape(-1, 2), np.int16)
