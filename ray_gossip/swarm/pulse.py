"""Whether the processes of the peers still answer, which says nothing of how fast they train.

Ray sees that a process has died, but not that it is stopped or stuck for good: it would be waited for without end. Each
actor answers from a thread of its own, so that neither a long evaluation nor a slow local step delays the answer. Of
one that does not, the system of its node knows at once whether it is stopped; whether it hangs, nobody knows for sure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from ray_gossip.swarm.looking import STOPPED

_LONGEST_LOOK_S = 1.0  # of the time between two looks, more does not count: the driver itself stood still
_ASK_EVERY_S = 1.0
_STOPPED_S = 5.0  # of silence, for a process that is stopped: somebody may mean to wake it again
_LOOK_S, _LOOK_AGAIN_S = 3.0, 2.0  # of silence, when the system is asked for the first time; and how long after that


@dataclass
class _Ping:
    answer: Any  # a reference
    silent_s: float = 0.0  # since it was sent, as far as the driver was awake
    look_at_s: float = _LOOK_S  # of silence, when the system of its node is to be asked
    state: Any = None  # a reference to what that says; None: it is not being asked
    is_stopped: bool = False  # when it was last asked; one that has been woken answers the ping


class Pulse:
    """Asks every peer's process whether it is there, a new question when the last one is answered.

    Args:
        limit_s: a process that answers nothing for so long counts as hung.
        state_of: asks the system of a peer's node for the state of its process: a reference, as `looking.state_of`.
        clock: seconds, from any moment.
    """

    def __init__(
        self, limit_s: float, state_of: Callable[[int], Any], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit_s, self._state_of, self._clock = limit_s, state_of, clock
        self._pings: dict[int, _Ping] = {}  # by peer index
        self._asked_at = self._looked_at = clock()

    def lost(self, actors: Mapping[int, Any]) -> dict[int, str]:
        """Why each peer counts as lost that has not answered for too long. Waits for nothing; ask again and again."""
        passed_s = min(self._clock() - self._looked_at, _LONGEST_LOOK_S)
        self._looked_at = self._clock()
        self._pings = {index: ping for index, ping in self._pings.items() if index in actors}
        answered = _ready([ping.answer for ping in self._pings.values()])
        for index, ping in list(self._pings.items()):
            ping.silent_s += passed_s
            if ping.answer in answered:  # or has failed: the stream of its reports says so
                del self._pings[index]
        if self._clock() - self._asked_at >= min(_ASK_EVERY_S, self._limit_s / 10):
            self._asked_at = self._clock()
            for index in actors.keys() - self._pings.keys():
                self._pings[index] = _Ping(actors[index].ping.remote())
        return {index: cause for index, ping in self._pings.items() if (cause := self._cause(index, ping))}

    def _cause(self, index: int, ping: _Ping) -> str:
        """Empty as long as it may be well."""
        if ping.silent_s >= self._limit_s:
            return f"its process has not answered for swarm.silent_s={self._limit_s:g}: it is stopped, or hangs"
        if ping.state is None and ping.silent_s >= ping.look_at_s:
            ping.state = self._state_of(index)
        elif ping.state is not None and _ready([ping.state]):
            ping.is_stopped = _told(ping.state) == STOPPED
            ping.state, ping.look_at_s = None, ping.silent_s + _LOOK_AGAIN_S
        if ping.is_stopped and ping.silent_s >= _STOPPED_S:
            return f"its process is stopped, and has not answered for {ping.silent_s:.0f} s"
        return ""


def _ready(references: list[Any]) -> set[Any]:
    return set(ray.wait(references, num_returns=len(references), timeout=0)[0]) if references else set()


def _told(reference: Any) -> str:
    try:
        told: str = ray.get(reference)
    except ray.exceptions.RayError:  # its node is gone, which Ray will say of the peer as well
        return ""
    return told
