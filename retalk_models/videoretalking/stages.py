"""The three stages on a device: canonical expression, lip-sync, enhancement; batched, and captured on CUDA.

On CUDA each batch size in BUCKETS is one graph per stage, captured once: L-Net alone is more than two
thousand small kernels, whose launches would otherwise cost more than their work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retalk_models.videoretalking.canvas import SIDE
from retalk_models.videoretalking.enet import NOISE_SIZES, STYLE, shrink
from retalk_models.videoretalking.fast import (
    accelerate_coefficient_net,
    accelerate_dnet,
    accelerate_enet,
    accelerate_lnet,
)
from retalk_models.videoretalking.files import Nets

BUCKETS = (1, 2, 4, 8)
"""Batch sizes that are captured; a batch is filled up to the next one."""

FEATURES = (512, 12, 12)

_WARM_UPS = 3


@dataclass(frozen=True, slots=True, eq=False)
class FaceReference:
    """What the nets take from a reference face, each with a batch of 1.

    features: (1, 512, 12, 12) for L-Net. style: (1, 512) float32 for E-Net.
    """

    features: Tensor
    style: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class FaceWork:
    """One frame for the stages.

    mel: (1, 1, 80, 16). masked: (1, 3, 384, 384) BGR, 0..1, its lower half black. noise: four maps, or None
    where the frame is not to be enhanced.
    """

    mel: Tensor
    masked: Tensor
    reference: FaceReference
    noise: Sequence[Tensor] | None


class _Captured:
    """A function of tensors of fixed shapes as a CUDA graph. Called from any thread.

    pool, lock: memory that all graphs of one Stages share, and what a call holds until its output is copied
    out of it. A thread that was given up on may come back to life beside the one that took its place, so one
    thread alone cannot be counted on; both queue their work in the device's default stream, in the order in
    which they held the lock.
    """

    def __init__(
        self, work: Callable[..., Tensor], examples: Sequence[Tensor], pool: Any, lock: threading.Lock
    ) -> None:
        self._lock = lock
        self._inputs = [torch.zeros_like(example) for example in examples]
        side = new_stream(examples[0].device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                work(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = work(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        with self._lock:
            for held, given in zip(self._inputs, inputs, strict=True):
                held.copy_(given)
            self._graph.replay()
            return self._output.clone()


class Stages:
    """The loaded nets on one device. Called from any thread; references may be made beside the frames.

    dtype: None runs the nets as they were loaded, in float32: the reference that every other way is held to.
    Otherwise they are rebuilt for speed, in that precision. The nets are taken over and changed.
    """

    def __init__(self, nets: Nets, device: torch.device, dtype: torch.dtype | None) -> None:
        self.device, self.dtype = device, dtype
        if device.type == "cuda":
            keep_float32()
        self.expressions, self.standard_points = nets.expressions, nets.standard_points
        if dtype is not None:
            accelerate_dnet(nets.dnet, dtype)
            accelerate_lnet(nets.lnet, dtype)
            accelerate_enet(nets.enet, dtype)
            accelerate_coefficient_net(nets.coefficients, dtype)
        self._dnet, self._lnet = nets.dnet.to(device), nets.lnet.to(device)
        self._enet, self._recon = nets.enet.to(device), nets.coefficients.to(device)
        self._speak: dict[int, _Captured] = {}
        self._enhance: dict[int, _Captured] = {}
        self._graphs_lock = threading.Lock()

    def capture(self) -> None:
        """Capture both per-frame stages for every bucket. CUDA only."""
        with torch.inference_mode(), torch.cuda.device(self.device):
            pool, lock = torch.cuda.graph_pool_handle(), self._graphs_lock
            # The largest first, whose memory then serves the rest.
            for count in reversed(BUCKETS):
                mel = torch.zeros(count, 1, 80, 16, device=self.device)
                masked = torch.zeros(count, 3, SIDE, SIDE, device=self.device)
                features = torch.zeros(count, *FEATURES, dtype=self._lnet.encoder_dtype, device=self.device)
                self._speak[count] = _Captured(self._spoken, (mel, masked, features), pool, lock)
                low = torch.zeros(count, 3, SIDE // 4, SIDE // 4, device=self.device)
                style = torch.zeros(count, STYLE, device=self.device)
                noise = [torch.zeros(count, 1, size, size, device=self.device) for size in NOISE_SIZES]
                self._enhance[count] = _Captured(self._enhanced, (low, style, *noise), pool, lock)

    # --- per reference

    def coefficients(self, aligned: Tensor) -> Tensor:
        """(1, 3, 224, 224) aligned RGB, 0..1 -> (257,) float32 on the CPU."""
        out: Tensor = self._recon(self._placed(aligned))
        return out[0].float().cpu()

    def canonical(self, image: Tensor, semantics: Tensor) -> Tensor:
        """(1, 3, 256, 256) RGB, -1..1, and (1, 73, 26) -> the face with that expression, as the image."""
        fake: Tensor = self._dnet(self._placed(image), semantics.to(self.device)).fake_image
        return fake.clamp(-1, 1)

    def reference(self, face: Tensor) -> FaceReference:
        """(1, 3, 384, 384) BGR, 0..1, of a face as a reference."""
        face = self._placed(face)
        return FaceReference(self._lnet.look(shrink(face)), self._enet.style(face))

    # --- per frame

    def speak(self, work: Sequence[FaceWork]) -> tuple[list[Tensor], dict[str, float]]:
        """Each frame's face, speaking, and milliseconds by stage.

        Faces are (1, 3, S, S) BGR float32, S being 384 where enhanced and 96 where not; not clamped.
        """
        timer = _DeviceTimer(self.device)
        faces: list[Tensor] = []
        # The current device is each thread's own, and graphs and events go by it.
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            for start in range(0, len(work), BUCKETS[-1]):
                faces += self._speak_some(work[start : start + BUCKETS[-1]], timer)
            return faces, timer.milliseconds()

    def _speak_some(self, work: Sequence[FaceWork], timer: _DeviceTimer) -> list[Tensor]:
        timer.begin()
        low = run_bucketed(
            self._speak,
            self._spoken,
            torch.cat([one.mel for one in work]),
            self._placed(torch.cat([one.masked for one in work])),
            torch.cat([one.reference.features for one in work]),
        )
        faces = list(torch.split(low, 1))
        timer.end("lip_sync")
        fine = [index for index, one in enumerate(work) if one.noise is not None]
        if fine:
            timer.begin()
            style = torch.cat([work[index].reference.style for index in fine])
            maps = [work[index].noise or () for index in fine]
            noise = [torch.cat(list(level)) for level in zip(*maps, strict=True)]
            chosen = low if len(fine) == len(work) else low[fine]
            drawn = run_bucketed(self._enhance, self._enhanced, chosen, style, *noise)
            for index, face in zip(fine, torch.split(drawn, 1), strict=True):
                faces[index] = face
            timer.end("enhancement")
        return faces

    def _spoken(self, mel: Tensor, masked: Tensor, features: Tensor) -> Tensor:
        return self._lnet.draw(self._lnet.hear(mel), shrink(masked), features)

    def _enhanced(self, low: Tensor, style: Tensor, *noise: Tensor) -> Tensor:
        return self._enet.draw(low, style, noise)

    def _placed(self, picture: Tensor) -> Tensor:
        layout = torch.contiguous_format if self.dtype is None else torch.channels_last
        return picture.to(self.device).contiguous(memory_format=layout)


def keep_float32() -> None:
    """Have CUDA compute in float32 what is in float32: its convolutions round to TensorFloat-32 unless told.

    For the whole process, because a setting that comes and goes would reach into other threads' work.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def run_bucketed(graphs: dict[int, _Captured], plain: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """As a graph, filled up to the next batch size that was captured; plainly where nothing was."""
    count = len(inputs[0])
    if not graphs:
        return plain(*inputs)
    bucket = next(size for size in BUCKETS if size >= count)
    if bucket > count:
        inputs = tuple(torch.cat([one, one[-1:].expand(bucket - count, *one.shape[1:])]) for one in inputs)
    return graphs[bucket](*inputs)[:count]


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """A CUDA stream that waits for no other."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


def _mark() -> torch.cuda.Event:
    """A point in the current stream's work whose time can be read later."""
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


class _DeviceTimer:
    """Milliseconds that a device was at each stage; on CUDA without waiting for it before the end."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._taken: dict[str, float] = {}
        self._began = 0.0
        self._event: torch.cuda.Event | None = None

    def begin(self) -> None:
        self._began = time.perf_counter()
        if self._cuda:
            self._event = _mark()

    def end(self, stage: str) -> None:
        if self._cuda and self._event is not None:
            event = _mark()
            self._spans.append((stage, self._event, event))
        else:
            spent = 1000 * (time.perf_counter() - self._began)
            self._taken[stage] = self._taken.get(stage, 0.0) + spent

    def milliseconds(self) -> dict[str, float]:
        """By stage. On CUDA this waits for the device."""
        for stage, began, ended in self._spans:
            ended.synchronize()
            self._taken[stage] = self._taken.get(stage, 0.0) + began.elapsed_time(ended)
        return self._taken
