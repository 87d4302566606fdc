"""The enhancement stage: the rendering net's choice and synthesis, put back at the frame's own resolution.

The net sees small crops only. Its gates and its low-frequency change are enlarged; fine detail comes from the
person's own frames, so the result is as sharp as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from retalk_models.face.geometry import INNER_LIPS, OUTER_LIPS, ObservedFace
from retalk_models.face.warp import WarpField
from retalk_models.picture import F32, U8, Box, Picture
from retalk_models.talkin.mouth_crop import (
    SIDE,
    MouthCrop,
    crop_of,
    cut_crop,
    field_places,
    halved,
    lips_reach,
    look,
    net_input,
    on_crop,
    outlines,
    reach_mask,
    tone_shift,
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

_SQUEEZED = (0.002, 0.008)
"""The same of how much farther apart the lips are in its view than where they are drawn."""

_CONTRAST = 3.0
"""How much steeper than the net's own the way from one warp to the other is."""

RENDERER_FILE = "talkin_renderer.safetensors"

_LIPS = [*OUTER_LIPS, *INNER_LIPS]


class Renderer(Protocol):
    """A rendering net that runs somewhere; any number of sessions share it."""

    def __call__(self, values: F32) -> tuple[F32, F32]:
        """(n, SIDE, SIDE, CHANNELS) to the second warp's share (n, SIDE, SIDE), 0..1, of the two warps, and
        what to add to their mix (n, 3, SIDE, SIDE), levels of Y, U, V."""
        ...


def hold_to_one_thread() -> None:
    """For a process that starts an engine: torch's own threads on the processor are not used from here on.

    The net's layers are too small to share out: a second thread makes them slower, and takes a core from
    another session.
    """
    import torch

    torch.set_num_threads(1)


class NetRenderer:
    """The net on a device; see hold_to_one_thread for the processor.

    Raises ValueError for weights of another net, also of an earlier one, whose time nobody has measured.
    """

    def __init__(self, device: str = "cpu", weights: Path | None = None) -> None:
        import torch

        from retalk_models.talkin.rendernet import WIDTHS, fused, load_net

        self._torch = torch
        self._device = device
        net = load_net(weights)
        if net.widths != WIDTHS:
            raise ValueError(f"{weights}: these are of an earlier rendering net")
        self._net = fused(net, device)

    def __call__(self, values: F32) -> tuple[F32, F32]:
        torch = self._torch
        with torch.inference_mode():
            said = self._net(torch.from_numpy(values).to(self._device)).cpu().numpy()
        return said[:, 0], said[:, 1:]


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """What the net last said, and of which lips in the crop."""

    share: F32
    change: F32
    lips: F32


class Enhancement:
    """One session's views and memory. Not thread-safe."""

    def __init__(self, renderer: Renderer, views: PersonViews | None = None) -> None:
        """views: what is known of the person already."""
        self._renderer = renderer
        self._views = PersonViews() if views is None else views
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
            places = field_places(field, crop, view.points)
            second = look(view.small, places)
            tone = tone_shift(first, second, reach)
            second = np.asarray(np.clip(np.rint(second + tone), 0, 255), np.uint8)
        drawn = outlines(placed)
        value = net_input(context, first, second, drawn, reach)
        share, change = (one[0] for one in self._renderer(value[None]))
        answer = self._steadied(_Answer(share, change, placed[_LIPS]))
        reach = reach * np.float32(effect) * on_crop(field.reach, field, crop)
        squeezed = 0.0 if view is None else view.opening - target.opening
        reach *= lips_reach(placed) * _outside(drawn, target.opening, squeezed)
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
    return _between(float(away), _MOVED)


def _decided(share: F32) -> F32:
    """Shares that are near one warp or the other brought to it: a mean of two has the grain of neither."""
    return np.asarray(np.clip(_CONTRAST * (share - 0.5) + 0.5, 0, 1), np.float32)


