"""Mouths moved by something else than the net: a level meter, and what was recorded."""

from __future__ import annotations

import numpy as np
import pytest

from retalk_models.engine import VOICE_RATE
from retalk_models.evaluation.series import pearson
from retalk_models.evaluation.told import LoudnessSpeech, RecordedSpeech
from tests.retalk_models.evaluation.synthetic import BASIS, FPS, faces, opening, sound


def test_a_loudness_mouth_opens_with_the_level_alone() -> None:
    apertures = opening(6.0, 4)
    heard = sound(apertures)
    loud = LoudnessSpeech(BASIS.size).open_stream()
    said = []
    for index in range(len(apertures) - 4):
        loud.push(heard[index * 640 : (index + 1) * 640])
        if index >= 4:
            said.append(loud.at((index - 3) * 640).coefficients)
    values = np.stack(said)
    assert (values[:, 1:] == 0).all()
    assert values[:, 0].min() >= 0
    assert 0.05 < values[:, 0].max() < 0.15
    assert pearson(values[:, 0].astype(np.float64), apertures[1 : len(values) + 1]) > 0.4


def test_a_loudness_mouth_is_shut_in_silence_and_after_a_restart() -> None:
    loud = LoudnessSpeech(BASIS.size).open_stream()
    loud.push(np.zeros(VOICE_RATE, np.float32))
    assert loud.at(8000).coefficients[0] == 0
    loud.push(0.3 * np.ones(VOICE_RATE, np.float32))
    assert loud.at(24_000).coefficients[0] > 0.05
    loud.restart(100_000)
    assert loud.at(100_000).coefficients[0] == 0


def test_a_loudness_mouth_forgets_and_still_answers() -> None:
    loud = LoudnessSpeech(BASIS.size).open_stream()
    for _ in range(30):
        loud.push(0.3 * np.ones(VOICE_RATE, np.float32))
    assert loud.at(30 * VOICE_RATE - 800).coefficients[0] > 0.05


def test_what_was_recorded_is_repeated() -> None:
    apertures = opening(4.0, 5)
    seconds = np.arange(len(apertures)) / FPS
    told = RecordedSpeech.of(faces(apertures), seconds, BASIS)
    stream = told.open_stream()
    stream.push(np.zeros(640, np.float32))
    got = np.array([stream.at(round(t * VOICE_RATE)).coefficients[0] for t in seconds])
    assert pearson(got.astype(np.float64), apertures) > 0.99
    assert abs(got - apertures).max() < 0.02


def test_no_face_is_nothing_to_repeat() -> None:
    with pytest.raises(ValueError, match="no face"):
        RecordedSpeech.of(np.full((3, 478, 3), np.nan, np.float32), np.arange(3) / FPS, BASIS)
