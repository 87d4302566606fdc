"""Messages between the server and an engine's process, and the memory that both see."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import Pipe
from typing import Any

import numpy as np
import pytest

from stream import engine_line
from stream.engine_line import EngineLine, shared_memory


@pytest.fixture
def ends() -> Iterator[tuple[EngineLine, EngineLine]]:
    ours, theirs = Pipe()
    with shared_memory() as shared:
        lines = EngineLine(ours, shared.fileno()), EngineLine(theirs, shared.fileno())
    yield lines
    for line in lines:
        line.close()
        line.close()


def test_arrays_of_any_shape_arrive_as_they_were(ends: tuple[EngineLine, EngineLine]) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (162, 192), dtype=np.uint8)
    sent: list[Any] = [
        picture,
        picture[::2, 1::3],
        picture.T,
        np.zeros((0, 3), np.float32),
        np.float32(4),
        "text",
        None,
    ]
    ends[0].send(sent)
    got = ends[1].receive()
    for before, after in zip(sent, got, strict=True):
        np.testing.assert_array_equal(after, before)
    assert got[0].flags.writeable


def test_what_was_received_is_not_written_over_by_the_answer(ends: tuple[EngineLine, EngineLine]) -> None:
    ends[0].send(np.full(1000, 7, np.uint8))
    kept = ends[1].receive()
    ends[1].send(np.full(1000, 9, np.uint8))
    answer = ends[0].receive()
    assert (kept == 7).all()
    assert (answer == 9).all()
    kept[:] = 1
    assert (answer == 9).all()


def test_what_the_memory_cannot_hold_goes_through_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_line, "_SHARED_BYTES", 8192)
    ours, theirs = Pipe()
    with shared_memory() as shared:
        one, other = EngineLine(ours, shared.fileno()), EngineLine(theirs, shared.fileno())
    arrays: list[Any] = [
        np.arange(5000, dtype=np.uint16),
        np.arange(5000, dtype=np.uint8),
        np.arange(4000, dtype=np.uint8),
    ]
    one.send(arrays)
    got: list[Any] = other.receive()
    for before, after in zip(arrays, got, strict=True):
        np.testing.assert_array_equal(after, before)
    one.close()
    with pytest.raises(EOFError):
        other.receive()
    assert other.poll(0)
    other.close()
