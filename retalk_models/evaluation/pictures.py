"""Measures on pictures: likeness, sharpness, flicker, seam and change where nothing should change.

All are on luma, 0..255. The mouth's mask and every crop come from the source's landmarks, for both pictures
alike, so that their jitter does not count for or against the dub.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np

from retalk_models.evaluation.series import F64
from retalk_models.face.geometry import FACE_OVAL, OUTER_LIPS, STABLE, fit_similarity, template
from retalk_models.picture import F32, Flags, Picture

_SPAN = (1.5, 1.3)
"""Width and height of the crop round the mouth, units of the outer eye corners' distance."""

SAME = 99.0
"""What stands for equal pictures in decibels, so that a mean of frames stays a number."""

_LARGEST = 384
_RIM = 0.25
"""How far the mouth's mask reaches beyond the outer lips, over the mouth's width."""

_BESIDE = 0.25
"""How far beyond the face's box the picture may change, over the box's size."""

_NOTICED = 2
"""Luma levels from which a pixel counts as changed, when the changed area's border is looked for."""

_EYES = (33, 7, 163, 144, 145, 153, 154, 155, 133, 246, 161, 160, 159, 158, 157, 173,
         263, 249, 390, 373, 374, 380, 381, 382, 362, 466, 388, 387, 386, 385, 384, 398,
         70, 63, 105, 66, 107, 336, 296, 334, 293, 300)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """A face's mouth region, turned upright, and the mouth's mask in it.

    luma: (h, w) float32. mask: (h, w) bool, lips and a rim of skin. lips: (h, w) bool, the outer lips' hull.
    """

    luma: F32
    mask: Flags
    lips: Flags


def crop_map(points: F32, unit: float) -> F32:
    """(2, 3) affine map from frame to crop pixels, upright and centred on the mouth.

    points: (478, 2 or 3) pixels. unit: crop pixels per outer eye corners' distance.
    """
    stable = list(STABLE)
    flat = np.zeros((len(stable), 3), np.float32)
    flat[:, :2] = points[stable, :2]
    base = template()[stable].copy()
    base[:, 2] = 0
    pose = fit_similarity(flat, base, np.full(len(stable), 1 / len(stable), np.float32))
    turn = pose.scale * pose.rotation[:2, :2]
    mouth = template()[list(OUTER_LIPS), :2].mean(0)
    width, height = crop_size(unit)
    move = unit * (pose.translation[:2] - mouth) + np.array([width / 2, height / 2])
    return np.asarray(np.concatenate([unit * turn, move[:, None]], 1), np.float32)


def crop_size(unit: float) -> tuple[int, int]:
    """Width and height of a crop, pixels."""
    return max(16, round(_SPAN[0] * unit)), max(16, round(_SPAN[1] * unit))


def crop_unit(points: F32) -> float:
    """Crop pixels per outer eye corners' distance that keep a clip's own resolution, within bounds.

    points: (n, 478, 3), NaN where there is no face; NaN is returned where there is none at all.
    """
    distance = np.linalg.norm(points[:, 33, :2] - points[:, 263, :2], axis=1)
    if not np.isfinite(distance).any():
        return float("nan")
    return float(np.clip(np.nanmedian(distance), 24, _LARGEST / _SPAN[0]))


def cut(picture: Picture, points: F32, unit: float) -> Crop:
    """The crop of a picture round the mouth of (478, 2 or 3) points."""
    move, size = crop_map(points, unit), crop_size(unit)
    # Enlarging must not sharpen and shrinking must not alias, or sharpness would depend on resolution.
    luma = cv2.warpAffine(picture.y, move, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    outline = points[list(OUTER_LIPS), :2] @ move[:, :2].T + move[:, 2]
    lips = np.zeros((size[1], size[0]), np.uint8)
    cv2.fillConvexPoly(lips, cv2.convexHull(np.round(outline).astype(np.int32)), 255)
    rim = max(1, round(_RIM * float(np.ptp(outline[:, 0]))))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * rim + 1, 2 * rim + 1))
    return Crop(luma.astype(np.float32), cv2.dilate(lips, disc) > 0, lips > 0)


def psnr(left: F32, right: F32, mask: Flags) -> float:
    """Peak signal-to-noise ratio in dB within a mask; SAME where they are equal, NaN for no mask."""
    if not mask.any():
        return float("nan")
    error = float(((left[mask].astype(np.float64) - right[mask]) ** 2).mean())
    return _decibels(error)


