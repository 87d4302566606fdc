"""The enhancement stage: the rendering net's choice and synthesis, put back at the frame's own resolution.

The net sees small crops only. Its gates and its low-frequency change are enlarged; fine detail comes from the
person's own frames, so the result is as sharp as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol

import cv2
import numpy as np

from retalk_models.face.geometry import INNER_LIPS, OUTER_LIPS, ObservedFace
from retalk_models.face.warp import WarpField
from retalk_models.picture import F32, U8, Box, Picture
from retalk_models.talkin.mouth_crop import (
    CHANNELS,
    SIDE,
    MouthCrop,
    crop_of,
    cut_crop,
    halved,
    look,
    net_input,
    outlines,
    reach_mask,
    tone_shift,
    warp_places,
)
from retalk_models.talkin.target import TargetFace
from retalk_models.talkin.views import PersonViews, View

_MOVED = (0.004, 0.02)
"""Mean lip displacement (canonical units) up to which the warp is left alone, and from which the net has all
its say."""

_KEEP = 0.6
"""How much of the last frame's gates and change is kept while the lips stand still in the crop."""

_STILL = 0.7
"""Lip motion in crop samples at which what is kept falls to a third."""

_APART = (0.03, 0.06)
"""Apertures (canonical units) up to which the net draws between the lips, and from which it does not."""

RENDERER_FILE = "talkin_renderer.safetensors"

_LIPS = [*OUTER_LIPS, *INNER_LIPS]


class Renderer(Protocol):
    """A rendering net that runs somewhere; any number of sessions share it."""

    def __call__(self, values: F32) -> tuple[F32, F32]:
        """(n, SIDE, SIDE, CHANNELS) to the second warp's share (n, SIDE, SIDE), 0..1, of the two warps, and
        what to add to their mix (n, SIDE, SIDE, 3), levels of Y, U, V."""
        ...


class NetRenderer:
    """The net on a device."""

    def __init__(self, device: str = "cpu", weights: Path | None = None) -> None:
        import torch

        from retalk_models.talkin.rendernet import load_net, placed

        self._torch = torch
        self._device = device
        self._net = placed(load_net(weights), device)
        if device == "cpu":
            # The net's layers are too small to share out: a second thread makes them slower.
            torch.set_num_threads(1)

    def milliseconds(self) -> float:
        """What a frame takes here, at best of a few."""
        value = np.zeros((1, SIDE, SIDE, CHANNELS), np.float32)
        taken = []
        for _ in range(6):
            began_s = perf_counter()
            self(value)
            taken.append(perf_counter() - began_s)
        return 1000 * min(taken)

    def __call__(self, values: F32) -> tuple[F32, F32]:
        torch = self._torch
        with torch.inference_mode():
            # Samples side by side in memory: the layout that the net's convolutions like, for nothing.
            value = torch.from_numpy(values).to(self._device).permute(0, 3, 1, 2)
            gates, synthesis = self._net(value)
            first, second = value[:, 3:6], value[:, 6:9]
            share = gates[:, 1:2] / (gates[:, :1] + gates[:, 1:2] + 1e-3)
            change = gates[:, 2:] * (synthesis - (first + share * (second - first)))
            both = torch.cat([share, 127.5 * change], 1).permute(0, 2, 3, 1).cpu().numpy()
        return np.ascontiguousarray(both[..., 0]), np.ascontiguousarray(both[..., 1:])


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """What the net last said, and of which lips in the crop."""

    share: F32
    change: F32
    lips: F32


