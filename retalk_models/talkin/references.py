"""Which picture of the inside of the mouth to use: gathers good ones from the source, keeps the choice
steady."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np

from retalk_models.face.geometry import MOUTH_CORNERS, ObservedFace, Pose, template
from retalk_models.picture import F32, Picture
from retalk_models.pose_cache import CacheUse, PoseCache, Reference, turned_away
from retalk_models.talkin.cavity import draw_cavity
from retalk_models.talkin.choice import SHUT, ReferenceChoice
from retalk_models.talkin.inner_light import InnerLight
from retalk_models.talkin.motion import MouthMotion
from retalk_models.talkin.mouth_texture import MouthTexture, Opening, TeethPlane, cut_texture
from retalk_models.talkin.mouths import Look, Mouths, SeenMouth, best_quality

_OPEN_ENOUGH = 0.045
"""Aperture (canonical units) from which a frame may serve as a reference."""

_PUCKERED = 0.8
"""A mouth narrower than this share of the same mouth at rest is no reference: between its corners lies lip,
as they are tracked. (Of the open mouths in the training clips one in twenty is as narrow.)"""

_USUAL = (0.9, 1.1)
"""How wide a mouth at rest is taken to be at least and at most, of the mean face's: who has only said oh has
shown none, and who has only smiled neither."""

_GOOD_ENOUGH = 0.58
"""A reference of lower quality looks worse than a drawn mouth."""

_CLEAR = 0.6
"""How clear a mouth must be to be kept as the wide one."""

_PAUSE_S = 0.1
"""How long no mouth is looked at after one that was no better than those held: as a rule the next is not."""

_CROSS_S = 0.12
"""A change of reference takes three frames at 25 a second."""

_PATIENCE_S = 0.8
"""How long a drawn mouth may stay once a real one is known, while the lips do not close."""

_OUTGROWN = 0.45
"""From how much better a reference a change may be seen."""

_UNSEEN = 2.0
"""What drawing lips farther apart than a reference's own costs, per canonical unit."""

_CRUSHED = 3.0
"""What drawing rows of teeth that meet over each other costs, per canonical unit of it."""

_LIGHT = 0.002
"""What another light than the frame's costs, per level of luma."""


