"""Puts the warped face and the drawn mouth back into a frame, in I420 at the frame's own resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from retalk_models.face.warp import WarpField
from retalk_models.picture import F32, U8, Box, Picture


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Something drawn to be laid into a frame: y (h, w), uv (h / 2, w / 2, 2) and their covers, float32.

    box: even-aligned frame pixels. cover: 0..1, 1 where only the patch shows.
    """

    box: Box
    y: F32
    uv: F32
    cover_y: F32
    cover_uv: F32


def mix_patches(patches: Sequence[tuple[Patch, float]]) -> Patch | None:
    """The weighted mean of patches with one box and cover; None of none."""
    if not patches:
        return None
    first = patches[0][0]
    if len(patches) == 1:
        return first
    y = sum((np.float32(weight) * patch.y for patch, weight in patches), np.zeros_like(first.y))
    uv = sum((np.float32(weight) * patch.uv for patch, weight in patches), np.zeros_like(first.uv))
    return replace(first, y=y, uv=uv)


def composite(
    picture: Picture, field: WarpField, mouth: Patch | None, opacity: float, fine: bool = True
) -> Picture:
    """A copy of the picture with its face warped by field and the mouth's inside laid in.

    opacity: 0..1, of the mouth's inside. fine: keep luma sharp, at twice the cost of not doing so. Samples outside field.box are those of the picture; within it, where
    the field's reach is 0, too.
    """
    out = picture.copy()
    box = field.box
    offsets = _at_native(field.offsets, field, box.width, box.height)
    reach = _at_native(field.reach, field, box.width, box.height)
    map_x = offsets[..., 0] + np.arange(box.left, box.right, dtype=np.float32)[None, :]
    map_y = offsets[..., 1] + np.arange(box.top, box.bottom, dtype=np.float32)[:, None]
    how = cv2.INTER_CUBIC if fine else cv2.INTER_LINEAR
    luma = cv2.remap(picture.y, map_x, map_y, how, borderMode=cv2.BORDER_REPLICATE)
    half_x = (cv2.resize(map_x, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) - 0.5) / 2
    half_y = (cv2.resize(map_y, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) - 0.5) / 2
    chroma = [
        cv2.remap(plane, half_x, half_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for plane in (picture.u, picture.v)
    ]
    if mouth is not None and opacity > 0:
        _lay_in(luma, mouth.y, mouth.cover_y * opacity, mouth.box.left - box.left, mouth.box.top - box.top)
        for index, plane in enumerate(chroma):
            _lay_in(
                plane,
                mouth.uv[..., index],
                mouth.cover_uv * opacity,
                (mouth.box.left - box.left) // 2,
                (mouth.box.top - box.top) // 2,
            )
    half_reach = cv2.resize(reach, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    _blend(out.y[box.top : box.bottom, box.left : box.right], luma, reach)
    half = (slice(box.top // 2, box.bottom // 2), slice(box.left // 2, box.right // 2))
    _blend(out.u[half], chroma[0], half_reach)
    _blend(out.v[half], chroma[1], half_reach)
    return out


def _at_native(grid: F32, field: WarpField, width: int, height: int) -> F32:
    """A coarse grid's values at every pixel of the region."""
    scale = np.array([[1 / field.step, 0, 0], [0, 1 / field.step, 0]], np.float32)
    return np.asarray(
        cv2.warpAffine(
            grid,
            scale,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        ),
        np.float32,
    )


def _lay_in(base: U8, patch: F32, cover: F32, left: int, top: int) -> None:
    height, width = base.shape
    rows = slice(max(0, top), min(height, top + patch.shape[0]))
    columns = slice(max(0, left), min(width, left + patch.shape[1]))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    inner = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    _blend(base[rows, columns], patch[inner], cover[inner])


def _blend(base: U8, over: F32 | U8, cover: F32) -> None:
    """base + cover * (over - base), rounded, in place; exactly base where cover is 0."""
    mixed = base + cover * (over.astype(np.float32) - base)
    base[...] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
