"""Memory that a training process and its sidecar share: the snapshot, the delta, and the signals. It has no name, and
ends with the last process that has it."""

from __future__ import annotations

import mmap
import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SIGNALS = 64  # int64 numbers


class Memory:
    """Made by the training process, opened by the sidecar from the same file.

    Args:
        size: elements of snapshot and of delta.
        file: descriptor of memory that is there already; None: new memory, all zeros.
    """

    def __init__(self, size: int, *, file: int | None = None) -> None:
        num_bytes = 8 * _SIGNALS + 2 * 4 * size
        self.file = os.memfd_create("ray_gossip") if file is None else file
        if file is None:
            os.ftruncate(self.file, num_bytes)
        whole = torch.frombuffer(mmap.mmap(self.file, num_bytes), dtype=torch.uint8)  # keeps the mapping alive
        signals, snapshot, delta = torch.split(whole, [8 * _SIGNALS, 4 * size, 4 * size])
        self.signals: NDArray[np.int64] = signals.numpy().view(np.int64)
        self.snapshot: Tensor = snapshot.view(torch.float32)
        self.delta: Tensor = delta.view(torch.float32)

    def close_file(self) -> None:
        """The mapping stays."""
        os.close(self.file)
