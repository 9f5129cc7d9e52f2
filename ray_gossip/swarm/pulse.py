"""Whether the processes of the peers still answer, which says nothing of how fast they train.

Ray sees that a process has died, but not that it is stopped or stuck for good: it would be waited for without end. Each
actor answers from a thread of its own, so that neither a long evaluation nor a slow local step delays the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

_LONGEST_LOOK_S = 1.0  # of the time between two looks, more does not count: the driver itself stood still


@dataclass
class _Ping:
    answer: Any  # a reference
    silent_s: float = 0.0  # since it was sent, as far as the driver was awake


class Pulse:
    """Asks every peer's process whether it is there, a new question when the last one is answered.

    Args:
        limit_s: a process that answers nothing for so long counts as hung.
        clock: seconds, from any moment.
    """

    def __init__(self, *, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._clock = limit_s, clock
        self._pings: dict[int, _Ping] = {}  # by peer index
        self._asked_at = self._looked_at = clock()

    def silent(self, actors: Mapping[int, Any]) -> list[int]:
        """The peers that have not answered for too long. Waits for nothing; ask again and again."""
        passed_s = min(self._clock() - self._looked_at, _LONGEST_LOOK_S)
        self._looked_at = self._clock()
        self._pings = {index: ping for index, ping in self._pings.items() if index in actors}
        references = [ping.answer for ping in self._pings.values()]
        answered = set(ray.wait(references, num_returns=len(references), timeout=0)[0]) if references else set()
        for index, ping in list(self._pings.items()):
            ping.silent_s += passed_s
            if ping.answer in answered:  # or has failed: the stream of its reports says so
                del self._pings[index]
        if self._clock() - self._asked_at >= self._limit_s / 10:
            self._asked_at = self._clock()
            for index in actors.keys() - self._pings.keys():
                self._pings[index] = _Ping(actors[index].ping.remote())
        return [index for index, ping in self._pings.items() if ping.silent_s >= self._limit_s]
