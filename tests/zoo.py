"""Models as people have them. Averaging all parameters and all float buffers would break each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """For the digits: a body and a head."""

    def __init__(self, in_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.body = nn.Linear(64, 64, bias=False)
        self.head = nn.Linear(64, num_classes)
        self.extend()

    def extend(self) -> None:
        """What a kind adds."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images.flatten(1)).relu())
        return logits


class Masked(Plain):
    """A causal mask as a float buffer: its sum over peers, minus infinity, is no number."""

    def extend(self) -> None:
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))


class Growing(Plain):
    """A buffer that is made in the first forward pass: after the peer has joined."""

    positions: Tensor | None

    def extend(self) -> None:
        self.register_buffer("positions", None, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.positions is None:
            self.positions = torch.arange(64.0, device=images.device) / 64
        return super().forward(images.flatten(1) + self.positions)


class Expanded(Plain):
    """A buffer whose elements share memory: it cannot be written to."""

    def extend(self) -> None:
        self.register_buffer("eye", torch.eye(4).expand(3, 4, 4))


class Quantised(Plain):
    """A frozen parameter of bytes."""

    def extend(self) -> None:
        self.codes = nn.Parameter(torch.arange(9, dtype=torch.uint8), requires_grad=False)


class TiedByData(Plain):
    """Two parameters in one memory: a delta that is added to each is added twice."""

    def extend(self) -> None:
        self.again = nn.Linear(64, 64, bias=False)
        self.again.weight.data = self.body.weight.data

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.again(self.body(images.flatten(1)).relu()))
        return logits


class Frozen(nn.Module):
    """A pretrained body that stays in evaluation mode: its statistics are not those of the data."""

    def __init__(self, in_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), self.norm, nn.ReLU()).requires_grad_(False)
        self.norm.running_mean = torch.full((64,), -1.0)
        self.norm.running_var = torch.full((64,), 0.02)
        self.head = nn.Linear(64, num_classes)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits


class NumpyInit(Plain):
    """Weights from numpy, which no seed of ours reaches: peers begin apart."""

    def extend(self) -> None:
        self.body.weight.data.copy_(torch.from_numpy(np.random.randn(64, 64) / 8))
