"""The embedded engine: tracks the face, speaks the voice onto it, and puts it back. Flow only."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import copy
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from retalk_models.engine import (
    VOICE_RATE,
    EngineFrame,
    EngineOptions,
    EngineOutput,
    EngineResult,
    EngineWindow,
    Rung,
)
from retalk_models.face.composite import composite
from retalk_models.face.speaking import SpeakingGates
from retalk_models.face.timing import FrameSteps, StageClock
from retalk_models.face.watch import FaceWatch, Sighting
from retalk_models.hearing import speech_encoder
from retalk_models.picture import F32, Picture
from retalk_models.talkin.basis import WEIGHTS_FILE as BASIS_FILE
from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.choice import AHEAD
from retalk_models.talkin.enhance import (
    RENDERER_FILE,
    Enhancement,
    NetRenderer,
    Renderer,
    hold_to_one_thread,
)
from retalk_models.talkin.net import LOOK_AHEADS_MS, Expression, SpeechToExpression, weights_file
from retalk_models.talkin.own_mouth import OwnMouth
from retalk_models.talkin.render import Drawing, draw, face_width, teeth_plane
from retalk_models.talkin.stage_cost import milliseconds
from retalk_models.talkin.study import Learnt, Studies

logger = logging.getLogger(__name__)

_VISIBLE = 0.004
"""A dub weaker than this cannot be seen, so the frame is left alone."""

_LIVE_MS = 8.0
"""What the whole enhancement of a frame may take where frames come live. Where it takes more, everything else
does too, and at 1920x1080 all together comes near the whole of a frame's time: sessions would keep falling to
the rung without it and climbing back, which is seen more than its absence."""

_DETAILED = (420.0, 480.0)
"""Face width in pixels: below the first a live face is sampled sharply, above the second linearly, in half of
the time. A film whose moving part is 550 wide is then as sharp as its source, one of 360 a tenth less."""

_STAGES = ("track", "expression", "render", "composite", "enhance")


class ExpressionStream(Protocol):
    """A voice being heard; see net.ExpressionStream."""

    def push(self, pcm: F32) -> None: ...

    def at(self, position: int) -> Expression: ...

    def restart(self, position: int) -> None: ...


class Speech(Protocol):
    """What opens such streams; see net.SpeechToExpression."""

    def open_stream(self) -> ExpressionStream: ...


class TalkinEngine:
    """The loaded weights, shared by all sessions.

    renderer: the rendering net; without it a dub is the warp alone. live: whether it also runs in sessions
    that cannot wait. look_ahead: samples of voice that speech needs beyond a position.
    """

    def __init__(
        self,
        speech: Speech,
        basis: ExpressionBasis,
        weights: Mapping[str, str],
        renderer: Renderer | None = None,
        device: str = "cpu",
        live: bool = True,
        look_ahead: int = 0,
    ) -> None:
        self._look_ahead = look_ahead
        self._speech, self._weights = speech, dict(weights)
        self._live, self._studies = live, Studies(basis)
        self._renderer, self._device = renderer, device

    @classmethod
    def load(
        cls,
        device: str = "auto",
        rendered: bool | None = None,
        renderer: Path | None = None,
        look_ahead_ms: int | None = None,
    ) -> TalkinEngine:
        """Load the bundled weights.

        device: "auto", "cpu" or "cuda[:N]", of the rendering net; "auto" is CUDA where there is one. All else
        is so small that the processor is the fastest place for it.
        rendered: whether the rendering net has a say in what is shown; None: wherever there is time for it,
        live only if this device is fast enough. renderer: its weights, in place of the bundled ones.
        look_ahead_ms: one of net.LOOK_AHEADS_MS; None: the first.
        Raises ValueError for a device or a look-ahead that there is not, WeightsError for weights that are
        damaged, SpeechEncoderError without the encoder that they hear with.
        """
        place = _check_device(device)
        heard_ms = LOOK_AHEADS_MS[0] if look_ahead_ms is None else look_ahead_ms
        speech, basis = SpeechToExpression.load(look_ahead_ms=heard_ms), ExpressionBasis.load()
        net_file = weights_file(heard_ms)
        if speech.size != basis.size:
            raise ValueError(f"{net_file} speaks {speech.size} coefficients, {BASIS_FILE} draws {basis.size}")
        names = (
            (BASIS_FILE, net_file)
            if rendered is False or renderer is not None
            else (BASIS_FILE, net_file, RENDERER_FILE)
        )
        folder = files("retalk_models").joinpath("weights")
        hashes = {name: sha256(folder.joinpath(name).read_bytes()).hexdigest() for name in names}
        hashes["moonshine-voice/tiny-en"] = speech_encoder().digest
        hold_to_one_thread()
        if rendered is False:
            return cls(speech, basis, hashes, look_ahead=speech.look_ahead)
        net = NetRenderer(place, renderer)
        live = rendered is True or milliseconds(net, basis) <= _LIVE_MS
        return cls(speech, basis, hashes, net, place, live, speech.look_ahead)

    @property
    def name(self) -> str:
        return "talkin"

    @property
    def device(self) -> str:
        return self._device

    @property
    def look_ahead_us(self) -> int:
        return self._look_ahead * 1_000_000 // VOICE_RATE

    @property
    def weights(self) -> Mapping[str, str]:
        return dict(self._weights)

    def with_speech(self, speech: Speech) -> TalkinEngine:
        """This engine with its mouth moved by something else than the bundled net, as for a baseline."""
        other = copy(self)
        other._speech = speech
        return other

    def open_session(self, options: EngineOptions) -> TalkinSession:
        renderer = self._renderer if self._live or options.patient else None
        if renderer is not None and options.person is not None:
            try:
                renderer = NetRenderer(self._device, options.person)
            except (ValueError, OSError) as error:
                logger.warning("%s; the shipped rendering net is used, or adapt anew", error)
        learnt = self._studies.of(options.film, options.patient)
        return TalkinSession(self._speech.open_stream(), learnt, options, renderer)


def _check_device(device: str) -> str:
    """The device's name as torch takes it."""
    if device == "cpu":
        return device
    if device == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, number = device.partition(":")
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise ValueError(f"unknown device {device!r}; it must be auto, cpu or cuda[:N]")
    import torch

    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise ValueError(f"device {device!r} is not there; CUDA devices found: {count}; use auto or cpu")
    return device


