"""The speech-to-expression net as torch trains it; `net.py` runs the same weights in numpy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retalk_models.hearing import FRAMES, WIDTH
from retalk_models.talkin.net import STEPS_PER_RUN
from retalk_models.talkin.synthetic import CURVES

BANDS = 41
CHANNELS = 96
HIDDEN = 128
KERNEL_1, KERNEL_2, STRIDE = 5, 4, 2
SAID = 96
"""Principal components that are kept of a frame of what is said."""


class RecurrentNet(nn.Module):
    """Log-mel features at 100 Hz, and what is said at 25 Hz, to expression, closure and speaking at 50 Hz.

    Strictly causal: output j sees features up to frame 2 j + 1 and run j // 2, which ends no later. All
    look-ahead is in the targets' delay.
    """

    gist_weight: Tensor
    gist_bias: Tensor

    def __init__(self, size: int, hidden: int = HIDDEN, dropout: float = 0.2) -> None:
        super().__init__()
        self.size, self.hidden = size, hidden
        self.conv1 = nn.Conv1d(BANDS, CHANNELS, KERNEL_1)
        self.conv2 = nn.Conv1d(CHANNELS, hidden, KERNEL_2, stride=STRIDE)
        # Found from the training data before training, and not trained: five minutes of lips would spoil it.
        self.register_buffer("gist_weight", torch.zeros(SAID, WIDTH))
        self.register_buffer("gist_bias", torch.zeros(SAID))
        self.said = nn.Linear(FRAMES * SAID, STEPS_PER_RUN * hidden, bias=False)
        self.recurrent = nn.GRU(hidden, hidden, num_layers=2, batch_first=True, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, size)
        self.gates = nn.Linear(hidden, 2)
        self.synthetic = nn.Linear(hidden, len(CURVES))

    def trunk(self, features: Tensor, said: Tensor) -> Tensor:
        """(batch, frames, 41) and (batch, frames / 4, FRAMES, WIDTH) to (batch, frames / 2, hidden)."""
        flow = nn.functional.pad(features.transpose(1, 2), (KERNEL_1 - 1, 0))
        flow = torch.relu(self.conv1(flow))
        # Two zero frames in front make output j end at frame 2 j + 1.
        flow = self.conv2(nn.functional.pad(flow, (KERNEL_2 - STRIDE, 0))).transpose(1, 2)
        gist = nn.functional.linear(said, self.gist_weight, self.gist_bias).flatten(2)
        runs = self.said(self.dropout(gist))
        runs = runs.reshape(len(runs), -1, self.hidden)[:, : flow.shape[1]]
        out, _ = self.recurrent(self.dropout(torch.relu(flow + runs)))
        kept: Tensor = self.dropout(out)
        return kept

    def forward(self, features: Tensor, said: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Expression (batch, steps, size), gate logits (batch, steps, 2), curves (batch, steps, 5)."""
        out = self.trunk(features, said)
        return self.head(out), self.gates(out), self.synthetic(out)
