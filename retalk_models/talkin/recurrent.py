"""The speech-to-expression net as torch trains it; `net.py` runs the same weights without torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retalk_models.talkin.synthetic import CURVES

BANDS = 41
CHANNELS = 96
HIDDEN = 160
KERNEL_1, KERNEL_2, STRIDE = 5, 4, 2
PHONES = 84
PHONE_STEPS = 3


class RecurrentNet(nn.Module):
    """(batch, frames, 41) features at 100 Hz and (batch, frames // 2, 84) phone scores to expression.

    And to closure and speaking, all at 50 Hz.

    Strictly causal: output j sees features up to frame 2 j + 1. All look-ahead is in the targets' delay.
    """

    def __init__(self, size: int, hidden: int = HIDDEN, dropout: float = 0.2) -> None:
        super().__init__()
        self.size = size
        self.conv1 = nn.Conv1d(BANDS, CHANNELS, KERNEL_1)
        self.conv2 = nn.Conv1d(CHANNELS, hidden, KERNEL_2, stride=STRIDE)
        self.phones = nn.Conv1d(PHONES, hidden, PHONE_STEPS, bias=False)
        self.recurrent = nn.GRU(hidden, hidden, num_layers=2, batch_first=True, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.unheard = nn.Dropout(0.5 * dropout)
        self.head = nn.Linear(hidden, size)
        self.gates = nn.Linear(hidden, 2)
        self.synthetic = nn.Linear(hidden, len(CURVES))

    def trunk(self, features: Tensor, phones: Tensor) -> Tensor:
        """(batch, frames // 2, hidden)."""
        flow = nn.functional.pad(features.transpose(1, 2), (KERNEL_1 - 1, 0))
        flow = torch.relu(self.conv1(flow))
        # Two zero frames in front make output j end at frame 2 j + 1.
        flow = self.conv2(nn.functional.pad(flow, (KERNEL_2 - STRIDE, 0)))
        heard = self.unheard(phones).transpose(1, 2)
        flow = torch.relu(flow + self.phones(nn.functional.pad(heard, (PHONE_STEPS - 1, 0))))
        out, _ = self.recurrent(self.dropout(flow.transpose(1, 2)))
        kept: Tensor = self.dropout(out)
        return kept

    def forward(self, features: Tensor, phones: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Expression (batch, steps, size), gate logits (batch, steps, 2), curves (batch, steps, 5)."""
        out = self.trunk(features, phones)
        return self.head(out), self.gates(out), self.synthetic(out)
