"""The engine `videoretalking` with all its nets (synthetic weights), through `dub` and a live session.

The picture is texture: what is tested is that every part is where it belongs. The nets take seconds a frame
on a processor, so frames are few; the live session of many frames has stages that cost nothing.
"""

from __future__ import annotations

import asyncio
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from retalk_models.engine import Engine
from retalk_models.picture import Picture
from retalk_models.store import CheckpointStore
from retalk_models.videoretalking.engine import VideoRetalkingEngine
from stream.clock import VirtualClock
from stream.media import PLAYOUT_RATE
from stream.offline import dub
from stream.runner import InlineRunner
from stream.session import Session, SessionConfig
from tests.retalk_models.videoretalking import synthetic
from tests.retalk_models.videoretalking.cheap import CheapStages
from tests.retalk_models.videoretalking.clip import pictures
from tests.stream.fakes import KeepingSink
from tests.stream.harness import tone

FRAMES = 3
RATE = 5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> VideoRetalkingEngine:
    """Loaded from files as the official ones are, in a model folder of its own."""
    folder = synthetic.write_models(tmp_path_factory.mktemp("models"))
    engine = VideoRetalkingEngine.load("cpu", CheckpointStore(folder))
    for path in folder.iterdir():
        path.unlink()
    return engine


@pytest.fixture(scope="module")
def clip(clips: Path) -> list[Picture]:
    return pictures(clips / "open" / "o2_woman_blue_700_vfr22.mp4", FRAMES, side=320)


def write(folder: Path, shown: list[Picture]) -> tuple[Path, Path]:
    video, voice = folder / "video.mp4", folder / "voice.wav"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = shown[0].width, shown[0].height, "yuv420p"
        for picture in shown:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.rgb())))
        container.mux(stream.encode(None))
    with wave.open(str(voice), "wb") as file:
        file.setparams((1, 2, PLAYOUT_RATE, 0, "NONE", ""))
        file.writeframes(tone(1000 * len(shown) // RATE).tobytes())
    return video, voice


@pytest.mark.slow
def test_a_file_is_dubbed_by_all_three_stages(
    engine: VideoRetalkingEngine, clip: list[Picture], tmp_path: Path
) -> None:
    video, voice = write(tmp_path, clip)
    out = tmp_path / "out.mp4"
    report = dub(video, voice, out, engine=engine, mark=False)
    assert report["engine"] == "videoretalking"
    assert set(report["weights"]) == {
        "DNet.pt",
        "LNet.pth",
        "ENet.pth",
        "face3d_pretrain_epoch_20.pth",
        "expression.mat",
        "BFM.zip",
    }
    assert (report["frames"], report["dubbed"], report["faults"]) == (FRAMES, FRAMES, 0)
    assert report["faces"] == {"tracked": FRAMES}
    assert report["fps_out"] == pytest.approx(RATE)
    # One canonical reference, in the first window; D-Net is not run where the pose is known.
    counts = report["engine_counts"]
    assert counts["reference_misses"] == counts["references_made"] <= 2
    canonical, spoken = report["stage_ms"]["canonical"], report["stage_ms"]["lip_sync"]
    assert canonical["max"] > 100 * canonical["p50"]
    assert spoken["p50"] > 20
    assert report["stage_ms"]["enhancement"]["p50"] > 20
    with av.open(str(out)) as container:
        times = [float(frame.time or 0) for frame in container.decode(video=0)]
    assert times == pytest.approx([index / RATE for index in range(FRAMES)])


async def live(
    engine: Engine,
    shown: list[Picture],
    rate: int,
    config: SessionConfig,
    after: Callable[[int, Session], None] = lambda count, session: None,
) -> tuple[KeepingSink, Session]:
    """A session on a virtual clock with a voice under all of it. after: called with the frames so far."""
    clock = VirtualClock()
    task = asyncio.current_task()
    assert task is not None
    clock.adopt(task)
    sink = KeepingSink(clock)
    session = Session(config, engine, clock=clock, runner=InlineRunner(), sink=sink)
    running = asyncio.create_task(session.run())
    await clock.sleep_until(10_000)
    step_us = 1_000_000 // rate
    for index, picture in enumerate(shown):
        await clock.sleep_until(10_000 + index * step_us)
        session.voice.push(tone(step_us // 1000))
        session.source.push(picture, clock.now_us())
        # Real time for what is made beside the frames: virtual time costs none.
        await asyncio.sleep(0.002)
        after(index + 1, session)
    await clock.sleep_until(clock.now_us() + 1_000_000)
    await session.close()
    await running
    return sink, session


@pytest.mark.slow
async def test_a_live_session_runs_all_nets(engine: VideoRetalkingEngine, clip: list[Picture]) -> None:
    sink, session = await live(engine, clip, RATE, SessionConfig(mark=False))
    stats = session.stats()
    assert (stats.frames_in, stats.frames_out, stats.faults, stats.late) == (3, 3, 0, 0)
    assert stats.faces == {"tracked": 3}
    assert {"track", "canonical", "lip_sync", "enhancement", "composite"} <= set(stats.stage_ms)
    assert stats.stage_ms["lip_sync"].max > 20
    assert sum(stats.engine_counts[name] for name in ("reference_hits", "reference_misses")) == 3
    changes = [
        np.argwhere(source.y != frame.picture.y) for source, frame in zip(clip, sink.frames, strict=False)
    ]
    assert max(len(change) for change in changes) > 200
    height, width = clip[0].height, clip[0].width
    for change in changes:
        # Her mouth is in the middle of the picture: nothing else may change, not by one level.
        rows, columns = change[:, 0], change[:, 1]
        assert not len(change) or (0.2 * height < rows.min() and rows.max() < 0.62 * height)
        assert not len(change) or (0.35 * width < columns.min() and columns.max() < 0.8 * width)


async def test_a_live_session_of_many_frames_keeps_its_references(clips: Path) -> None:
    shown = pictures(clips / "open" / "o1_man_glasses_512.mp4", 200, side=320)
    stages = CheapStages()
    engine = VideoRetalkingEngine(stages, {})
    early: dict[str, int] = {}

    def note(count: int, session: Session) -> None:
        if count == 3 * 25:
            early.update(session.stats().engine_counts)

    sink, session = await live(engine, shown, 25, SessionConfig(mark=False), note)
    stats = session.stats()
    assert (stats.frames_out, stats.late, stats.faults) == (200, 0, 0)
    assert stats.dubbed > 190
    hits, misses = (stats.engine_counts[name] for name in ("reference_hits", "reference_misses"))
    assert hits + misses == 200
    later, missed = hits - early["reference_hits"], misses - early["reference_misses"]
    assert later + missed > 110
    assert later / (later + missed) > 0.9, "from three seconds on"
    assert stats.engine_counts["references_made"] == stages.asked.count("canonical")
    steps = np.diff(sink.frame_times)
    assert steps.min() == steps.max() == 40_000
