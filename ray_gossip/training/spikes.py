"""Whether a training loss says that the training has gone wrong."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

_USUAL, _ENOUGH = 50, 10  # losses of which the median is the usual one; fewer say too little


class SpikeGuard:
    """Sees a peer's losses one after the other.

    Args:
        factor: how many times the usual loss is too much; None: only what is not finite is.
    """

    def __init__(self, factor: float | None) -> None:
        self._factor = factor
        self._losses: deque[float] = deque(maxlen=_USUAL)

    def see(self, loss: float) -> str:
        """What is wrong with it; mostly nothing."""
        if not math.isfinite(loss):
            return "its training loss is not finite"
        if self._factor is not None and len(self._losses) >= _ENOUGH and loss > self._factor * median(self._losses) > 0:
            return (
                f"its training loss {loss:.3g} is above train.loss_spike={self._factor:g} times the usual "
                f"{median(self._losses):.3g}"
            )
        self._losses.append(loss)
        return ""
