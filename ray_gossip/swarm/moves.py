"""Peers that leave in order, with all that they hold, and go on elsewhere: those of a node that is drained, and those
whose process was told so."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import ray

from ray_gossip.swarm.placement import Places

_HANDS_OVER_S = 30.0  # longest that a model takes to leave a process: as long as a spot instance's notice lasts, mostly


@dataclass(frozen=True)
class _Parting:
    """A peer that has left its swarm, and gives its model."""

    model: Any  # a reference
    until: float


class Moves:
    """Who leaves when, and with what its successor begins.

    Args:
        draining: the ids of nodes that are about to go.
        clock: seconds, from any moment.
    """

    def __init__(
        self, places: Places, draining: Callable[[], frozenset[str]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._places, self._draining, self._clock = places, draining, clock
        self._told: set[int] = set()
        self._partings: dict[int, _Parting] = {}
        self._models: dict[int, Any] = {}  # of those whose successors are not started yet

    def due(self, training: Collection[int]) -> list[int]:
        """The peers, of those that train, that are to be told to leave now; each is told once. One always stays, with
        whom the others can go on; it follows when they are back."""
        self._told &= set(training)
        if not (going := self._draining()):
            return []
        staying = sorted(set(training) - self._told)
        there = [index for index in staying if self._places.node_of(index) in going]
        if there == staying:
            there = there[1:]
        self._told.update(there)
        return there

    def has_left(self, index: int, actor: Any) -> None:
        """It has left the swarm; its process is there to give its model."""
        self._told.discard(index)
        self._partings[index] = _Parting(actor.parting.remote(), self._clock() + _HANDS_OVER_S)

    @property
    def are_awaited(self) -> bool:
        return bool(self._partings)

    def forget(self, index: int) -> None:
        self._partings.pop(index, None)

    def cancel(self) -> None:
        """Nobody goes on elsewhere."""
        self._partings.clear()

    def take_ready(self) -> list[int]:
        """Peers whose processes can end now: they have given their models, or did not in time."""
        ready = []
        for index, parting in list(self._partings.items()):
            is_there = bool(ray.wait([parting.model], timeout=0, fetch_local=False)[0])
            if is_there or self._clock() > parting.until:
                del self._partings[index]
                ready.append(index)
                if is_there:
                    self._models[index] = parting.model
        return ready

    def take_model(self, index: int) -> Any:
        """A reference to the model that this peer's last process has left; None: it has left none, so that the next one
        takes over that of another peer."""
        return self._models.pop(index, None)
