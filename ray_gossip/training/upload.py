"""From host memory to a device."""

from __future__ import annotations

import torch
from torch import Tensor


class Upload:
    """Brings flat vectors to the device. To a GPU by way of pinned memory: from the averager's buffer itself, the
    transfer would wait for all local steps that are queued."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pinned: Tensor | None = None
        self._done = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, flat: Tensor) -> Tensor:
        if self._done is None:
            return flat.to(self.device)
        if self._pinned is None or len(self._pinned) < len(flat):
            self._pinned = torch.empty_like(flat, pin_memory=True)
        self._done.synchronize()  # the transfer before this one has left the pinned memory
        staged = self._pinned[: len(flat)].copy_(flat)
        on_device = staged.to(self.device, non_blocking=True)
        self._done.record()
        return on_device
