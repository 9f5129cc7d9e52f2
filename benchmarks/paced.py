"""A network whose local step takes a fixed time and no CPU, as on a GPU: more peers than cores keep their own speed.

`model.factory=paced:build`, with this folder on PYTHONPATH.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from ray_gossip import models
from ray_gossip.config import Config

STEP_S = 0.05


class Paced(nn.Module):
    """The default network for images, which waits in each training step."""

    def __init__(self, network: nn.Module, step_s: float) -> None:
        super().__init__()
        self.network, self._step_s = network, step_s

    def forward(self, inputs: torch.Tensor) -> Any:
        if self.training:
            time.sleep(self._step_s)
        return self.network(inputs)


def build(in_shape: tuple[int, ...], num_classes: int, step_s: float = STEP_S) -> nn.Module:
    return Paced(models.build(Config().model, in_shape=in_shape, num_classes=num_classes, seed=0), step_s)