def _decibels(square: float) -> float:
    return min(SAME, float(10 * np.log10(255**2 / square))) if square > 0 else SAME


def ssim(left: F32, right: F32, mask: Flags) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian of 1.5 pixels, K 0.01 and 0.03), mean over a mask."""
    if not mask.any():
        return float("nan")

    def mean(value: F32) -> F32:
        return np.asarray(cv2.GaussianBlur(value, (11, 11), 1.5), np.float32)

    a, b = left.astype(np.float32), right.astype(np.float32)
    mean_a, mean_b = mean(a), mean(b)
    spread_a, spread_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    shared = mean(a * b) - mean_a * mean_b
    low, high = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_a * mean_b + low) * (2 * shared + high)
    bottom = (mean_a**2 + mean_b**2 + low) * (spread_a + spread_b + high)
    return float((top / bottom)[mask].mean())


def sharpness(luma: F32, mask: Flags) -> float:
    """Mean absolute Laplacian within a mask, levels."""
    return float(np.abs(cv2.Laplacian(luma, cv2.CV_32F))[mask].mean()) if mask.any() else float("nan")


def seam(source: Picture, dub: Picture, points: F32) -> float:
    """How hard the changed area's border is: 90th percentile over it of the gradient of what was changed.

    Luma levels a pixel: a paste with an offset of 20 levels has about 10, a soft fade under 2. NaN where
    nothing changed.
    """
    left, top, right, bottom = face_box(source, points)
    before = source.y[top:bottom, left:right].astype(np.float32)
    change = dub.y[top:bottom, left:right].astype(np.float32) - before
    changed = (np.abs(change) >= _NOTICED).astype(np.uint8)
    if changed.sum() < 16:
        return float("nan")
    near = max(3, round(0.03 * (right - left))) | 1
    whole = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, np.ones((near, near), np.uint8))
    whole = cv2.morphologyEx(whole, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    border = cv2.dilate(whole, np.ones((5, 5), np.uint8)) - cv2.erode(whole, np.ones((5, 5), np.uint8))
    if not border.any():
        return float("nan")
    x, y = (cv2.Sobel(change, cv2.CV_32F, dx, 1 - dx, ksize=3) / 8 for dx in (1, 0))
    return float(np.quantile(np.hypot(x, y)[border > 0], 0.9))


def face_box(picture: Picture, points: F32) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the face with a quarter of its size on every side; even, within the
    picture."""
    oval = points[list(FACE_OVAL), :2]
    low, high = oval.min(0), oval.max(0)
    beside = _BESIDE * (high - low)
    left, top = (max(0, int(value)) & ~1 for value in low - beside)
    right = min(picture.padded_width, (int(high[0] + beside[0]) + 2) & ~1)
    bottom = min(picture.padded_height, (int(high[1] + beside[1]) + 2) & ~1)
    return left, top, max(left + 2, right), max(top + 2, bottom)


