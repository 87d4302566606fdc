"""How fast the engine `videoretalking` is on this machine, net by net and whole, with synthetic weights.

    python -m benchmarks.videoretalking                       # what is here: CUDA if there is any
    python -m benchmarks.videoretalking --reference CHECKOUT  # and the official code, in the same process
    python -m benchmarks.videoretalking --poses CLIP...       # instead: hit rates of the pose cache, no nets

Speed does not depend on the weights' values, so no file is needed. CHECKOUT is a working tree of
OpenTalker/video-retalking outside this repository; see reference_chain.py for what of it is run.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retalk_models.engine import EngineFrame, EngineOptions, EngineWindow, Idle
from retalk_models.picture import Picture
from retalk_models.videoretalking.canvas import SIDE
from retalk_models.videoretalking.dnet import DNet
from retalk_models.videoretalking.enet import ENet, draw_noise
from retalk_models.videoretalking.engine import VideoRetalkingEngine
from retalk_models.videoretalking.files import Expressions, Nets
from retalk_models.videoretalking.lnet import LNet
from retalk_models.videoretalking.recon import CoefficientNet
from retalk_models.videoretalking.stages import BUCKETS, FaceReference, FaceWork, Stages

STEP_MS = 40.0
"""A frame's share of time at 25 frames a second."""

VOICE_STEP = 640


def synthetic_nets() -> Nets:
    """All nets with whatever numbers they are made with."""
    torch.manual_seed(0)
    nets: list[nn.Module] = [DNet(), LNet(), ENet(), CoefficientNet()]
    for net in nets:
        net.eval().requires_grad_(False)
        for parameter in net.parameters():
            if not bool(parameter.any()):
                nn.init.normal_(parameter, std=0.02)
    zeros = np.zeros(64, np.float32)
    points = np.random.default_rng(0).normal(size=(68, 3))
    dnet, lnet, enet, recon = nets
    assert isinstance(dnet, DNet)
    assert isinstance(lnet, LNet)
    assert isinstance(enet, ENet)
    assert isinstance(recon, CoefficientNet)
    return Nets(dnet, lnet, enet, recon, Expressions(zeros, zeros), points, {})


