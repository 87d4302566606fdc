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

    opacity: 0..1, of the mouth's inside. fine: keep luma sharp, at twice the cost of not doing so. Samples
    outside field.box are those of the picture; within it, where the field's reach is 0, too.
    """
    out = picture.copy()
    box = field.box
    how = cv2.INTER_CUBIC if fine else cv2.INTER_LINEAR
    size, half_size = (box.width, box.height), (box.width // 2, box.height // 2)
    places = field.node_sources()
    whole = cv2.resize(places, size, interpolation=cv2.INTER_LINEAR)
    # A chroma sample sits between the four luma samples that it colours.
    half_places = (cv2.resize(places, half_size, interpolation=cv2.INTER_LINEAR) - 0.5) / 2
    if field.close is not None:
        close, sources = field.close.box, field.close.sources()
        rows, columns = (
            slice(close.top - box.top, close.bottom - box.top),
            slice(close.left - box.left, close.right - box.left),
        )
        whole[rows, columns] = sources
        half_rows, half_columns = (slice(part.start // 2, part.stop // 2) for part in (rows, columns))
        # Of four pixels one, for a mean of both lips' places lies between the lips.
        half_places[half_rows, half_columns] = sources[::2, ::2] / 2
    luma = cv2.remap(picture.y, whole, None, how, borderMode=cv2.BORDER_REPLICATE)
    chroma = [
        cv2.remap(plane, half_places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for plane in (picture.u, picture.v)
    ]
    if mouth is not None and opacity > 0:
        left, top = mouth.box.left - box.left, mouth.box.top - box.top
        _lay_in(luma, mouth.y, mouth.cover_y * opacity, left, top)
        for index, plane in enumerate(chroma):
            _lay_in(plane, mouth.uv[..., index], mouth.cover_uv * opacity, left // 2, top // 2)
    reach = cv2.resize(field.reach, size, interpolation=cv2.INTER_LINEAR)
    half_reach = cv2.resize(field.reach, half_size, interpolation=cv2.INTER_LINEAR)
    for base, over, cover in zip(
        out.part(box), (luma, *chroma), (reach, half_reach, half_reach), strict=True
    ):
        _mix(base, over, cover)
    return out


def _mix(base: U8, over: U8, cover: F32) -> None:
    """Blend in place; exactly base where cover is 0."""
    base[...] = cv2.blendLinear(over, np.ascontiguousarray(base), cover, 1 - cover)


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