def outside(source: Picture, dub: Picture, points: F32) -> tuple[int, float]:
    """Samples (Y, U and V) that differ outside the face's box, and their mean squared luma difference
    there."""
    left, top, right, bottom = face_box(source, points)
    away = np.ones(source.y.shape, np.bool_)
    away[top:bottom, left:right] = False
    half = np.ones(source.u.shape, np.bool_)
    half[top // 2 : bottom // 2, left // 2 : right // 2] = False
    luma = (dub.y.astype(np.float32) - source.y)[away]
    count = int((luma != 0).sum())
    count += sum(int((a[half] != b[half]).sum()) for a, b in ((source.u, dub.u), (source.v, dub.v)))
    return count, float((luma**2).mean()) if luma.size else 0.0


def eye_change(source: Picture, dub: Picture, points: F32) -> float:
    """Mean absolute luma difference at the eyes' and brows' landmarks, levels."""
    at = np.round(points[list(_EYES), :2]).astype(np.intp)
    x = np.clip(at[:, 0], 0, source.width - 1)
    y = np.clip(at[:, 1], 0, source.height - 1)
    return float(np.abs(dub.y[y, x].astype(np.float32) - source.y[y, x]).mean())


@dataclass(frozen=True, slots=True)
class PictureScore:
    """A dub's pictures against its source's; docs/evaluation.md has every definition.

    psnr, ssim: in the mouth's mask, means over frames. sharpness, flicker, lip_flicker: dub over source.
    seam: levels a pixel. outside_samples: samples in all frames that differ outside the face's box.
    outside_psnr: dB there, SAME where nothing differs. eyes: levels. frames: compared.
    """

    frames: int
    psnr: float
    ssim: float
    sharpness: float
    flicker: float
    lip_flicker: float
    seam: float
    outside_samples: int
    outside_psnr: float
    eyes: float


class PictureMeter:
    """Takes in pairs of pictures in order and adds up what PictureScore says. Holds three crops."""

    def __init__(self, points: F32) -> None:
        """points: (n, 478, 3) pixels of the source's n frames, NaN where no face was found."""
        self._points = points
        self._unit = crop_unit(points)
        self._recent: deque[tuple[int, Crop, Crop]] = deque(maxlen=3)
        self._sums: dict[str, list[float]] = {}
        self._samples = 0
        self._flicker = np.zeros(len(points))

    @property
    def frame_flicker(self) -> F64:
        """(n,) second difference of the dub's lips and rim in time, less the source's, levels; for finding
        the worst frames."""
        return self._flicker

    def add(self, index: int, source: Picture, dub: Picture) -> None:
        """Take in frame `index` of the source; frames beyond the known and without a face are left out."""
        if index >= len(self._points) or not np.isfinite(self._points[index, 0, 0]):
            return
        points = self._points[index]
        own, drawn = cut(source, points, self._unit), cut(dub, points, self._unit)
        self._note("psnr", psnr(own.luma, drawn.luma, own.mask))
        self._note("ssim", ssim(own.luma, drawn.luma, own.mask))
        self._note("own_sharpness", sharpness(own.luma, own.mask))
        self._note("sharpness", sharpness(drawn.luma, own.mask))
        self._note("seam", seam(source, dub, points))
        count, square = outside(source, dub, points)
        self._samples += count
        self._note("outside", square)
        self._note("eyes", eye_change(source, dub, points))
        self._recent.append((index, own, drawn))
        if len(self._recent) == 3 and self._recent[0][0] == index - 2:
            self._note_flicker(index - 1)

    def _note_flicker(self, middle: int) -> None:
        (_, before, before_dub), (_, now, now_dub), (_, after, after_dub) = self._recent
        own = np.abs(before.luma - 2 * now.luma + after.luma)
        drawn = np.abs(before_dub.luma - 2 * now_dub.luma + after_dub.luma)
        skin = now.mask & ~(before.lips | now.lips | after.lips)
        for name, where in (("flicker", skin), ("lip_flicker", now.lips)):
            if where.any():
                self._note(f"own_{name}", float(own[where].mean()))
                self._note(name, float(drawn[where].mean()))
        self._flicker[middle] = float((drawn - own)[now.mask].mean())

    def _note(self, name: str, value: float) -> None:
        if np.isfinite(value):
            self._sums.setdefault(name, []).append(value)

    def score(self) -> PictureScore:
        """What was seen so far; NaN for what was never to be seen."""

        def mean(name: str) -> float:
            return float(np.mean(self._sums[name])) if self._sums.get(name) else float("nan")

        def ratio(name: str) -> float:
            own = mean(f"own_{name}")
            return mean(name) / own if own > 0 else float("nan")

        square = mean("outside")
        return PictureScore(
            frames=len(self._sums.get("psnr", ())),
            psnr=mean("psnr"),
            ssim=mean("ssim"),
            sharpness=ratio("sharpness"),
            flicker=ratio("flicker"),
            lip_flicker=ratio("lip_flicker"),
            seam=mean("seam"),
            outside_samples=self._samples,
            outside_psnr=_decibels(square),
            eyes=mean("eyes"),
        )


def likeness(left: tuple[Picture, F32], right: tuple[Picture, F32], unit: float) -> tuple[float, float]:
    """PSNR and SSIM in the right picture's mouth mask of two pictures of one person, each with its own
    points.

    Both are turned upright by their own stable points first, so the head may have moved between them.
    """
    one, two = cut(left[0], left[1], unit), cut(right[0], right[1], unit)
    return psnr(one.luma, two.luma, two.mask), ssim(one.luma, two.luma, two.mask)