def timed(device: torch.device, count: int, work: Callable[[], object]) -> np.ndarray[Any, Any]:
    """Milliseconds of each of `count` runs, after warming up: wall time on CUDA, else processor time.

    Processor time is what one idle core would take, whatever else this machine is at.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    taken = []
    for index in range(count + max(1, count // 5)):
        began = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if index >= max(1, count // 5):
            taken.append(1000 * (clock() - began))
    return np.array(taken)


def p(values: np.ndarray[Any, Any]) -> str:
    p50, p95 = np.percentile(values, (50, 95))
    return f"{p50:9.2f} {p95:9.2f}"


class Frames:
    """Inputs for the stages, on the device."""

    def __init__(self, stages: Stages) -> None:
        self.stages, device = stages, stages.device
        self.mel = torch.randn(1, 1, 80, 16, device=device)
        self.face = torch.rand(1, 3, SIDE, SIDE, device=device)
        self.noise = draw_noise(0, device)
        self.image = torch.rand(1, 3, 256, 256) * 2 - 1
        self.semantics = torch.randn(1, 73, 26)
        self.aligned = torch.rand(1, 3, 224, 224)
        self.reference = stages.reference(self.face)

    def work(self, count: int, fine: bool = True, reference: FaceReference | None = None) -> list[FaceWork]:
        noise = self.noise if fine else None
        return [FaceWork(self.mel, self.face, reference or self.reference, noise)] * count

    def make_reference(self) -> FaceReference:
        """All that a miss costs on the device."""
        self.stages.coefficients(self.aligned)
        drawn: Tensor = self.stages.canonical(self.image, self.semantics)
        return self.stages.reference(nn.functional.interpolate(drawn.float(), size=SIDE) * 0.5 + 0.5)


def by_net(frames: Frames, count: int, buckets: list[int], figures: dict[str, Any]) -> None:
    stages, device = frames.stages, frames.stages.device
    print("\nmilliseconds a call                         p50       p95")
    once: dict[str, Callable[[], object]] = {
        "coefficient net": lambda: stages.coefficients(frames.aligned),
        "D-Net": lambda: stages.canonical(frames.image, frames.semantics),
        "reference (L-Net's half, E-Net's style)": lambda: stages.reference(frames.face),
        "a miss, all of it": frames.make_reference,
    }
    for name, work in once.items():
        taken = timed(device, count, work)
        figures[name] = float(np.median(taken))
        print(f"{name:40}{p(taken)}")

    def speak(count: int, fine: bool) -> object:
        return stages.speak(frames.work(count, fine))

    for bucket in buckets:
        lips = timed(device, count, partial(speak, bucket, False))
        whole = timed(device, count, partial(speak, bucket, True))
        figures[f"L-Net x{bucket}"], figures[f"L-Net and E-Net x{bucket}"] = (
            float(np.median(lips)),
            float(np.median(whole)),
        )
        print(f"{f'L-Net, batch of {bucket}':40}{p(lips)}")
        print(f"{f'L-Net and E-Net, batch of {bucket}':40}{p(whole)}")


def by_hit_rate(frames: Frames, count: int, buckets: list[int], figures: dict[str, Any]) -> None:
    """Measured on CUDA; on a processor, where a frame takes seconds, put together from the calls above."""
    cuda = frames.stages.device.type == "cuda"
    how = "measured" if cuda else "put together from the above"
    print(f"\nall three stages, frame by frame, misses made in place; {how}")
    print("batch  hit rate   ms a frame   frames a second")
    for bucket in buckets:
        for rate in (0.0, 0.9, 1.0):
            if cuda:
                work = Mixed(frames, bucket, 1.0 - rate)
                a_frame = float(timed(frames.stages.device, max(count, 20), work).mean()) / bucket
            else:
                whole = figures[f"L-Net and E-Net x{bucket}"] / bucket
                a_frame = whole + (1.0 - rate) * figures["a miss, all of it"]
            figures[f"frame ms x{bucket} hit {rate}"] = a_frame
            print(f"{bucket:5} {rate:9.1f} {a_frame:12.2f} {1000 / a_frame:17.2f}")


class Mixed:
    """A batch of frames a call, with this share of misses."""

    def __init__(self, frames: Frames, size: int, misses: float) -> None:
        self._frames, self._size, self._misses = frames, size, misses
        self._owed = 0.0

    def __call__(self) -> None:
        self._owed += self._size * self._misses
        reference = self._frames.reference
        while self._owed >= 1 - 1e-9:
            reference, self._owed = self._frames.make_reference(), self._owed - 1
        self._frames.stages.speak(self._frames.work(self._size, reference=reference))


def a_face() -> Picture:
    """A face that can be tracked: the public-domain portrait that scikit-image carries."""
    import cv2

    from stream.sample import sample_presenter

    bgr = cv2.imread(str(sample_presenter()))
    return Picture.from_rgb(np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8))


class Crowd:
    """Sessions of one engine, each given one window of one frame per call, as the scheduler does."""

    def __init__(self, engine: VideoRetalkingEngine, face: Picture, number: int) -> None:
        self._engine, self._face = engine, face
        self._voice = np.random.default_rng(0).normal(scale=0.1, size=16_000 * 600).astype(np.float32)
        self._place = 0
        self._open = [engine.open_session(EngineOptions(Idle.REST, seed)) for seed in range(number)]

    def call(self) -> None:
        at, ahead = self._place * VOICE_STEP, 3400
        said = at + ahead - VOICE_STEP if self._place else 0
        frame = EngineFrame(self._face, self._place * 40_000, at, True)
        window = EngineWindow((frame,), self._voice[said : at + ahead], said, 0)
        for result in self._engine.process_many([(session, window) for session in self._open]):
            if isinstance(result, Exception):
                raise result
        self._place += 1

    def close(self) -> None:
        for session in self._open:
            session.close()


def sessions(stages: Stages, count: int, most: int, budget_ms: float, figures: dict[str, Any]) -> None:
    """How many fit: the mean within a frame's share of time, the 95th percentile within the budget."""
    engine, face = VideoRetalkingEngine(stages, {}), a_face()
    print("\nsessions a call, tracking and compositing included     p50       p95   fits at 25 a second")
    fit = 0
    for number in range(1, most + 1):
        crowd = Crowd(engine, face, number)
        taken = timed(stages.device, count, crowd.call)
        crowd.close()
        fits = bool(taken.mean() <= STEP_MS and np.percentile(taken, 95) <= budget_ms)
        figures[f"sessions {number} mean ms"] = float(taken.mean())
        figures[f"sessions {number} p95 ms"] = float(np.percentile(taken, 95))
        print(f"{number:40}{p(taken)}   {'yes' if fits else 'no'}")
        if not fits:
            break
        fit = number
    figures["sessions that fit"] = fit
    print(f"{fit} sessions at 25 frames a second fit, with p95 below {budget_ms:.0f} ms a window")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("float16", "bfloat16", "float32", "eager"))
    parser.add_argument("--iterations", type=int, help="runs of each; default: 50 on CUDA, 2 on a processor")
    parser.add_argument("--buckets", type=int, nargs="+", help=f"batch sizes out of {BUCKETS}")
    parser.add_argument("--sessions", type=int, default=32, help="the most sessions to try")
    parser.add_argument("--budget-ms", type=float, default=120.0, help="p95 that a window may take")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="checkout of the official repository")
    parser.add_argument("--size", default="1280x720", help="the official chain's frame")
    parser.add_argument("--poses", type=Path, nargs="+", metavar="CLIP", help="only the pose cache, on clips")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    asked = parser.parse_args()
    if asked.poses:
        from benchmarks.pose_hits import by_clip

        by_clip(asked.poses)
        return
    device = torch.device(asked.device)
    cuda = device.type == "cuda"
    count = asked.iterations or (50 if cuda else 2)
    buckets = asked.buckets or (list(BUCKETS) if cuda else [1, 2])
    precision = asked.precision or ("float16" if cuda else "float32")
    if not cuda:
        torch.set_num_threads(1)
    name = torch.cuda.get_device_name(device) if cuda else "processor time, 1 thread"
    print(f"{name}, torch {torch.__version__}, {precision}, {count} runs each")
    figures: dict[str, Any] = {"device": name, "torch": torch.__version__, "precision": precision}
    stages = Stages(synthetic_nets(), device, None if precision == "eager" else getattr(torch, precision))
    if cuda and precision != "eager":
        stages.capture()
    with torch.inference_mode():
        frames = Frames(stages)
        by_net(frames, count, buckets, figures)
        by_hit_rate(frames, count, buckets, figures)
    sessions(stages, count, asked.sessions, asked.budget_ms, figures)
    peak = (
        torch.cuda.max_memory_allocated(device)
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    )
    figures["peak memory MB"] = peak / 1e6
    print(f"\npeak memory: {peak / 1e6:.0f} MB ({'of tensors' if cuda else 'of the process'})")
    if cuda:
        # What the graphs' pool and the allocator keep from others, too: a device must have room for this.
        figures["peak reserved MB"] = torch.cuda.max_memory_reserved(device) / 1e6
        print(f"peak memory reserved on the device: {figures['peak reserved MB']:.0f} MB")
    if asked.reference is not None:
        from benchmarks.reference_chain import measure

        width, height = map(int, asked.size.split("x"))
        official = measure(asked.reference, device, (width, height), max(1, count // 10), figures)
        # The engine's whole window of one frame, tracking, upload and compositing included, and what misses
        # cost as if frames waited for them.
        ours = figures["sessions 1 mean ms"] + 0.1 * figures["a miss, all of it"]
        figures["ratio"] = official / ours
        print(f"\nofficial {official:.1f} ms a frame, this engine {ours:.1f} with tracking and compositing,")
        print(f"at a hit rate of 0.9: {official / ours:.1f} times as fast")
    if asked.json is not None:
        asked.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
