"""How long an all-reduce may take, learned from those before it."""

from __future__ import annotations

from collections import deque

_LEAST_S = 5.0  # a machine may stand still for a second or two
_SLACK = 4.0  # times the slowest of the recent ones
_ENOUGH = 3  # of which a deadline is learned
_KEPT = 16


class Deadline:
    """Of one peer's all-reduces.

    Args:
        cap_s: the longest deadline, and the one that counts until enough all-reduces have ended.
    """

    def __init__(self, cap_s: float) -> None:
        self._cap_s = cap_s
        self._recent: deque[tuple[float, int]] = deque(maxlen=_KEPT)  # seconds, bytes

    def of(self, num_bytes: int) -> float:
        """In seconds, for an all-reduce of so many bytes: more bytes than before take longer."""
        if len(self._recent) < _ENOUGH:
            return self._cap_s
        slowest_s = max(seconds * max(1.0, num_bytes / before) for seconds, before in self._recent)
        return min(self._cap_s, max(_LEAST_S, _SLACK * slowest_s))

    def met(self, seconds: float, num_bytes: int) -> None:
        """An all-reduce of so many bytes has ended after so long."""
        self._recent.append((seconds, max(1, num_bytes)))

    def missed(self) -> None:
        """The deadline has passed: what was learned is no longer true, it may be the network that became slower."""
        self._recent.clear()