class TalkinSession:
    """One session's face, voice and references. Used by one thread at a time."""

    def __init__(
        self,
        stream: ExpressionStream,
        learnt: Learnt,
        options: EngineOptions,
        renderer: Renderer | None = None,
    ) -> None:
        self._stream = stream
        self._geometry, self._references = learnt.geometry, learnt.references
        self._own = OwnMouth()
        self._enhancement = Enhancement(renderer, learnt.views) if renderer is not None else None
        # Live, frames were shown before the first that gets here, and a dub at once would be a jump.
        awaited = options.patient and self._geometry.neutral is not None
        self._watch = FaceWatch(self._geometry, self._forget, awaited)
        self._gates = SpeakingGates(options.idle)
        self._epoch: int | None = None
        self._heard_until = 0
        self._steps = FrameSteps()
        self._count = 0
        self._drawing: Drawing | None = None
        self._patient, self._detailed = options.patient, True
        self._ear = ThreadPoolExecutor(1, thread_name_prefix="talkin-hearing")
        self._closed = False

    def process(self, window: EngineWindow) -> EngineResult:
        """See EngineSession. Raises ValueError once closed."""
        if self._closed:
            raise ValueError("this engine session is closed")
        clock = StageClock(_STAGES)
        # Beside tracking, which needs no interpreter for most of its time either.
        heard = self._ear.submit(self._hear, window)
        try:
            outputs = tuple(self._dub(frame, window.rung, clock, heard) for frame in window.frames)
        finally:
            wait((heard,))
        heard.result()
        return EngineResult(outputs, clock.milliseconds, self._references.take_use().counts())

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            try:
                self._watch.close()
                self._forget()
                self._drawing = None
            finally:
                self._ear.shutdown()

    def _forget(self) -> None:
        self._references.reset()
        self._own.rest()
        if self._enhancement is not None:
            self._enhancement.reset()

    def _hear(self, window: EngineWindow) -> None:
        if window.epoch != self._epoch or window.voice_start != self._heard_until:
            self._stream.restart(window.voice_start)
        # A stream that failed half-way begins anew.
        self._epoch = None
        self._stream.push(window.voice)
        self._epoch, self._heard_until = window.epoch, window.voice_start + len(window.voice)

    def _dub(self, frame: EngineFrame, rung: Rung, clock: StageClock, heard: Future[None]) -> EngineOutput:
        elapsed_s = self._steps.step_s(frame.time_us)
        self._count += 1
        gates = self._gates.update(frame.voice_active, elapsed_s)
        if rung >= Rung.PASS_THROUGH:
            self._drawing = None
            self._own.rest()
            return EngineOutput(frame.picture, self._watch.skip(), None, 0.0)

        with clock.stage("track"):
            sighting, drawing = self._see(frame, rung, elapsed_s)
        with clock.stage("expression"):
            heard.result()
            spoken = self._geometry.bounded(self._stream.at(frame.voice_at).coefficients)
        strength = sighting.strength * gates.dub
        with clock.stage("render"):
            if drawing is None:
                self._references.foresee(self._foreseen(frame, gates.voice, elapsed_s))
                drawing = self._draw(frame, sighting, spoken, gates.voice, strength, rung, elapsed_s)
            self._drawing = drawing
        if drawing is None:
            return EngineOutput(frame.picture, sighting.state, None, 0.0)
        with clock.stage("composite"):
            fine = rung < Rung.NO_ENHANCEMENT and self._is_detailed(sighting)
            picture = composite(frame.picture, drawing.field, drawing.mouth, drawing.opacity, fine)
        if self._enhancement is not None:
            with clock.stage("enhance"):
                self._enhance(self._enhancement, frame.picture, picture, sighting, drawing, rung)
        return EngineOutput(picture, sighting.state, drawing.field.box, strength)

    def _is_detailed(self, sighting: Sighting) -> bool:
        """Whether the face has detail of a sample's size, as far as anybody has time for it."""
        if sighting.face is not None and not self._patient:
            self._detailed = face_width(sighting.face.points) < _DETAILED[1 if self._detailed else 0]
        return self._detailed

    def _enhance(
        self,
        enhancement: Enhancement,
        own: Picture,
        dubbed: Picture,
        sighting: Sighting,
        drawing: Drawing,
        rung: Rung,
    ) -> None:
        face, neutral, target = sighting.face, self._geometry.neutral, drawing.target
        if rung >= Rung.NO_ENHANCEMENT or face is None or neutral is None or target is None:
            enhancement.pause()
            return
        enhancement(own, dubbed, face, target, neutral, drawing.field, drawing.opacity)

    def _foreseen(self, frame: EngineFrame, voice: float, elapsed_s: float) -> list[float]:
        """Apertures that the voice will ask for in the next frames, as far as it is known by now."""
        step = round(elapsed_s * VOICE_RATE)
        places = (frame.voice_at + (k + 1) * step for k in range(AHEAD))
        return [voice * float(self._geometry.bounded(self._stream.at(at).coefficients)[0]) for at in places]

    def _see(self, frame: EngineFrame, rung: Rung, elapsed_s: float) -> tuple[Sighting, Drawing | None]:
        """What is known of the face, and the last drawing moved along where this frame is to reuse it."""
        if rung is Rung.HALF_RATE and self._count % 2 and self._drawing is not None:
            followed = self._watch.follow(frame.picture)
            if followed is not None:
                size = (frame.picture.padded_width, frame.picture.padded_height)
                return followed[0], self._drawing.shifted(followed[1], size)
        return self._watch.look(frame.picture, elapsed_s), None

    def _draw(
        self,
        frame: EngineFrame,
        sighting: Sighting,
        spoken: F32,
        voice: float,
        strength: float,
        rung: Rung,
        elapsed_s: float,
    ) -> Drawing | None:
        face, light, neutral = sighting.face, sighting.light, self._geometry.neutral
        if face is None or light is None or neutral is None:
            self._own.rest()
            return None
        if sighting.tracked:
            plane = teeth_plane(face, neutral)
            self._references.observe(frame.picture, face, neutral, plane, light, elapsed_s)
            if self._enhancement is not None:
                self._enhancement.observe(frame.picture, face, neutral, elapsed_s)
        fine = rung < Rung.NO_ENHANCEMENT
        if strength < _VISIBLE:
            self._own.rest()
            return None
        target = self._geometry.target(face, spoken, strength, voice)
        own, looks, kept = self._own, sighting.tracked and fine, self._references
        return draw(frame.picture, face, target, neutral, light, kept, own, looks, strength, elapsed_s, fine)