class Enhancement:
    """One session's views and memory. Not thread-safe."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._views = PersonViews()
        self._last: _Answer | None = None

    def reset(self) -> None:
        """Forget the person."""
        self._views.reset()
        self._last = None

    def pause(self) -> None:
        """A frame that is not enhanced: the next one starts anew."""
        self._last = None

    def observe(self, picture: Picture, face: ObservedFace, neutral: F32, elapsed_s: float) -> None:
        """Keep this frame as a view of the person if it is a good one."""
        self._views.observe(picture, face, neutral, elapsed_s)

    def __call__(
        self,
        picture: Picture,
        dubbed: Picture,
        face: ObservedFace,
        target: TargetFace,
        neutral: F32,
        field: WarpField,
        strength: float,
    ) -> None:
        """Improve dubbed, the warp of picture onto target, in place. Samples outside field.box stay.

        strength: 0..1.
        """
        effect = strength * _effect(face, target)
        view = self._views.choose(face.pose, target.opening)
        if effect <= 0:
            self._last = None
            return
        crop = crop_of(face.pose, neutral)
        own, placed = crop.to_crop(face.points[:, :2]), crop.to_crop(target.target)
        reach = reach_mask(own, placed)
        context, first = cut_crop(picture, crop), cut_crop(dubbed, crop)
        second, places, tone = first, None, np.zeros(3, np.float32)
        if view is not None:
            places = warp_places(view.points, placed, target.depth / np.float32(crop.scale))
            second = look(view.small, places)
            tone = tone_shift(first, second, reach)
            second = np.asarray(np.clip(np.rint(second + tone), 0, 255), np.uint8)
        drawn = outlines(placed)
        value = net_input(context, first, second, drawn, reach)
        share, change = (one[0] for one in self._renderer(value[None]))
        answer = self._steadied(_Answer(share, change, placed[_LIPS]))
        reach = reach * np.float32(effect) * _field_reach(field, crop) * _outside(drawn, target.opening)
        _lay(dubbed, field.box, crop, answer, reach, view, places, tone)

    def _steadied(self, answer: _Answer) -> _Answer:
        last = self._last
        if last is not None:
            motion = float(np.abs(answer.lips - last.lips).max())
            keep = np.float32(_KEEP * np.exp(-motion / _STILL))
            answer = _Answer(
                answer.share + keep * (last.share - answer.share),
                answer.change + keep * (last.change - answer.change),
                answer.lips,
            )
        self._last = answer
        return answer


def _effect(face: ObservedFace, target: TargetFace) -> float:
    """0..1: a mouth that hardly moves is best left as the frame has it."""
    away = np.linalg.norm(target.target[_LIPS] - face.points[_LIPS, :2], axis=1).mean() / face.pose.scale
    return float(np.clip((away - _MOVED[0]) / (_MOVED[1] - _MOVED[0]), 0, 1))


def _outside(drawn: U8, opening: float) -> F32:
    """(SIDE, SIDE) 0..1, what of the crop the net may change. drawn: outlines of the target.

    Which teeth show in a wide mouth no outline tells, so a net that was taught by distance draws their mean,
    a fog. The warp shows the person's own.
    """
    apart = float(np.clip((opening - _APART[0]) / (_APART[1] - _APART[0]), 0, 1))
    if apart == 0:
        return np.ones((SIDE, SIDE), np.float32)
    inside = cv2.dilate(drawn[..., 1], np.ones((3, 3), np.uint8)).astype(np.float32)
    return np.asarray(1 - np.float32(apart / 255) * cv2.blur(inside, (5, 5)), np.float32)


def _field_reach(field: WarpField, crop: MouthCrop) -> F32:
    """(SIDE, SIDE) the warp's own reach where the crop's samples lie."""
    columns, rows = np.meshgrid(np.arange(SIDE, dtype=np.float32), np.arange(SIDE, dtype=np.float32))
    places = crop.to_frame(np.stack([columns, rows], axis=-1))
    step = np.array(field.step, np.float32)
    nodes = (places - (field.box.left - 0.5, field.box.top - 0.5)) / step - 0.5
    seen = cv2.remap(
        field.reach, nodes.astype(np.float32), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
    )
    return np.asarray(seen, np.float32)


def _touched(reach: F32, crop: MouthCrop, within: Box) -> Box | None:
    """The even-aligned part of the frame, inside another, that the reach covers."""
    rows, columns = np.flatnonzero(reach.any(axis=1)), np.flatnonzero(reach.any(axis=0))
    if not len(rows):
        return None
    low, high = (columns[0] - 1, rows[0] - 1), (columns[-1] + 1, rows[-1] + 1)
    ends = crop.to_frame(np.array([low, (high[0], low[1]), (low[0], high[1]), high], np.float32))
    left, top = (int(v) & ~1 for v in np.floor(ends.min(axis=0)))
    right, bottom = (int(v) + 2 & ~1 for v in np.ceil(ends.max(axis=0)))
    box = Box(
        max(left, within.left), max(top, within.top), min(right, within.right), min(bottom, within.bottom)
    )
    return box if box.width > 1 and box.height > 1 else None


def _lay(
    dubbed: Picture,
    within: Box,
    crop: MouthCrop,
    answer: _Answer,
    reach: F32,
    view: View | None,
    places: F32 | None,
    tone: F32,
) -> None:
    box = _touched(reach, crop, within)
    if box is None:
        return
    change = answer.change * reach[..., None]
    share = answer.share * reach
    luma = crop.matrix.copy()
    luma[:, 2] -= (box.left, box.top)
    chroma = halved(luma)
    planes = ((0, dubbed.y, luma, 1), (1, dubbed.u, chroma, 2), (2, dubbed.v, chroma, 2))
    for channel, plane, matrix, step in planes:
        rows, columns = slice(box.top // step, box.bottom // step), slice(box.left // step, box.right // step)
        base = plane[rows, columns]
        size = (base.shape[1], base.shape[0])
        added = _enlarged(change[..., channel], matrix, size)
        if view is not None and places is not None:
            held = (view.picture.y, view.picture.u, view.picture.v)[channel]
            seen = _native(
                held, view.crop.matrix if step == 1 else halved(view.crop.matrix), places, matrix, size
            )
            weight = _enlarged(share, matrix, size)
            added += weight * (seen.astype(np.float32) + tone[channel] - base)
        np.rint(added, out=added)
        base[...] = cv2.add(base, added, dtype=cv2.CV_8U)


def _enlarged(values: F32, matrix: F32, size: tuple[int, int]) -> F32:
    """Crop values (SIDE, SIDE) on a part of a plane, 0 beyond the crop; matrix: from crop to part."""
    out = cv2.warpAffine(values, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(out, np.float32)


def _native(held: U8, into_held: F32, places: F32, matrix: F32, size: tuple[int, int]) -> U8:
    """A view's plane moved onto the target, on a part of the frame's plane."""
    there = places @ into_held[:, :2].T + into_held[:, 2]
    whole = cv2.warpAffine(
        np.asarray(there, np.float32), matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    seen = cv2.remap(held, whole, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(seen, np.uint8)
