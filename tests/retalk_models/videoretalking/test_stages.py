"""The stages as the engine runs them: the fast way held to the nets as loaded, on a real face."""

from __future__ import annotations

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from retalk_models.face.tracker import FaceTracker
from retalk_models.picture import Box
from retalk_models.videoretalking.canvas import as_mask, blacken, face_picture, lay_in, put_back, upload
from retalk_models.videoretalking.dnet import DNet
from retalk_models.videoretalking.enet import ENet, draw_noise
from retalk_models.videoretalking.files import Expressions, Nets
from retalk_models.videoretalking.framing import shown_part
from retalk_models.videoretalking.landmarks import sixty_eight
from retalk_models.videoretalking.lnet import LNet
from retalk_models.videoretalking.recon import CoefficientNet
from retalk_models.videoretalking.stages import FaceWork, Stages, _Captured, keep_float32
from tests.retalk_models.videoretalking import synthetic
from tests.retalk_models.videoretalking.clip import pictures
from tests.retalk_models.videoretalking.test_fast import _half_products_as_devices_make_them, psnr

__all__ = ["_half_products_as_devices_make_them"]

CPU = torch.device("cpu")
BOX = Box(120, 50, 360, 340)


def test_the_fast_path_draws_what_the_nets_as_loaded_draw(
    enhancer: tuple[LNet, ENet], dnet: DNet, coefficient_net: CoefficientNet, clips: Path
) -> None:
    zeros = np.zeros(64, np.float32)
    lnet, enet = enhancer
    nets = Nets(dnet, lnet, enet, coefficient_net, Expressions(zeros, zeros), synthetic.standard_points(), {})
    (picture,) = pictures(clips / "open" / "o1_man_glasses_512.mp4", 1)
    face = face_picture(upload(picture, BOX, CPU))
    mel = torch.randn(1, 1, 80, 16, generator=torch.Generator().manual_seed(0))

    def draw(stages: Stages) -> torch.Tensor:
        work = FaceWork(mel, blacken(face), stages.reference(face), draw_noise(0))
        faces, taken = stages.speak([work])
        assert set(taken) == {"lip_sync", "enhancement"}
        return faces[0].clamp(0, 1)

    tracker = FaceTracker()
    tracked = tracker.track(picture)
    tracker.close()
    assert tracked is not None
    mask = as_mask(shown_part(sixty_eight(tracked.points), BOX), CPU)

    def shown(drawn: torch.Tensor) -> torch.Tensor:
        """What a viewer gets of the box: its luma."""
        flat = lay_in(upload(picture, BOX, CPU), drawn, mask, 1.0)
        return flat[: BOX.width * BOX.height].float() / 219

    want = draw(Stages(nets, CPU, None))

    def drawn_db(got: torch.Tensor) -> float:
        """Of what the nets drew, before it is laid in: over the mask's cells, by their weight."""
        weight = F.interpolate(mask, size=got.shape[2:], mode="bilinear", align_corners=False)
        error = (weight * (got - want).square()).sum() / (3 * weight.sum())
        return float(-10 * torch.log10(error))

    # The fast path of CUDA is float16; bfloat16, whose steps are eight times as coarse, must hold too.
    for dtype in (torch.float16, torch.bfloat16):
        got = draw(Stages(copy.deepcopy(nets), CPU, dtype))
        whole, drawn, seen = psnr(got, want, 1.0), drawn_db(got), psnr(shown(got), shown(want), 1.0)
        print(f"{dtype}: drawn {whole:.1f} dB, inside the mask {drawn:.1f} dB, shown {seen:.1f} dB")
        assert whole >= 40
        assert drawn >= 40
        assert seen >= 40


class SlowGraph:
    """Stands in for a CUDA graph: doubles its input, at leisure."""

    def __init__(self, held: torch.Tensor, output: torch.Tensor) -> None:
        self.held, self.output = held, output

    def replay(self) -> None:
        torch.mul(self.held, 2, out=self.output)
        time.sleep(0.002)


def test_two_threads_in_one_graph_got_each_others_faces() -> None:
    captured = _Captured.__new__(_Captured)
    held, output = torch.zeros(1000), torch.zeros(1000)
    graph: Any = SlowGraph(held, output)
    captured._inputs, captured._output, captured._graph = [held], output, graph
    captured._lock = threading.Lock()

    def call(value: float) -> bool:
        with torch.inference_mode():
            return bool((captured(torch.full((1000,), value)) == 2 * value).all())

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(call, [float(value) for value in range(100)]))


def test_float32_was_tensorfloat_on_cuda() -> None:
    flags: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [one.allow_tf32 for one in flags]
    try:
        for one in flags:
            one.allow_tf32 = True
        keep_float32()
        assert [one.allow_tf32 for one in flags] == [False, False]
    finally:
        for one, value in zip(flags, before, strict=True):
            one.allow_tf32 = value


def test_what_the_mask_leaves_comes_back_to_the_sample(clips: Path) -> None:
    (picture,) = pictures(clips / "open" / "o1_man_glasses_512.mp4", 1)
    planes = upload(picture, BOX, CPU)
    mask = torch.zeros(1, 1, 96, 96)
    mask[:, :, 60:80, 30:60] = 1
    out = put_back(picture, BOX, lay_in(planes, torch.zeros(1, 3, 384, 384), mask, 1.0))
    rows, columns = np.nonzero(out.y != picture.y)
    assert BOX.top + 0.6 * BOX.height < rows.min() < rows.max() < BOX.top + 0.86 * BOX.height
    assert BOX.left + 0.29 * BOX.width < columns.min() < columns.max() < BOX.left + 0.65 * BOX.width
    middle = out.y[BOX.top + 200 : BOX.top + 220, BOX.left + 100 : BOX.left + 120]
    assert (middle == 16).all(), "black, in limited range"
    whole = put_back(picture, BOX, lay_in(planes, face_picture(planes), torch.ones(1, 1, 96, 96), 1.0))
    # Scaled there and back only: the colours are its own.
    difference = np.abs(whole.planes.astype(int) - picture.planes.astype(int))
    assert np.percentile(difference, 99) <= 8
    same = put_back(picture, BOX, lay_in(planes, face_picture(planes), torch.ones(1, 1, 96, 96), 0.0))
    assert np.array_equal(same.planes, picture.planes)
