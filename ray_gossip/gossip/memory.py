"""Memory that a training process and its sidecar share: the snapshot, the delta, the signals, and what averaging keeps
from round to round. It has no name, and ends with the last process that has it."""

from __future__ import annotations

import mmap
import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_gossip.config import GossipConfig
from ray_gossip.usage import check_memory

_SIGNALS = 64  # int64 numbers


def num_kept(gossip: GossipConfig, num_parameters: int) -> int:
    """Elements of what averaging keeps from round to round beside the parameters: anchors and outer momentum."""
    arrays = (gossip.compression == "int8") + 2 * (gossip.outer != "none")
    return 1 + arrays * num_parameters if arrays else 0


class Memory:
    """Made by the training process, opened by the sidecar from the same file.

    Args:
        size: elements of snapshot and of delta.
        num_kept: elements of what averaging keeps, see `num_kept`.
        file: descriptor of memory that is there already; None: new memory, all zeros.

    Raises:
        ResourceError: this machine has too little left for new memory.
    """

    def __init__(self, size: int, *, num_kept: int, file: int | None = None) -> None:
        num_bytes = 8 * _SIGNALS + 2 * 4 * size + 2 * 4 * num_kept
        self.file = os.memfd_create("ray_gossip") if file is None else file
        if file is None:
            check_memory(2 * num_bytes, what=f"averaging {4 * size / 1e6:,.0f} MB")  # its averager has as much
            os.ftruncate(self.file, num_bytes)
        whole = torch.frombuffer(mmap.mmap(self.file, num_bytes), dtype=torch.uint8)  # keeps the mapping alive
        sizes = [8 * _SIGNALS, 4 * size, 4 * size, 4 * num_kept, 4 * num_kept]
        signals, snapshot, delta, *kept = torch.split(whole, sizes)
        self.signals: NDArray[np.int64] = signals.numpy().view(np.int64)
        self.snapshot: Tensor = snapshot.view(torch.float32)
        self.delta: Tensor = delta.view(torch.float32)
        # one as it was before a round, one as it is after it: a sidecar may die at any moment
        self.kept: list[Tensor] = [each.view(torch.float32) for each in kept]

    def close_file(self) -> None:
        """The mapping stays."""
        os.close(self.file)
