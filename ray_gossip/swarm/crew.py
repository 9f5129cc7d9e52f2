"""The actors of a swarm: what each is told when it is created."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from ray_gossip.config import Config
from ray_gossip.factory import Factories
from ray_gossip.swarm.actor import pack
from ray_gossip.swarm.cluster import nodes
from ray_gossip.swarm.known import Known, Saves
from ray_gossip.swarm.placement import Places


class Crew:
    """Creates them.

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
    ) -> None:
        self._config, self._run_id, self._places, self._known = config, run_id, places, known
        self._start, self._saves = start, saves
        self._luggage: Any = pack(factories)
        self._loopback = False

    def founders(self) -> dict[int, Any]:
        """An actor for each index. Once the places are reserved."""
        self._loopback = len(nodes()) == 1
        # once, however many peers, however large
        self._luggage, start = ray.put(self._luggage), ray.put(self._start)
        self._start = None
        first = self._create(0, [], start=start)
        first_peer = [first.multiaddrs.remote()]
        return {0: first, **{index: self._create(index, first_peer, start=start) for index in [*self._known][1:]}}

    def successor(self, index: int, *, initial_peers: list[str]) -> Any:
        """The next process of a peer that is lost."""
        self._known[index].incarnation += 1
        return self._create(index, initial_peers, start=ray.put(None))

    def _create(self, index: int, initial_peers: list[Any], *, start: Any) -> Any:
        known = self._known[index]
        suffix = f".{known.incarnation}" if known.incarnation else ""  # Ray may not have given the old name back yet
        return self._places.start(
            f"{self._run_id}/peer-{index:02d}{suffix}",
            index,
            config=self._config,
            founder={"run_id": self._run_id, "peer_index": index, **known.before},
            initial_peers=initial_peers,
            loopback=self._loopback,
            luggage=self._luggage,
            start=start,
            saves=self._saves.of(index, incarnation=known.incarnation),
        )
