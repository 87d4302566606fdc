"""Contact sheets: source and its mouth enlarged, dub and its mouth enlarged, column by column."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from retalk_models.picture import F32, U8, Picture

FACE_WIDTHS, MOUTH_WIDTHS = 1.5, 0.6
"""Side of a cell over the face's width, round the mouth."""


def cell(picture: Picture, points: F32, widths: float, size: int) -> U8:
    """(size, size, 3) RGB: a square of so many face widths round the mouth of (478, 2 or 3) points."""
    centre = points[[61, 291, 0, 17], :2].mean(axis=0)
    half = max(4.0, float(np.linalg.norm(points[234, :2] - points[454, :2])) * widths / 2)
    scale = size / 2 / half
    move = np.array(
        [[scale, 0, size / 2 - centre[0] * scale], [0, scale, size / 2 - centre[1] * scale]], np.float32
    )
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.warpAffine(picture.rgb(), move, (size, size), flags=how), np.uint8)


def column(source: Picture, dub: Picture, points: F32 | None, title: str, size: int = 200) -> U8:
    """(4 * size, size, 3) RGB: source and its mouth, dub and its mouth; black where there is no face.

    points: (478, 2 or 3) of the source, for all four, so what moves between them was moved by the dub.
    """
    if points is None or not np.isfinite(points[0, 0]):
        out = np.zeros((4 * size, size, 3), np.uint8)
    else:
        cells = [
            cell(one, points, widths, size) for one in (source, dub) for widths in (FACE_WIDTHS, MOUTH_WIDTHS)
        ]
        out = np.vstack(cells).astype(np.uint8)
    cv2.putText(out, title, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 0), 1, cv2.LINE_AA)
    return out


def sheet(columns: Sequence[U8], across: int = 8) -> U8:
    """Columns side by side, `across` to a row, as one RGB picture. Raises ValueError for none."""
    if not columns:
        raise ValueError("a contact sheet needs at least one column")
    filled = [*columns, *[np.zeros_like(columns[0])] * (-len(columns) % across)]
    return np.vstack([np.hstack(filled[i : i + across]) for i in range(0, len(filled), across)])
