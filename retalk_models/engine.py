"""The Engine protocol: what a face re-talker takes and gives, and the registry of engines by name."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from retalk_models.picture import F32, Box, Picture

VOICE_RATE = 16_000
"""Samples per second of the voice as engines hear it: mono float32 in -1..1."""


class Rung(IntEnum):
    """A level of the quality ladder; higher costs less."""

    FULL = 0
    NO_RESTORATION = 1
    NO_ENHANCEMENT = 2
    HALF_RATE = 3
    PASS_THROUGH = 4


class Idle(StrEnum):
    """What the mouth does while the voice is silent."""

    SOURCE = "source"
    REST = "rest"


class Template(StrEnum):
    """The expression of the canonical references, where an engine makes any."""

    NEUTRAL = "neutral"
    SMILE = "smile"


class FaceState(StrEnum):
    """What the tracker made of a frame."""

    TRACKED = "tracked"
    NONE = "none"
    SMALL = "small"
    PROFILE = "profile"
    OCCLUDED = "occluded"
    EDGE = "edge"


class Film(Hashable, Protocol):
    """A source that is there before it is shown. Equal to every other of the same pictures; picklable."""

    def pictures(self) -> Iterator[tuple[Picture, int]]:
        """Its pictures as the session will be given them, and their times in microseconds from the first."""
        ...


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What a session asks of its engine, fixed for the session's life.

    patient: there is time for everything, so the same input must give the same output: nothing is left to be
    ready when it is ready.
    person: weights adapted to the person shown, see `person_file`; for engines that have such.
    film: what the session will be shown, for engines that learn from it beforehand; None: a camera.
    """

    idle: Idle = Idle.SOURCE
    seed: int = 0
    template: Template = Template.NEUTRAL
    patient: bool = False
    person: Path | None = None
    film: Film | None = None


def person_file(video: Path) -> Path:
    """Where weights adapted to the person in a video are kept: beside it."""
    return video.with_name(video.name + ".renderer.safetensors")


def adapted(video: Path | None) -> Path | None:
    """The adapted weights beside a video, None where there are none."""
    if video is None:
        return None
    kept = person_file(video)
    return kept if kept.is_file() else None


@dataclass(frozen=True, slots=True)
class EngineFrame:
    """One source frame and the place in the voice that is heard while it is seen.

    voice_at: position, in samples at VOICE_RATE on the session's voice time line, heard at this frame.
    voice_active: whether speech is heard at this frame or will be within the engine's look-ahead.
    """

    picture: Picture
    time_us: int
    voice_at: int
    voice_active: bool


@dataclass(frozen=True, slots=True, eq=False)
class EngineWindow:
    """Consecutive frames with the voice under them and the look-ahead beyond.

    voice: (n,) float32 mono at VOICE_RATE whose first sample is at voice_start. Within an epoch each
    window's voice_start equals the previous window's voice_start + len(voice); a new epoch, or a jump,
    makes the engine restart its voice state from there. It reaches to the last frame's
    voice_at + look-ahead at least; what the source has not said by then is silence.
    """

    frames: tuple[EngineFrame, ...]
    voice: F32
    voice_start: int
    epoch: int
    rung: Rung = Rung.FULL


@dataclass(frozen=True, slots=True, eq=False)
class EngineOutput:
    """One dubbed frame.

    picture: same size as the source frame; equal to it, sample for sample, outside `region`.
    region: even-aligned rectangle that may differ, or None where the frame passed through.
    strength: 0 (source shown) .. 1 (dub shown) after presence fades.
    """

    picture: Picture
    face: FaceState
    region: Box | None
    strength: float


@dataclass(frozen=True, slots=True)
class EngineResult:
    """Outputs in the order of the window's frames, and what each stage cost.

    stage_ms: wall milliseconds per stage over the whole window, keyed by stage name.
    counts: how often what happened in the window, such as "reference_hits" and "reference_misses".
    """

    outputs: tuple[EngineOutput, ...]
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


class EngineSession(Protocol):
    """An engine's state for one session. Used by one thread at a time."""

    def process(self, window: EngineWindow) -> EngineResult:
        """Dub one window. Frames must come in order of time_us."""
        ...

    def close(self) -> None:
        """Give everything back. Idempotent."""
        ...


class Engine(Protocol):
    """A loaded face re-talker: shared weights, any number of sessions."""

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def look_ahead_us(self) -> int:
        """Voice needed beyond a frame's own time before it can be drawn, in microseconds."""
        ...

    @property
    def weights(self) -> Mapping[str, str]:
        """SHA-256 of every weight file in use, by file name."""
        ...

    def open_session(self, options: EngineOptions) -> EngineSession: ...


