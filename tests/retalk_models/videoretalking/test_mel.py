from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from retalk_models.picture import F32
from retalk_models.videoretalking.mel import (
    BANDS,
    COLUMNS,
    LOOK_AHEAD,
    SILENCE,
    VoiceMel,
    first_column,
    window,
)

Load = Callable[[str], dict[str, NDArray[np.generic]]]


def noise(count: int) -> F32:
    return np.random.default_rng(9).normal(0, 0.1, count).astype(np.float32)


def test_columns_equal_the_official_ones(golden: Load) -> None:
    facts = golden("helpers")
    columns = VoiceMel().push(facts["mel_wav"].astype(np.float32))
    # The official code also makes columns that reach beyond a file's end; a stream waits for what comes.
    want = facts["mel_out"].T.astype(np.float32)
    assert len(columns) == len(want) - 2
    assert float(np.abs(columns - want[: len(columns)]).max()) < 1e-4


@pytest.mark.parametrize("rate", ["25.00", "30.00", "22.13"])
def test_windows_start_where_the_official_ones_do(rate: str, golden: Load) -> None:
    facts = golden("helpers")
    starts = facts[f"mel_starts_fps{rate}"].tolist()
    columns = facts["mel_out"].T.astype(np.float32)
    for frame, start in enumerate(starts):
        found = window(columns, first_column(int(frame / float(rate) * 16_000 + 1e-6)))
        assert np.array_equal(found, columns[start : start + COLUMNS].T[None]), frame


@pytest.mark.parametrize("chunk", [1, 7, 199, 200, 201, 320, 801, 4000])
def test_chunks_equal_the_whole(chunk: int) -> None:
    voice = noise(6000)
    whole = VoiceMel().push(voice)
    stream = VoiceMel()
    parts = [stream.push(voice[start : start + chunk]) for start in range(0, len(voice), chunk)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_a_frames_window_is_there_once_its_look_ahead_is() -> None:
    for voice_at in (0, 199, 640, 1279):
        needed = first_column(voice_at) + COLUMNS
        assert len(VoiceMel().push(noise(voice_at + LOOK_AHEAD))) >= needed
    assert len(VoiceMel().push(noise(600 + LOOK_AHEAD - 1))) < first_column(600) + COLUMNS


def test_silence_is_the_lowest_value_and_starting_over_forgets() -> None:
    mel = VoiceMel()
    mel.push(noise(1000))
    mel.reset()
    columns = mel.push(np.zeros(2000, np.float32))
    assert columns.shape == (9, BANDS)
    assert (columns == SILENCE).all()
    assert mel.push(np.zeros(0, np.float32)).shape == (0, BANDS)


def test_too_few_columns_for_a_window_are_refused() -> None:
    with pytest.raises(ValueError, match="15 mel columns are there and 16 are needed"):
        window(np.zeros((15, BANDS), np.float32), 0)
