"""How fast a loop goes, for a driver that is told now and then."""

from __future__ import annotations

import math
import time

from torch.optim import Optimizer

from ray_gossip.records import Progress


class Rate:
    """Begin it anew when the loop begins."""

    def __init__(self, *, local_step: int = 0) -> None:
        self._taken_at, self._samples, self._local_step = time.monotonic(), 0, local_step

    def take(
        self, *, peer_index: int, local_step: int, samples: int, samples_before: int, optimizer: Optimizer | None
    ) -> list[Progress]:
        """Since this was last called; nothing, where the loop has not gone on.

        Args:
            samples: since the loop began.
            samples_before: that earlier processes of this peer have seen.
            optimizer: whose learning rate is told.
        """
        if local_step == self._local_step:
            return []
        now = time.monotonic()
        rate = (samples - self._samples) / max(now - self._taken_at, 1e-9)
        self._taken_at, self._samples, self._local_step = now, samples, local_step
        groups = [] if optimizer is None else optimizer.param_groups
        return [
            Progress(
                peer_index=peer_index,
                wall_time=time.time(),
                local_step=local_step,
                samples=samples + samples_before,
                data_epoch=math.nan,
                lr=float(groups[0]["lr"]) if groups else None,
                samples_per_s=rate,
            )
        ]
