"""Lets PyPI's torchvision, a CUDA build, import beside a CPU build of torch: for these tests only.

Its compiled operators do not load then, and its Python part, all that is used here, will not import while two
of them have no signature. They are given that, and nothing to run: whoever called them would be told so.
"""

from __future__ import annotations

import torch

if torch.version.cuda is None:
    SIGNATURES = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        signature = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        SIGNATURES.define(signature)  # type: ignore[no-untyped-call]
