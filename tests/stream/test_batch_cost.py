"""What calls of several windows take is known before the first session comes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest

from retalk_models.engine import EngineResult, EngineSession, EngineWindow
from server.streams import Streams
from stream.batch_cost import measure_calls
from stream.material import Material
from stream.media import PLAYOUT_RATE
from tests.stream.fakes import FakeEngine, flat_picture


class BatchFake(FakeEngine):
    """A call takes a moment and as much again for every window; more than `fits` do not fit into memory."""

    def __init__(self, call_s: float, window_s: float, most: int = 6, fits: int = 64) -> None:
        super().__init__()
        self.most_windows = most
        self.sizes: list[int] = []
        self._call_s, self._window_s, self._fits = call_s, window_s, fits

    def process_many(
        self, work: Sequence[tuple[EngineSession, EngineWindow]]
    ) -> Sequence[EngineResult | Exception]:
        self.sizes.append(len(work))
        if len(work) > self._fits:
            raise RuntimeError("out of memory")
        time.sleep(self._call_s + self._window_s * len(work))
        return [session.process(window) for session, window in work]


@pytest.fixture
def material() -> Material:
    return Material([flat_picture(luma) for luma in (40, 60)], 25.0, np.zeros(PLAYOUT_RATE, np.int16))


def test_every_doubling_is_measured_and_the_most(material: Material) -> None:
    engine = BatchFake(0.002, 0.001)
    found = measure_calls(engine, material, most_s=20.0)
    assert list(found) == [1, 2, 4, 6]
    assert all(seconds >= 0.002 + 0.001 * count for count, seconds in found.items())
    assert engine.opened == engine.closed == 1 + 2 + 4 + 6


def test_a_slow_engine_is_asked_once_and_no_more(material: Material) -> None:
    engine = BatchFake(0.05, 0.0)
    assert measure_calls(engine, material, most_s=0.06) == {}
    assert engine.sizes == [1]
    assert engine.opened == engine.closed == 1


def test_what_does_not_fit_into_memory_is_left_out(material: Material) -> None:
    engine = BatchFake(0.0, 0.0, fits=2)
    assert list(measure_calls(engine, material, most_s=20.0)) == [1, 2]
    assert engine.opened == engine.closed


def test_an_engine_of_single_windows_has_no_calls_to_measure(material: Material) -> None:
    for engine in (FakeEngine(), BatchFake(0.0, 0.0, most=1)):
        assert measure_calls(engine, material) == {}
        assert engine.opened == 0


async def test_the_scheduler_begins_with_what_was_measured() -> None:
    streams = Streams(FakeEngine(), None, {1: 0.01, 4: 0.02})
    assert streams.calls == {1: 0.01, 4: 0.02}
    await streams.close()
