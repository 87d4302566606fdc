"""Training samples for the rendering net, drawn as a live frame is drawn, but with points as tracked.

A live frame has the skin under a wide mouth unfolded, and no inside from a puckered one.

What a live dub starts from, the frame's own face, would be the answer here. Another frame stands in for it:
a neighbour 2 to 10 frames away, which has the frame's light, or one whose mouth does something else, as the
face of who is dubbed does. Samples come in pairs of consecutive frames with the same stand-in distance and
references, so that flicker can be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from retalk_models.face.align import mouth_light
from retalk_models.face.composite import composite
from retalk_models.face.geometry import INNER_LIPS, OUTER_LIPS
from retalk_models.face.tracker import TrackedFace
from retalk_models.face.warp import warp_field
from retalk_models.picture import F32, U8, Box, Picture
from retalk_models.talkin.cavity import draw_cavity
from retalk_models.talkin.crop_corpus import CROP_SIDE, CropClip, jittered, shifted_pose
from retalk_models.talkin.mouth import draw_mouth
from retalk_models.talkin.mouth_crop import (
    SIDE,
    crop_of,
    cut_crop,
    lips_mask,
    look,
    outlines,
    reach_mask,
    tone_shift,
    warp_places,
)
from retalk_models.talkin.mouth_texture import TEETH_DEPTH, MouthTexture, Opening, TeethPlane, cut_texture
from retalk_models.talkin.mouth_tone import lip_colour
from retalk_models.talkin.mouths import Look
from retalk_models.talkin.render import face_width
from retalk_models.talkin.views import kind_of, pose_distance, served_by

_NEAREST, _FARTHEST = 2, 10
_APART = 10
"""References are at least so many frames away from what they help to draw."""

_STRANGE = 0.5
"""Share of pairs whose stand-in's mouth does something else."""

_UNLIKE = 0.03
"""Apertures (canonical units) so far apart are different mouths."""

_TURNED = 0.15
"""Radians of yaw beyond which a frame does not stand in for another."""

_TRIES = 5000
"""Times that a pair is looked for; in a clip with a face in every frame nine of ten are found at once."""

_TEXTURES = 6
_VIEWS = 4
"""Frames of which the nearest in pose becomes the second view, as a session chooses among what it keeps."""

_LARGE_MOUTH, _LARGE_WEIGHT = 60.0, 3.0
_FLESH = (0.14, 0.26)
"""As target.py draws lips in: a share of their thickness, for shut and for open lips."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One frame: pictures (SIDE, SIDE, 3) uint8, reach and lips (SIDE, SIDE) uint8."""

    context: U8
    first: U8
    second: U8
    drawn: U8
    reach: U8
    lips: U8

    @property
    def truth(self) -> U8:
        """The frame itself: the net sees it blanked."""
        return self.context


@dataclass(frozen=True, slots=True)
class _Choice:
    away: int
    texture: int
    second: int
    shift: tuple[float, float]
    grown: float
    jitter: float


