"""When the mouth is the voice's and when it is the source's: eased gates over the voice's activity."""

from __future__ import annotations

from dataclasses import dataclass

from retalk_models.easing import ease
from retalk_models.engine import Idle

_OPEN_S, _CLOSE_S = 0.06, 0.10
"""How long the mouth takes to join the voice, and to close after it: under 120 ms with a frame's own
length."""

_HOLD_S = 0.12
"""How long the mouth stays closed before it follows the source again: shorter pauses belong to speech."""

_CROSS_S = 0.14
"""How long going over between the voice's mouth and the source's takes."""


@dataclass(frozen=True, slots=True)
class Gates:
    """voice: 0 closed .. 1 the voice's expression. dub: 0 the source's own mouth .. 1 the dubbed one."""

    voice: float
    dub: float


class SpeakingGates:
    """Follows the voice's activity frame by frame, by time, so any frame rate gives the same easing."""

    def __init__(self, idle: Idle) -> None:
        self._idle = idle
        self._voice = 0.0
        self._dub = 1.0 if idle is Idle.REST else 0.0
        self._silent_s = _HOLD_S

    def update(self, active: bool, elapsed_s: float) -> Gates:
        """active: whether the voice is heard now or within the look-ahead. elapsed_s: since the frame
        before."""
        elapsed_s = max(0.0, elapsed_s)
        if active:
            self._silent_s = 0.0
            self._voice = min(1.0, self._voice + elapsed_s / _OPEN_S)
        else:
            self._silent_s += elapsed_s
            self._voice = max(0.0, self._voice - elapsed_s / _CLOSE_S)
        if self._idle is Idle.SOURCE:
            step = elapsed_s / _CROSS_S
            if active:
                self._dub = min(1.0, self._dub + step)
            elif self._silent_s > _HOLD_S:
                self._dub = max(0.0, self._dub - step)
        return Gates(ease(self._voice), ease(self._dub))