def _outside(drawn: U8, opening: float, squeezed: float) -> F32:
    """(SIDE, SIDE) 0..1, what of the crop the net may change. drawn: outlines of the target. squeezed: how
    much farther apart its view's lips are.

    Which teeth show in a wide mouth no outline tells, so a net that was taught by distance draws their mean,
    a fog. The warp shows the person's own. And of teeth squeezed into a slit a row of dots is left.
    """
    apart = max(_between(opening, _APART), _between(squeezed, _SQUEEZED))
    if apart == 0:
        return np.ones((SIDE, SIDE), np.float32)
    inside = cv2.dilate(drawn[..., 1], np.ones((3, 3), np.uint8)).astype(np.float32)
    return np.asarray(1 - np.float32(apart / 255) * cv2.blur(inside, (5, 5)), np.float32)


def _between(value: float, limits: tuple[float, float]) -> float:
    """0 up to the lower limit, 1 from the upper one on."""
    return float(np.clip((value - limits[0]) / (limits[1] - limits[0]), 0, 1))


def _touched(reach: F32, crop: MouthCrop, within: Box) -> Box | None:
    """The even-aligned part of the frame, inside another, that the reach covers."""
    column, row, columns, rows = cv2.boundingRect(cv2.compare(reach, 0, cv2.CMP_GT))
    if not columns:
        return None
    low, high = (column - 1, row - 1), (column + columns, row + rows)
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
    change = answer.change * reach
    luma = crop.matrix.copy()
    luma[:, 2] -= (box.left, box.top)
    chroma = halved(luma)
    base_y, base_u, base_v = dubbed.part(box)
    if view is None or places is None:
        for one, base, matrix in zip(change, (base_y, base_u, base_v), (luma, chroma, chroma), strict=True):
            _add(base, _enlarged(one, matrix, base))
        return
    # Enlarged together: what is added, the second warp's share, and where in the view it lies.
    share = _decided(answer.share) * reach
    fine = _enlarged(_joined(change[0], share, places, view.crop.matrix), luma, base_y)
    added, weight, x, y = cv2.split(fine)
    _mix(base_y, added, weight, _seen(view.picture.y, x, y, cv2.INTER_CUBIC), tone[0])
    fine = _enlarged(_joined(change[1], share, places, halved(view.crop.matrix)), chroma, base_u)
    added, weight, x, y = cv2.split(fine)
    _mix(base_u, added, weight, _seen(view.picture.u, x, y), tone[1])
    _mix(base_v, _enlarged(change[2], chroma, base_v), weight, _seen(view.picture.v, x, y), tone[2])


def _joined(change: F32, share: F32, places: F32, into: F32) -> F32:
    """(SIDE, SIDE, 4) change, share, and x and y of places, taken into a view's plane by a matrix (2, 3)."""
    return np.asarray(cv2.merge([change, share, *cv2.split(cv2.transform(places, into))]), np.float32)


def _enlarged(values: F32, matrix: F32, base: U8) -> F32:
    """Crop values (SIDE, SIDE, ...) on a part of a plane, 0 beyond the crop; matrix: from crop to part."""
    size = (base.shape[1], base.shape[0])
    out = cv2.warpAffine(values, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(out, np.float32)


def _seen(plane: U8, x: F32, y: F32, how: int = cv2.INTER_LINEAR) -> U8:
    return np.asarray(cv2.remap(plane, x, y, how, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _mix(base: U8, added: F32, weight: F32, seen: U8, tone: np.float32) -> None:
    """Take a share of what is seen, which is `tone` too dark, and add, in place."""
    away = np.asarray(cv2.subtract(seen, base, dtype=cv2.CV_32F), np.float32)
    away += tone
    away *= weight
    away += added
    _add(base, away)


def _add(base: U8, added: F32) -> None:
    base[...] = cv2.add(base, added, dtype=cv2.CV_8U)
