"""The actors of a swarm: what each is told when it is created, and which there are."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ray

from ray_gossip.config import Config
from ray_gossip.factory import Factories
from ray_gossip.gossip.admission import Secret
from ray_gossip.swarm.actor import pack
from ray_gossip.swarm.cluster import nodes
from ray_gossip.swarm.known import Known, Saves
from ray_gossip.swarm.placement import Places
from ray_gossip.swarm.starting import Starting

_NOBODY = -1


class Crew:
    """Creates them, and ends them.

    Attributes:
        actors: those that there are, by peer index.
        starting: those of them that are not up yet.

    Args:
        known: what is known of each peer, by index.
        start: a snapshot that all founders go on from; None: they begin with a new model.
    """

    def __init__(
        self,
        config: Config,
        *,
        run_id: str,
        places: Places,
        known: Mapping[int, Known],
        factories: Factories,
        start: bytes | None,
        saves: Saves,
        secret: Secret | None,
    ) -> None:
        self._secret = secret
        self._config, self._run_id, self._places, self._known = config, run_id, places, known
        self._start, self._saves = start, saves
        self._luggage: Any = pack(factories)
        self._loopback = False
        self.actors: dict[int, Any] = {}
        self._beginning = _NOBODY  # the last peer that was to begin the swarm again
        self.starting = Starting(limit_s=config.swarm.start_s)

    def create_founders(self, indices: Sequence[int]) -> None:
        """An actor for each of these; the others come later. Once the places are reserved."""
        self._loopback = len(nodes()) == 1 and self._config.swarm.least == self._config.swarm.num_peers
        # once, however many peers, however large
        self._luggage, start = ray.put(self._luggage), ray.put(self._start)
        self._start = None
        first, *others = indices
        self.actors = {first: self._create(first, [], start=start)}
        first_peer = [self.actors[first].multiaddrs.remote()]
        self.actors |= {index: self._create(index, first_peer, start=start) for index in others}
        for index, actor in self.actors.items():
            self.starting.add(index, actor)

    def create_successor(self, index: int, *, initial_peers: list[str], model: Any = None) -> None:
        """The next process of a peer.

        Args:
            initial_peers: none: nobody is there, and it begins again with its model.
            model: a reference to the snapshot that the one before has left; None: it is lost.
        """
        self._known[index].incarnation += 1
        begins = {"begins_again": True} if not initial_peers else {}
        if begins or index == self._beginning:
            self._beginning = index if begins else _NOBODY
        self.actors[index] = actor = self._create(index, initial_peers, start=model or ray.put(None), **begins)
        self.starting.add(index, actor, is_successor=True)

    @property
    def is_beginning_again(self) -> bool:
        """There is a process that needs nobody else to begin."""
        return self._beginning in self.actors

    def stop(self, last_mark: Callable[[int], int] | None, *, within_s: float) -> None:
        """Ask all to end after their present local step.

        Args:
            last_mark: names the checkpoint for which they save themselves once more, from the local step past which
                none of those that answer within this time saves itself by itself; None: they do not.
        """
        answers = [actor.stop.remote(saves=last_mark is not None) for actor in self.actors.values()]
        if last_mark is None or not answers:
            return
        ready, _ = ray.wait(answers, num_returns=len(answers), timeout=within_s)
        reached = [0]
        for answer in ready:
            with contextlib.suppress(ray.exceptions.RayError):  # it is lost, and its stream will say why
                reached.append(ray.get(answer))
        mark = last_mark(max(reached))
        for actor in self.actors.values():
            actor.save_last.remote(mark)

    def drop_starting(self) -> None:
        """Kill those that are not up yet, which could not answer."""
        for index in self.starting.indices:
            self.end(index)

    def end(self, index: int) -> None:
        """Whatever its process does."""
        ray.kill(self.actors.pop(index))
        self.starting.forget(index)

    def close(self, *, until: Callable[[], float]) -> None:
        """End all in order; what has not ended at this moment of the monotonic clock is killed."""
        shutdowns = [actor.shutdown.remote() for actor in self.actors.values()]
        if shutdowns:
            ray.wait(shutdowns, num_returns=len(shutdowns), timeout=max(0.0, until() - time.monotonic()))
        for actor in self.actors.values():
            ray.kill(actor)
        self.actors.clear()

    def answer(self, what: str, indices: Iterable[int]) -> bytes | None:
        """What the first of these peers that answers this question has to give; None: none does, within
        `swarm.final_s` each."""
        for actor in [self.actors[index] for index in indices if index in self.actors]:
            with contextlib.suppress(ray.exceptions.RayError):  # it is lost, and its stream will say why
                given: bytes = ray.get(getattr(actor, what).remote(), timeout=self._config.swarm.final_s)
                return given
        return None

    def _create(self, index: int, initial_peers: list[Any], *, start: Any, **place: bool) -> Any:
        known = self._known[index]
        suffix = f".{known.incarnation}" if known.incarnation else ""  # Ray may not have given the old name back yet
        return self._places.start(
            f"{self._run_id}/peer-{index:02d}{suffix}",
            index,
            config=self._config,
            founder={"run_id": self._run_id, "peer_index": index, **known.before, **place},
            initial_peers=initial_peers,
            loopback=self._loopback,
            luggage=self._luggage,
            start=start,
            saves=self._saves.of(index, incarnation=known.incarnation),
            secret=self._secret,
        )
