"""How long local steps stand still for an all-reduce that the next round would overtake."""

from __future__ import annotations

import statistics
from collections import deque

_TIMES = 2.0  # as long as one usually takes
_FIRST_S = 5.0  # before the first one has ended


class Patience:
    """H local steps between two rounds stay H where the network is slow; but not for long: an all-reduce may hang."""

    def __init__(self) -> None:
        self._recent_s: deque[float] = deque(maxlen=16)

    def took(self, allreduce_s: float) -> None:
        """An all-reduce has ended."""
        self._recent_s.append(allreduce_s)

    @property
    def seconds(self) -> float:
        """How long to wait for one."""
        return _TIMES * statistics.median(self._recent_s) if self._recent_s else _FIRST_S
