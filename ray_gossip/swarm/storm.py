"""When which peer is hit on purpose, as `faults:` in the config says."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ray_gossip.config import LASTING, FaultsConfig
from ray_gossip.records import Fault

_FELLING = ("kill", "stop")


class Storm:
    """The faults of a run, from its first to its last swarm.

    Args:
        num_peers: that the run is to have, also when some are away.
        happened: before the run was interrupted.
        seed: of what happens at random, and when.
        clock: seconds, from any moment.
    """

    def __init__(
        self,
        faults: FaultsConfig,
        *,
        num_peers: int,
        seed: int,
        happened: Iterable[Fault] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._faults, self._clock, self._dice = faults, clock, random.Random(seed)
        self._planned = list(faults.plan)
        for fault in happened:
            self._forget(fault)
        self._felled: set[int] = set()  # those that are to be lost: nothing else can happen to them
        self._per_s = faults.per_peer_hour * num_peers / 3600
        self._began_at: float | None = None
        self._next_s = self._pause_s()

    def due(self, rounds: Mapping[int, int]) -> list[Fault]:
        """The faults that happen now; each is told of once. The first question begins the count of seconds.

        Args:
            rounds: the peers that can be hit, each with the latest round of which it has reported the end; -1: none.
        """
        if self._began_at is None:
            self._began_at = self._clock()
        passed_s = self._clock() - self._began_at
        self._felled &= rounds.keys()
        found = []
        for planned in list(self._planned):
            standing = rounds.keys() - self._felled
            may_be_hit = sorted(standing if planned.peer is None else standing & {planned.peer})
            if planned.at_s is not None:
                ready = may_be_hit if passed_s >= planned.at_s else []
            else:
                ready = [index for index in may_be_hit if rounds[index] >= (planned.at_round or 0)]
            if ready:
                self._planned.remove(planned)
                found.append(self._fault(planned.kind, self._dice.choice(ready), planned.for_s))
        while passed_s >= self._next_s:
            self._next_s += self._pause_s()
            kind, where = self._dice.choice(self._faults.kinds), self._dice.random()
            may_be_hit = sorted(rounds.keys() - self._felled)
            if may_be_hit and not (kind in _FELLING and len(may_be_hit) == 1):  # of what fells it, one is always spared
                found.append(self._fault(kind, may_be_hit[int(where * len(may_be_hit))], None))
        return found

    def strike(self, actors: Mapping[int, Any], rounds: Mapping[int, int]) -> Iterator[Fault]:
        """Hit those of these actors that are due; tells of each."""
        for fault in self.due(rounds):
            actors[fault.peer_index].strike.remote(fault.kind, fault.for_s)
            yield fault

    @property
    def num_planned(self) -> int:
        """Faults of the plan that have not happened so far."""
        return len(self._planned)

    def end(self) -> None:
        """No more of them."""
        self._planned.clear()
        self._next_s = math.inf

    def _forget(self, fault: Fault) -> None:
        same = [each for each in self._planned if each.kind == fault.kind and each.peer in (None, fault.peer_index)]
        for planned in same[:1]:
            self._planned.remove(planned)

    def _pause_s(self) -> float:
        return self._dice.expovariate(self._per_s) if self._per_s else math.inf

    def _fault(self, kind: str, peer_index: int, for_s: float | None) -> Fault:
        if kind in _FELLING:
            self._felled.add(peer_index)
        lasts_s = (for_s or self._faults.for_s) if kind in LASTING else 0.0
        return Fault(peer_index=peer_index, wall_time=time.time(), kind=kind, for_s=lasts_s)
