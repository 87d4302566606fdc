"""The renderer alone: a clip's own expression drawn back onto its earlier frames."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from retalk_models.engine import VOICE_RATE, Engine, EngineFrame, EngineOptions, EngineWindow, Idle
from retalk_models.evaluation.pictures import crop_unit, likeness
from retalk_models.evaluation.told import RecordedSpeech
from retalk_models.face.geometry import fit_pose
from retalk_models.picture import F32, Picture
from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.engine import Speech
from stream.evaluate.material import Subject, pictures

_BEHIND_S = 0.24
_WARM_UP_S = 1.0
_MOST_TURN = 0.06
"""Radians that the head may turn meanwhile: a turn is nothing that a mouth could undo."""


@runtime_checkable
class SpeechDriven(Protocol):
    """An engine whose mouth can be moved by something else than sound."""

    def with_speech(self, speech: Speech) -> Engine: ...


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Means over frames, in the mouth's mask: of what was drawn, and of the earlier frame left as it was.

    psnr, undone_psnr: dB. ssim, undone_ssim: up to 1. frames: compared; no more than 0.06 rad turned
    meanwhile.
    """

    frames: int
    psnr: float
    ssim: float
    undone_psnr: float
    undone_ssim: float


def rebuild(engine: SpeechDriven, subject: Subject) -> Rebuilt:
    """Show the engine each frame 240 ms late with the expression of now, and compare with the frame of now.

    So the mouth that it is given is never the one that it must draw, and no other person's truth is needed.
    """
    points, seconds = subject.tracked.points, subject.tracked.seconds
    speech = RecordedSpeech.of(points, seconds, ExpressionBasis.load())
    told = engine.with_speech(speech)
    session = told.open_session(EngineOptions(idle=Idle.REST, patient=True))
    reach = told.look_ahead_us * VOICE_RATE // 1_000_000
    step = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 0.04
    behind = max(1, round(_BEHIND_S / step))
    unit = crop_unit(points)
    held: deque[Picture] = deque(maxlen=behind + 1)
    heard = 0
    scores: list[tuple[float, float, float, float]] = []
    try:
        for index, (second, picture) in enumerate(pictures(subject.clip.path)):
            held.append(picture)
            if index < behind or index >= len(points):
                continue
            earlier, at = held[0], round(second * VOICE_RATE)
            voice = np.zeros(max(0, at + reach - heard), np.float32)
            frame = EngineFrame(earlier, round(second * 1e6), at, True)
            drawn = session.process(EngineWindow((frame,), voice, heard, 0)).outputs[0].picture
            heard += len(voice)
            then, now = points[index - behind], points[index]
            if second < _WARM_UP_S or not np.isfinite([then[0, 0], now[0, 0]]).all() or _turn(then, now):
                continue
            true = (picture, now)
            scores.append((*likeness((drawn, then), true, unit), *likeness((earlier, then), true, unit)))
    finally:
        session.close()
    if not scores:
        return Rebuilt(0, *[float("nan")] * 4)
    return Rebuilt(len(scores), *(float(value) for value in np.mean(scores, axis=0)))


def _turn(then: F32, now: F32) -> bool:
    one, two = fit_pose(then), fit_pose(now)
    return max(abs(one.yaw - two.yaw), abs(one.pitch - two.pitch)) > _MOST_TURN
