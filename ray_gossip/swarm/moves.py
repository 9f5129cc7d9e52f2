"""Peers that leave in order, with all that they hold, and go on elsewhere: those of a node that is drained, and those
whose process was told so."""

from __future__ import annotations

import contextlib
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
        self._away: set[int] = set()  # those that were told and do not train elsewhere so far
        self._partings: dict[int, _Parting] = {}
        self._models: dict[int, Any] = {}  # of those whose successors are not started yet

    def due(self, training: Collection[int]) -> list[int]:
        """The peers, of those that train, that are to be told to leave now; each is told once. While others are away,
        or about to be, one stays with whom they can go on; it follows when they are back."""
        self._told &= set(training)
        self._away -= set(training) - self._told
        if not (going := self._draining()):
            return []
        staying = sorted(set(training) - self._told)
        there = [index for index in staying if self._places.node_of(index) in going]
        if there == staying and (len(there) > 1 or self._away):
            there = there[1:]
        self._told.update(there)
        self._away.update(there)
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
            is_there = bool(ray.wait([parting.model], timeout=0)[0])  # on this node: that of the peer may be gone soon
            if is_there or self._clock() > parting.until:
                del self._partings[index]
                ready.append(index)
                self._models[index] = _here(parting.model) if is_there else None
        return ready

    @property
    def has_models(self) -> bool:
        """Of peers that are away, but have not lost anything."""
        return bool(self._partings) or self.founder() is not None

    def founder(self) -> int | None:
        """Of peers that have brought their models along, one; None: there is none."""
        return min((index for index, model in self._models.items() if model is not None), default=None)

    def take_model(self, index: int) -> Any:
        """A reference to the model that this peer's last process has left; None: it has left none, so that the next one
        takes over that of another peer."""
        return self._models.pop(index, None)


def _here(model: Any) -> Any:
    """A reference to the same, which does not go with the node from which it comes; None: there is none."""
    with contextlib.suppress(ray.exceptions.RayError):  # its process has died meanwhile
        value = ray.get(model)
        return None if value is None else ray.put(value)
    return None