class ClipSampler:
    """Draws one clip's samples."""

    def __init__(self, clip: CropClip) -> None:
        self.clip = clip
        self._place = {int(number): index for index, number in enumerate(clip.numbers)}
        self._depth = float(clip.neutral[[13, 14], 2].mean()) + TEETH_DEPTH
        self._textures = self._good_textures()
        self._kinds = [kind_of(float(opening)) for opening in clip.openings]
        self._open = np.flatnonzero(clip.openings >= max(0.04, float(np.quantile(clip.openings, 0.6))))

    def _plane(self, index: int) -> TeethPlane:
        return TeethPlane.of(self.clip.poses[index], self._depth)

    def _light(self, index: int) -> F32:
        face = TrackedFace(self.clip.points[index], self.clip.picture(index), Box(0, 0, CROP_SIDE, CROP_SIDE))
        return mouth_light(face)

    def _good_textures(self) -> list[tuple[int, MouthTexture]]:
        clip = self.clip
        found = []
        for index in np.flatnonzero(clip.openings > 0.045)[::3]:
            texture = cut_texture(
                clip.picture(index), clip.points[index], self._plane(index), self._light(index)
            )
            if texture is not None:
                found.append(
                    (Look.of(texture).quality(float(clip.openings[index])), int(clip.numbers[index]), texture)
                )
        found.sort(key=lambda one: -one[0])
        kept: list[tuple[int, MouthTexture]] = []
        for _, number, texture in found:
            if all(abs(number - other) > 6 for other, _ in kept):
                kept.append((number, texture))
            if len(kept) == _TEXTURES:
                break
        return kept

    def pair(
        self, rng: np.random.Generator, jitter: float = 0.5, strange: float = _STRANGE
    ) -> tuple[Sample, Sample] | None:
        """Two consecutive frames, or None where the clip has none at the place looked at.

        strange: how often the stand-in's mouth does something else; at 1 nothing else stands in.
        """
        clip = self.clip
        index = int(rng.integers(0, len(clip.numbers) - 1))
        # Rare wide mouths are looked for, or the net would learn lips at rest.
        if rng.random() < 0.4 and len(self._open):
            index = min(int(rng.choice(self._open)), len(clip.numbers) - 2)
        number = int(clip.numbers[index])
        away = self._stranger(index, rng) if rng.random() < strange else 0
        if not away and strange >= 1:
            return None
        away = away or _neighbour(rng)
        needed = (number, number + 1, number + away, number + 1 + away)
        if any(one not in self._place for one in needed):
            return None
        usable = [i for i, (at, _) in enumerate(self._textures) if abs(at - number) > _APART]
        texture = int(rng.choice(usable)) if usable and rng.random() > 0.12 else -1
        second = self._view(index, rng) if rng.random() > 0.12 else -1
        shift = rng.normal(0, 1.5, 2) * (jitter > 0)
        grown = float(np.exp(rng.normal(0, 0.03) * (jitter > 0)))
        choice = _Choice(away, texture, second, (float(shift[0]), float(shift[1])), grown, jitter)
        return self._sample(number, choice, rng), self._sample(number + 1, choice, rng)

    def _stranger(self, index: int, rng: np.random.Generator) -> int:
        """How far away a frame with another mouth in much the same pose is; 0 where there is none."""
        clip = self.clip
        away, pose = clip.numbers - clip.numbers[index], clip.poses[index]
        unlike = np.abs(clip.openings - clip.openings[index]) > _UNLIKE
        pool = [
            i
            for i in np.flatnonzero((np.abs(away) > _APART) & unlike)
            if abs(clip.poses[i].yaw - pose.yaw) < _TURNED
        ]
        if not pool:
            return 0
        some = rng.choice(pool, min(_VIEWS, len(pool)), replace=False)
        return int(away[min(some, key=lambda i: pose_distance(clip.poses[i], pose))])

    def _view(self, index: int, rng: np.random.Generator) -> int:
        """The frame whose picture the second warp is made of; -1 where there is none."""
        clip = self.clip
        pose, far = clip.poses[index], np.abs(clip.numbers - clip.numbers[index]) > _APART
        for kind in served_by(float(clip.openings[index])):
            pool = [i for i in np.flatnonzero(far) if self._kinds[i] is kind]
            pool = [i for i in pool if abs(clip.poses[i].yaw - pose.yaw) < 0.3]
            if pool:
                some = rng.choice(pool, min(_VIEWS, len(pool)), replace=False)
                return int(min(some, key=lambda i: pose_distance(clip.poses[i], pose)))
        return -1

    def _sample(self, number: int, choice: _Choice, rng: np.random.Generator) -> Sample:
        clip = self.clip
        index, source = self._place[number], self._place[number + choice.away]
        true_points = clip.points[index]
        target = jittered(true_points, choice.jitter, rng) if choice.jitter else true_points
        own = clip.points[source]
        own = jittered(own, choice.jitter, rng) if choice.jitter else own
        picture, stand_in = clip.picture(index), clip.picture(source)
        warped = self._first(stand_in, own, target, index, source, choice)
        crop = crop_of(
            shifted_pose(clip.poses[index], np.array(choice.shift, np.float32), choice.grown), clip.neutral
        )
        placed = crop.to_crop(target[:, :2])
        context, first = cut_crop(picture, crop), cut_crop(warped, crop)
        reach = reach_mask(crop.to_crop(own[:, :2]), placed)
        second = first
        if choice.second >= 0:
            second = self._second(choice.second, placed, target[:, 2] / crop.scale)
            second = _toned(second, tone_shift(first, second, reach))
        return Sample(
            context,
            first,
            second,
            outlines(placed),
            np.asarray(np.rint(reach * 255), np.uint8),
            np.asarray(lips_mask(placed) * 255, np.uint8),
        )

    def _first(
        self, picture: Picture, own: F32, target: F32, index: int, source: int, choice: _Choice
    ) -> Picture:
        clip = self.clip
        sampled = own[:, :2].copy()
        apart = float(np.clip(clip.openings[source] / 0.04, 0, 1))
        widest = max(float(clip.openings[index]), float(clip.openings[source]))
        flesh = (_FLESH[0] + apart * (_FLESH[1] - _FLESH[0])) * float(np.clip(widest / 0.03, 0, 1))
        inner, outer = list(INNER_LIPS), list(OUTER_LIPS)
        sampled[inner] += flesh * (sampled[outer] - sampled[inner])
        width = face_width(own)
        field = warp_field(
            sampled,
            target[:, :2].copy(),
            target[:, 2],
            (CROP_SIDE, CROP_SIDE),
            feather=max(2.0, 0.08 * width),
        )
        if field is None:
            return picture
        light = self._light(source)
        if choice.texture >= 0:
            texture = self._textures[choice.texture][1]
        else:
            flat = TeethPlane(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
            texture = draw_cavity(Opening.of(clip.neutral, flat), light, lip_colour(picture, own))
        mouth = draw_mouth(
            texture,
            picture,
            np.ascontiguousarray(target[:, :2]),
            self._plane(index),
            light,
            max(1.0, 0.007 * width),
            apart,
        )
        return composite(picture, field, mouth, 1.0)

    def _second(self, view: int, placed: F32, depth: F32) -> U8:
        clip = self.clip
        crop = crop_of(clip.poses[view], clip.neutral)
        held = crop.to_crop(clip.points[view][:, :2])
        return look(cut_crop(clip.picture(view), crop), warp_places(held, placed, depth))


def _neighbour(rng: np.random.Generator) -> int:
    return int(rng.integers(_NEAREST, _FARTHEST + 1)) * int(rng.choice([-1, 1]))


def _toned(crop: U8, shift: F32) -> U8:
    return np.asarray(np.clip(np.rint(crop + shift), 0, 255), np.uint8)


class SampleSource:
    """Draws pairs from many clips, those with large mouths more often.

    samplers: one for each clip that is long enough.
    """

    def __init__(self, clips: Sequence[CropClip]) -> None:
        self.samplers = [ClipSampler(clip) for clip in clips if len(clip.numbers) > 2 * _APART]
        weights = [
            np.sqrt(len(one.clip.numbers)) * (_LARGE_WEIGHT if one.clip.mouth_px >= _LARGE_MOUTH else 1.0)
            for one in self.samplers
        ]
        self._weights = np.array(weights) / np.sum(weights)

    def pair(self, rng: np.random.Generator, jitter: float = 0.5) -> tuple[Sample, Sample]:
        """A pair. Raises ValueError where the clips have none: too few of their frames follow each other."""
        for _ in range(_TRIES if self.samplers else 0):
            found = self.samplers[int(rng.choice(len(self.samplers), p=self._weights))].pair(rng, jitter)
            if found is not None:
                return found
        raise ValueError("no clip has faces in frames that follow each other")

    def fixed(self, per_clip: int, seed: int, strange: float = 0.0) -> list[tuple[Sample, Sample]]:
        """The same pairs every time, so many of each clip, without jitter: for measuring.

        strange: see ClipSampler.pair.
        """
        pairs = []
        for sampler in self.samplers:
            rng, made = np.random.default_rng(seed), 0
            for _ in range(20 * per_clip):
                found = sampler.pair(rng, jitter=0.0, strange=strange)
                if found is not None:
                    pairs.append(found)
                    made += 1
                if made == per_clip:
                    break
        return pairs


def stacked(samples: Sequence[Sample]) -> dict[str, F32]:
    """Arrays (n, channels, SIDE, SIDE): pictures about -1..1, masks 0..1."""

    def pictures(name: str) -> F32:
        values = np.stack([getattr(one, name) for one in samples]).astype(np.float32)
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2) / 127.5 - 1)

    def masks(name: str) -> F32:
        values = np.stack([getattr(one, name) for one in samples]).astype(np.float32)
        return np.asarray(values[:, None] / 255, np.float32)

    out = {name: pictures(name) for name in ("context", "first", "second", "drawn")}
    return out | {name: masks(name) for name in ("reach", "lips")}


