from __future__ import annotations

import time
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from retalk_models.engine import EngineWindow
from stream.bench import measure_cost, measure_live
from stream.errors import InputError
from stream.material import VOICE_CHUNK, Material, load_material
from stream.media import I16, PLAYOUT_RATE
from stream.sample import sample_presenter
from tests.stream.fakes import FakeEngine, flat_picture

BURNT_S = 0.004


def burn(window: EngineWindow) -> None:
    """Spend a known amount of processor time, however busy the machine is."""
    until = time.process_time() + BURNT_S
    while time.process_time() < until:
        pass


def tone(seconds: float, rate: int) -> I16:
    return np.asarray(8000 * np.sin(np.arange(round(seconds * rate)) * 0.05), np.int16)


@pytest.fixture
def material() -> Material:
    return Material([flat_picture(luma) for luma in range(40, 60)], 25.0, tone(1.0, PLAYOUT_RATE))


def test_the_cost_of_the_engine_is_what_it_spends(material: Material) -> None:
    engine = FakeEngine(before=burn)
    cost = measure_cost(engine, material, seconds=2.0)
    per_second = 25 * BURNT_S
    assert per_second * 0.9 <= sum(cost.stages.values()) <= per_second * 2
    assert cost.window_ms.p50 >= BURNT_S * 1000 * 0.9
    assert min(cost.decode, cost.encode, cost.session) > 0
    assert cost.total == pytest.approx(cost.decode + sum(cost.stages.values()) + cost.session + cost.encode)
    assert engine.closed == engine.opened == 1


def test_live_sessions_are_watched_and_closed(material: Material) -> None:
    engine = FakeEngine()
    said: list[float] = []
    live = measure_live(engine, material, sessions=2, seconds=1.5, warm_up_s=0.5, on_progress=said.append)
    assert live.sessions == len(live.fps) == len(live.stats) == 2
    assert live.seconds >= 1.5
    assert 0 < live.cpu < 10
    # Busy machines drop frames; none at all would mean that nobody watched.
    assert min(live.fps) > 1
    assert all(one.frames_in > 20 and one.added_latency_ms.p50 > 0 for one in live.stats)
    assert said
    assert engine.closed == engine.opened == 2


def test_frames_are_played_back_and_forth_and_the_voice_pauses(material: Material) -> None:
    pictures = material.pictures()
    order = [int(next(pictures).y[0, 0]) - 40 for _ in range(2 * 20)]
    assert order == [*range(20), *range(18, 0, -1), 0, 1]
    chunks = material.chunks()
    second = [next(chunks) for _ in range(50)]
    assert np.array_equal(np.concatenate(second), material.voice)
    assert not next(chunks).any()
    assert next(chunks).shape == (VOICE_CHUNK,)


def test_material_is_scaled_into_the_size_asked_for(tmp_path: Path) -> None:
    voice = tmp_path / "voice.wav"
    with wave.open(str(voice), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(tone(0.5, 16_000).tobytes())
    video = tmp_path / "video.mp4"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 160, "yuv420p"
        for _ in range(9):
            picture = np.full((160, 96, 3), 40, np.uint8)
            picture[40:120] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    loaded = load_material(video, voice, 128, 64)
    assert [(one.width, one.height) for one in loaded.frames] == [(128, 64)] * 9
    assert loaded.fps == pytest.approx(30)
    # All of a tall picture is there, between black sides: dark, bright, dark from top to bottom.
    middle = loaded.frames[0].y[:, 64]
    assert middle[4] < 100
    assert middle[32] > 150
    assert middle[60] < 100
    assert loaded.frames[0].y[:, :40].max() < 20
    assert loaded.voice.size / PLAYOUT_RATE == pytest.approx(0.5, abs=0.02)
    still = load_material(sample_presenter(), voice, 320, 240)
    assert (len(still.frames), still.fps) == (1, 25.0)
    with pytest.raises(InputError, match="no such file"):
        load_material(tmp_path / "gone.mp4", voice, 128, 64)