class MouthReferences:
    """One person's insides of the mouth. Not thread-safe."""

    def __init__(self) -> None:
        self._cache: PoseCache[Mouths] = PoseCache()
        self._choice: ReferenceChoice[Mouths] = ReferenceChoice(_look)
        self._inner = InnerLight()
        self.reset()

    def reset(self) -> None:
        """Forget the person."""
        self._cache.clear()
        self._choice.reset()
        self._inner.reset()
        self._ahead: tuple[float, ...] = ()
        self._drawn: Mouths | None = None
        self._before: Mouths | None = None
        self._crossed = 1.0
        self._waited = self._pause_s = 0.0
        self._motion = MouthMotion()

    def copy(self) -> MouthReferences:
        """The same references, none of them chosen yet."""
        other = MouthReferences()
        other._cache = self._cache.copy()
        other._inner = self._inner.copy()
        return other

    @property
    def count(self) -> int:
        """References of the person's own held now."""
        return len(self._cache)

    def take_use(self) -> CacheUse:
        """How often a pose's own reference was there since this was last asked."""
        return self._cache.take_use()

    def observe(
        self,
        picture: Picture,
        face: ObservedFace,
        neutral: F32,
        plane: TeethPlane,
        light: F32,
        elapsed_s: float,
    ) -> None:
        """Learn how light the mouth is inside where it is hardly open, and keep this one if it is a good one.

        neutral: (478, 3) the person's canonical shape with lips at rest.
        """
        blur = self._motion.blur(face, elapsed_s)
        self._pause_s -= elapsed_s
        if turned_away(face.pose.yaw, face.pose.pitch):
            return
        self._inner.observe(picture, face, light)
        if self._pause_s > 0 or face.opening < _OPEN_ENOUGH:
            return
        if _width(face.shape) < _PUCKERED * _rest_width(neutral):
            return
        yaw, pitch = face.pose.yaw, face.pose.pitch
        held = self._cache.at(yaw, pitch)
        wider = held is not None and held.item.wants(face.opening, 1 - blur)
        possible = best_quality(face.opening) - blur
        if not wider and not self._cache.wants(yaw, pitch, possible):
            return
        texture = cut_texture(picture, face.points, plane, light)
        if texture is None:
            return
        look = Look.of(texture)
        quality = look.quality(face.opening) - blur
        mouth = SeenMouth(texture, face.opening, look.clarity - blur)
        if quality > _GOOD_ENOUGH and self._cache.wants(yaw, pitch, quality):
            item = Mouths(mouth) if held is None else held.item.bettered(mouth)
            self._cache.add(Reference(item, yaw, pitch, quality))
        elif (
            held is not None
            and mouth.clarity > _CLEAR
            and held.item.wants(mouth.opening, mouth.clarity, look.depth)
        ):
            item = held.item.widened(mouth)
            self._cache.add(Reference(item, held.yaw, held.pitch, held.quality))
        elif self.count:
            self._pause_s = _PAUSE_S

    def choose(
        self,
        pose: Pose,
        opening: float,
        lip_line: Opening,
        light: F32,
        lips: Callable[[], F32],
        elapsed_s: float,
    ) -> tuple[tuple[MouthTexture, float], ...]:
        """Textures with weights that sum to 1: one, or two where the opening is between theirs, or while one
        gives way to another.

        opening: the target's aperture. lip_line: the neutral mouth's opening. light, lips: of the skin and of
        the lips in this frame, as for `dark_of`; of the latter only the first frames ask.
        """
        nearest = self._cache.seek(pose.yaw, pose.pitch, self._choice.current)
        if self._crossed >= 1:
            shown = self._choice.current
            if opening <= SHUT:
                self._take_on_more()
            current = self._choice.current
            if nearest is not None and self._may_begin(current, opening, elapsed_s):
                seen = 0.0 if self._outgrown(current, nearest, pose) else opening
                cost = partial(_cost, yaw=pose.yaw, pitch=pose.pitch, luma=float(light[0]))
                current = self._choice.choose(self._cache.held(), cost, (seen, *self._ahead))
            if current is not shown:
                # Even shut: the line between the lips is as dark as the mouth behind them, and would leap.
                self._before = self._drawn if shown is None else shown.item
                self._crossed = 0.0 if self._before is not None else 1.0
        current = self._choice.current
        if current is None:
            if self._drawn is None:
                self._drawn = Mouths(SeenMouth(draw_cavity(lip_line, light, lips()), 0.0, 0.0))
            return self._drawn.at(opening)
        if self._before is None or self._crossed >= 1:
            return current.item.at(opening)
        share = self._crossed = min(1.0, self._crossed + elapsed_s / _CROSS_S)
        # Two at most, or a cross-fade would draw four mouths.
        before, now = (
            max(one.at(opening), key=lambda part: part[1])[0] for one in (self._before, current.item)
        )
        return ((before, 1 - share), (now, share))

    def luma_at(self, opening: float) -> tuple[float, float]:
        """How light the person's mouth is inside, so far open, and how sure that is; as of `InnerLight`."""
        return self._inner.at(opening)

    def foresee(self, openings: Sequence[float]) -> None:
        """Apertures expected of the frames after the one that `choose` is asked for next."""
        self._ahead = tuple(openings)

    def _take_on_more(self) -> None:
        """Let the mouths in use be what has become of them since: a wide or a better one has come to them."""
        current = self._choice.current
        if current is not None:
            grown = self._cache.at(current.yaw, current.pitch)
            if grown is not None:
                self._choice.renew(grown)

    def _may_begin(self, current: Reference[Mouths] | None, opening: float, elapsed_s: float) -> bool:
        """Whether a drawn mouth may give way to a real one."""
        if current is not None or self._drawn is None or opening <= SHUT:
            return True
        self._waited += elapsed_s
        return self._waited > _PATIENCE_S

    def _outgrown(self, current: Reference[Mouths] | None, nearest: Reference[Mouths], pose: Pose) -> bool:
        """Whether the head has turned so far that the mouth in use looks worse than a change in full view."""
        if current is None:
            return False
        fit = self._cache.fitness
        return fit(nearest, pose.yaw, pose.pitch) - fit(current, pose.yaw, pose.pitch) > _OUTGROWN


def _cost(reference: Reference[Mouths], opening: float, yaw: float, pitch: float, luma: float) -> float:
    """What drawing an aperture from a reference costs at one frame, about 0..1."""
    fit = PoseCache.fitness(reference, yaw, pitch)
    unseen = max(0.0, opening - reference.item.height)
    crushed = reference.item.crushed(opening) if opening > SHUT else 0.0
    other_light = abs(luma - reference.item.light)
    return 1 - fit + _UNSEEN * unseen + _CRUSHED * crushed + _LIGHT * other_light


def _look(mouths: Mouths) -> F32:
    return texture_look(mouths.best.texture)


def texture_look(texture: MouthTexture) -> F32:
    """(60,) luma over the skin's inside a mouth, from corner to corner and from lip to lip."""
    opening = texture.opening
    across = np.linspace(opening.left, opening.right, 12)[1:-1]
    top, bottom = np.interp(across, *opening.upper.T), np.interp(across, *opening.lower.T)
    share = np.linspace(0.1, 0.9, 6)[:, None]
    places = np.stack([np.broadcast_to(across, (6, 10)), top + share * (bottom - top)], axis=-1)
    at = texture.plane.to_pixels(np.asarray(places, np.float32)) - np.array(texture.corner, np.float32)
    seen = cv2.remap(texture.y, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return texture.over_skin(seen).reshape(-1)


def _width(shape: F32) -> float:
    left, right = MOUTH_CORNERS
    return float(shape[right, 0] - shape[left, 0])


def _rest_width(neutral: F32) -> float:
    least, most = (share * _width(template()) for share in _USUAL)
    return min(most, max(least, _width(neutral)))
