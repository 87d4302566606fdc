"""The engine `videoretalking`: the official nets, live. Loading, threads, batches; frames: session.py."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from retalk_models.engine import VOICE_RATE, EngineOptions, EngineResult, EngineSession, EngineWindow
from retalk_models.restore import MouthRestorer, load_restorer
from retalk_models.store import CheckpointStore, default_folder
from retalk_models.videoretalking.files import load_nets
from retalk_models.videoretalking.mel import LOOK_AHEAD
from retalk_models.videoretalking.scenes import ReferenceMaker, Scene
from retalk_models.videoretalking.session import VideoRetalkingSession, WindowPlan, draw
from retalk_models.videoretalking.stages import BUCKETS, FaceReference, Stages, new_stream

_TRACKERS = 8
"""Most threads that track faces of different sessions at once."""


class VideoRetalkingEngine:
    """The loaded nets, shared by all sessions.

    Windows of several sessions make one batch. References are made on a thread of their own, on CUDA on a
    stream of its own; a patient session makes them in place.
    """

    def __init__(
        self, stages: Stages, weights: Mapping[str, str], restorer: MouthRestorer | None = None
    ) -> None:
        self._stages, self._weights, self._restorer = stages, dict(weights), restorer
        self._maker = ReferenceMaker(stages)
        self._aside = _Aside(self._maker, stages.device)
        self._worker = ThreadPoolExecutor(1, "retalk-references", self._aside.begin)
        threads = min(_TRACKERS, len(os.sched_getaffinity(0)))
        self._trackers = ThreadPoolExecutor(threads, "retalk-track")

    @classmethod
    def load(cls, device: str = "auto", store: CheckpointStore | None = None) -> VideoRetalkingEngine:
        """Load the official files. device: "auto", "cpu" or "cuda[:N]", which must be there.

        store: where they are; the user's model folder where None. Raises MissingCheckpointsError,
        CheckpointError or TensorFileError for files that are missing or not what they should be.
        """
        store = CheckpointStore(default_folder()) if store is None else store
        nets = load_nets(store)
        place = _chosen(device)
        cuda = place.type == "cuda"
        if cuda:
            torch.cuda.set_device(place)
        # A CPU without half-precision units is slower in half precision; rebuilt in float32 it is fastest.
        stages = Stages(nets, place, torch.float16 if cuda else torch.float32)
        if cuda:
            stages.capture()
        restorer = load_restorer(store, place)
        return cls(stages, nets.hashes | (restorer.hashes if restorer is not None else {}), restorer)

    @property
    def name(self) -> str:
        return "videoretalking"

    @property
    def device(self) -> str:
        return str(self._stages.device)

    @property
    def look_ahead_us(self) -> int:
        return -(-LOOK_AHEAD * 1_000_000 // VOICE_RATE)

    @property
    def weights(self) -> Mapping[str, str]:
        return dict(self._weights)

    @property
    def most_windows(self) -> int:
        """More than one only where a batch costs less than its windows one by one."""
        return BUCKETS[-1] if self._stages.device.type == "cuda" else 1

    def open_session(self, options: EngineOptions) -> VideoRetalkingSession:
        if options.patient:
            return VideoRetalkingSession(self._stages, self._maker, options, None, self._restorer)
        return VideoRetalkingSession(self._stages, self._aside, options, self._worker, self._restorer)

    def close(self) -> None:
        """Stop the engine's threads; what was still to be made for its sessions is not made. Idempotent."""
        for threads in (self._worker, self._trackers):
            threads.shutdown(wait=False, cancel_futures=True)

    def process_many(
        self, work: Sequence[tuple[EngineSession, EngineWindow]]
    ) -> Sequence[EngineResult | Exception]:
        """See BatchEngine. Faces are tracked side by side, then drawn in one batch."""
        plans = [_plan(work[0])] if len(work) == 1 else list(self._trackers.map(_plan, work))
        good = [plan for plan in plans if isinstance(plan, WindowPlan)]
        costs = dict(zip(map(id, good), draw(self._stages, good), strict=True))
        return [
            _finish(session, plan, costs[id(plan)]) if isinstance(plan, WindowPlan) else plan
            for (session, _), plan in zip(work, plans, strict=True)
        ]


def _plan(one: tuple[EngineSession, EngineWindow]) -> WindowPlan | Exception:
    session, window = one
    assert isinstance(session, VideoRetalkingSession)
    try:
        return session.plan(window)
    except Exception as error:  # one session's fault is not the others'
        return error


def _finish(
    session: EngineSession, plan: WindowPlan, stage_ms: Mapping[str, float]
) -> EngineResult | Exception:
    assert isinstance(session, VideoRetalkingSession)
    try:
        return session.finish(plan, stage_ms)
    except Exception as error:
        return error


def _chosen(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda:0" if device == "cuda" else device)


class _Aside:
    """Makes references beside the frames: on CUDA on a stream of its own, and done when it says so."""

    def __init__(self, maker: ReferenceMaker, device: torch.device) -> None:
        self._maker, self._device = maker, device

    def begin(self) -> None:
        """Called once on the worker's thread."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
            torch.cuda.set_stream(new_stream(self._device))

    def own(self, scene: Scene) -> FaceReference:
        return self._finished(self._maker.own(scene))

    def canonical(self, scene: Scene) -> FaceReference:
        return self._finished(self._maker.canonical(scene))

    def _finished(self, made: FaceReference) -> FaceReference:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return made