def varied(batch: dict[str, F32], rng: np.random.Generator) -> dict[str, F32]:
    """A batch of pairs in other light, from other cameras; consecutive samples are changed alike."""
    out = dict(batch)
    pairs = len(batch["context"]) // 2

    def per_pair(values: NDArray[np.float64]) -> F32:
        return np.repeat(values.astype(np.float32), 2, axis=0)

    mirror = np.repeat(rng.random(pairs) < 0.5, 2)
    for name, value in out.items():
        flipped = value.copy()
        flipped[mirror] = value[mirror][..., ::-1]
        out[name] = flipped
    gain = per_pair(rng.uniform(0.75, 1.25, (pairs, 1, 1, 1)))
    gamma = per_pair(np.exp(rng.normal(0, 0.15, (pairs, 1, 1, 1))))
    tint = per_pair(rng.normal(0, 0.03, (pairs, 2, 1, 1)))
    saturation = per_pair(rng.uniform(0.7, 1.3, (pairs, 1, 1, 1)))
    for name in ("context", "first", "second"):
        value = out[name].copy()
        luma = np.clip((value[:, :1] + 1) / 2, 0, 1) ** gamma * gain
        value[:, :1] = np.clip(luma, 0, 1) * 2 - 1
        value[:, 1:] = value[:, 1:] * saturation + tint
        if name != "context":
            # References are from another moment: a little other light, another noise.
            value[:, :1] += per_pair(rng.normal(0, 0.02, (pairs, 1, 1, 1)))
            value[:, 1:] += per_pair(rng.normal(0, 0.01, (pairs, 2, 1, 1)))
        out[name] = value
    soft = rng.random(pairs) < 0.15
    for pair in np.flatnonzero(soft):
        side = int(rng.integers(SIDE // 2, SIDE))
        for index in (2 * pair, 2 * pair + 1):
            for name in ("context", "first", "second"):
                out[name][index] = _softened(out[name][index], side)
    # What the net must not trust: a hand or microphone over one reference.
    for pair in np.flatnonzero(rng.random(pairs) < 0.1):
        top, left = rng.integers(16, SIDE - 32, 2)
        height, width = rng.integers(12, 40, 2)
        colour = rng.uniform(-0.8, 0.6, (3, 1, 1)) * np.array([1, 0.2, 0.2])[:, None, None]
        out["second"][2 * pair : 2 * pair + 2, :, top : top + height, left : left + width] = colour
    out["truth"] = out["context"]
    noise = rng.uniform(0, 0.02)
    for name in ("first", "second"):
        out[name] = out[name] + noise * rng.standard_normal(out[name].shape).astype(np.float32)
    return out


def _softened(value: F32, side: int) -> F32:
    planes = value.transpose(1, 2, 0)
    small = cv2.resize(planes, (side, side), interpolation=cv2.INTER_AREA)
    large = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    return np.asarray(large.transpose(2, 0, 1), np.float32)


def inputs(batch: dict[str, F32]) -> F32:
    """(n, CHANNELS, SIDE, SIDE) as mouth_crop.net_input makes them."""
    context = batch["context"] * (batch["reach"] <= 0.01)
    return np.concatenate([context, batch["first"], batch["second"], batch["drawn"]], axis=1)
