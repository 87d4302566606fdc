"""The inside of the frame's own mouth, shown in a dub that is about as far open.

No kept picture is so like this frame's light, focus and motion, and none but this one is new: the same teeth
coming back at every syllable tell a dub. Where the source's mouth is shut, narrow or far wider, it has
nothing to show, and the kept one takes over.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from retalk_models.easing import ease_between, settled
from retalk_models.face.geometry import ObservedFace
from retalk_models.picture import F32, Picture
from retalk_models.talkin.mouth_texture import MouthTexture, Opening, TeethPlane, cut_texture
from retalk_models.talkin.target import TargetFace

_OPEN = (0.03, 0.05)
"""Aperture (canonical units) from which on it has something to show, and all that it has."""

_REACHES = (0.6, 0.85)
"""The same of its height over the dub's: what it lacks would be drawn depth."""

_EXCEEDS = (1.6, 2.4)
"""How much higher it may be for all of it to be shown, and for none."""

_WIDE = (0.8, 0.92)
"""As `_REACHES`, of the widths: teeth do not stretch."""

_APART = (0.01, 0.03)
"""How much farther apart than they were (plane units) what stays with the skull and what rides on the jaw may
be drawn, or there is a bar between them; and how much nearer where rows of teeth meet, or they have a second
edge."""

_SETTLE_S = 0.05
"""How fast one gives way to the other: it is to be no cut, and a mouth shuts in a tenth of a second."""

_TAKEN = (0.3, 0.55)
"""How well it has to fit for it to stay, and to come."""

_MIXED = (0.2, 0.8)
"""Shares of the way between which both are seen at once."""

_ROW_S = 0.4
"""The same of the row that parts what stays with the skull from what rides on the jaw: in an even depth the
darkest one is anywhere."""


class OwnMouth:
    """Says how much of the frame's own mouth is shown. Not thread-safe."""

    def __init__(self) -> None:
        self.rest()

    def rest(self) -> None:
        """Show none from now on, until it is looked at again."""
        self._share, self._shown = 0.0, False
        self._texture: MouthTexture | None = None

    def look(
        self,
        picture: Picture,
        face: ObservedFace,
        target: TargetFace,
        plane: TeethPlane,
        light: F32,
        elapsed_s: float,
    ) -> tuple[MouthTexture, float] | None:
        """The frame's own inside of the mouth and how much of it is to be shown, up to 1; None for nothing.

        Where it no longer fits, the last that did fades. plane: where the teeth stand. light: (4,) as in
        MouthTexture.
        """
        fit, texture = self._fit(picture, face, target, plane, light)
        self._shown = texture is not None and fit >= _TAKEN[0 if self._shown else 1]
        if texture is not None and self._shown:
            self._texture = self._steadied(texture, elapsed_s)
        return self._eased(elapsed_s)

    def fade(self, elapsed_s: float) -> tuple[MouthTexture, float] | None:
        """What is left to show of the last that was looked at, where this frame's cannot be."""
        self._shown = False
        return self._eased(elapsed_s)

    def _eased(self, elapsed_s: float) -> tuple[MouthTexture, float] | None:
        self._share += settled(elapsed_s, _SETTLE_S) * (float(self._shown) - self._share)
        share = ease_between(self._share, *_MIXED)
        if share <= 0 and not self._shown:
            self.rest()
        return (self._texture, share) if self._texture is not None and share > 0 else None

    def _steadied(self, texture: MouthTexture, elapsed_s: float) -> MouthTexture:
        """A picture with its split eased from that of the one before."""
        if self._texture is None:
            return texture
        last = self._texture.split
        split = last + settled(elapsed_s, _ROW_S) * (texture.split - last)
        middle = slice(4, 7)
        top = float(texture.opening.upper[middle, 1].mean())
        bottom = float(texture.opening.lower[middle, 1].mean())
        return replace(texture, split=float(np.clip(split, top, max(top, bottom))))

    def _fit(
        self, picture: Picture, face: ObservedFace, target: TargetFace, plane: TeethPlane, light: F32
    ) -> tuple[float, MouthTexture | None]:
        """How well this frame's mouth fits, 0..1, and its pixels, where it fits at all."""
        if face.opening < _OPEN[0]:
            return 0.0, None
        mine, asked = Opening.of(face.points, plane), Opening.of(target.target, plane)
        higher = face.opening / max(1e-3, target.opening)
        wider = (mine.right - mine.left) / max(1e-3, asked.right - asked.left)
        fit = (
            ease_between(face.opening, *_OPEN) * ease_between(higher, *_REACHES) * ease_between(wider, *_WIDE)
        )
        fit *= 1 - ease_between(higher, *_EXCEEDS)
        lift = min(0.0, float((asked.upper - mine.upper)[4:7, 1].mean()))
        apart = float((asked.lower - mine.lower)[4:7, 1].mean()) - lift
        fit *= 1 - ease_between(apart, *_APART)
        # Often nothing of it will be seen: a look at its pixels takes far longer.
        texture = cut_texture(picture, face.points, plane, light) if fit >= _TAKEN[0] else None
        if texture is None:
            return 0.0, None
        return fit * (1 - (1 - texture.depth) * ease_between(-apart, *_APART)), texture