@runtime_checkable
class BatchEngine(Protocol):
    """What an engine may offer on top of Engine: windows of several sessions in one call, for less.

    An engine without it is called window by window.
    """

    @property
    def most_windows(self) -> int:
        """The most windows that one call takes, at least 1."""
        ...

    def process_many(
        self, work: Sequence[tuple[EngineSession, EngineWindow]]
    ) -> Sequence[EngineResult | Exception]:
        """Dub one window each of different sessions of this engine; results in the order of `work`.

        What goes wrong with one window is its place's exception. An exception that is raised (out of memory)
        means that no window was dubbed, and the state of all these sessions is lost.
        """
        ...


@runtime_checkable
class ClosingEngine(Protocol):
    """What an engine with threads of its own offers on top of Engine."""

    def close(self) -> None:
        """Stop them, after the last session. Idempotent."""
        ...


@runtime_checkable
class LanedEngine(Protocol):
    """What an engine whose sessions live in several places offers on top of Engine.

    Its sessions are LanedSessions: those of different lanes work side by side, those of one
    wait for each other.
    """

    @property
    def lanes(self) -> int:
        """How many lanes there may be, at least 1."""
        ...

    def cpu_s(self) -> float:
        """Processor seconds that it has used outside this process."""
        ...


@runtime_checkable
class LanedSession(Protocol):
    """A session of such an engine."""

    @property
    def lane(self) -> int: ...

    def abort(self) -> None:
        """End a call that does not return, from another thread, and with it all sessions of the lane."""
        ...


ENGINES = ("talkin", "videoretalking")
"""Names of the engines that there are."""


class UnknownEngineError(ValueError):
    """No engine has that name; the message lists those that exist."""


class DeviceError(ValueError):
    """There is no such device here; the message says what there is."""


class LookAheadError(ValueError):
    """The engine cannot hear so far ahead; the message says how far it can."""


def check_choice(name: str, device: str, look_ahead_ms: int | None = None) -> None:
    """Whether an engine and a device can be had, found out without loading the engine.

    Raises UnknownEngineError, DeviceError and LookAheadError, and for files that an engine lacks what
    loading it would raise.
    """
    if name not in ENGINES:
        raise UnknownEngineError(f"unknown engine {name!r}; the engines are: {', '.join(ENGINES)}")
    _check_device(device)
    _check_look_ahead(name, look_ahead_ms)
    if name == "videoretalking":
        from retalk_models.store import CheckpointStore, default_folder
        from retalk_models.videoretalking.files import FILES, PULL

        CheckpointStore(default_folder()).require(FILES, PULL)


def _check_device(device: str) -> None:
    if device in ("auto", "cpu"):
        return
    kind, colon, number = device.partition(":")
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise DeviceError(f"unknown device {device!r}; it must be auto, cpu or cuda[:N]")
    import torch

    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise DeviceError(f"device {device!r} is not there; CUDA devices found: {count}; use auto or cpu")


def _check_look_ahead(name: str, look_ahead_ms: int | None) -> None:
    if look_ahead_ms is None:
        return
    if name != "talkin":
        raise LookAheadError(f"look_ahead_ms is {look_ahead_ms}; {name} has but one, so leave it out")
    from retalk_models.talkin.net import weights_file

    try:
        weights_file(look_ahead_ms)
    except ValueError as error:
        raise LookAheadError(f"look_ahead_ms: {error}") from None


def load_engine(name: str = "talkin", device: str = "auto", look_ahead_ms: int | None = None) -> Engine:
    """Load an engine by name.

    device: "auto" (CUDA where there is one), "cpu" or "cuda[:N]". look_ahead_ms: how much of the voice beyond
    a frame it waits for, where it can be chosen; None: the engine's own.
    Raises UnknownEngineError for an unknown name, DeviceError for a device that is not there and
    LookAheadError for a look-ahead that cannot be had; for files that are missing or not what they should
    be, CheckpointError or TensorFileError.
    """
    if name not in ENGINES:
        raise UnknownEngineError(f"unknown engine {name!r}; the engines are: {', '.join(ENGINES)}")
    _check_device(device)
    _check_look_ahead(name, look_ahead_ms)
    if name == "videoretalking":
        from retalk_models.videoretalking.engine import VideoRetalkingEngine

        return VideoRetalkingEngine.load(device)
    from retalk_models.talkin.engine import TalkinEngine

    return TalkinEngine.load(device, look_ahead_ms=look_ahead_ms)
