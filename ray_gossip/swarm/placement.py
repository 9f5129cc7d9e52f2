"""Where the peers of a swarm run: a bundle of Ray's for each, which a peer's successor takes over."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_gossip.config import SwarmConfig
from ray_gossip.errors import SwarmError
from ray_gossip.records import Notice
from ray_gossip.resources import bundle, num_that_fit
from ray_gossip.swarm.actor import PeerActor
from ray_gossip.swarm.cluster import nodes

_ROOM_POLL_S = 1  # how often the driver looks up while Ray looks for room; there it counts whole seconds
_PATIENCE_S = 3.0  # a cluster that has room says so sooner; then the user is told what is awaited


class Places:
    """A bundle for each peer of a swarm.

    Args:
        group: reserved by somebody else and left to them; None: `reserve` does so, and `release` gives it back.
    """

    def __init__(self, swarm: SwarmConfig, group: PlacementGroup | None) -> None:
        self._swarm, self._group, self._owns_group = swarm, group, group is None

    def reserve(self, deadline: float) -> Iterator[Notice | None]:
        """Wait until Ray has set a bundle aside for every peer.

        Raises:
            SwarmError: it has not by this time, of the monotonic clock.
        """
        if self._group is not None:
            return
        swarm = self._swarm
        wanted = f"{swarm.num_peers} times {bundle(swarm)}"
        self._group = placement_group([bundle(swarm)] * swarm.num_peers, strategy=swarm.placement)
        if num_that_fit(swarm, nodes()):
            why, fix = "other jobs hold the resources", "wait for them, or ask for less"
        else:
            why, fix = "nodes are missing, which its autoscaler is to bring", "ask for less, or raise swarm.start_s"
        say_at = time.monotonic() + _PATIENCE_S
        while not self._group.wait(_ROOM_POLL_S):
            if time.monotonic() >= deadline:
                limit_s = swarm.start_s
                raise SwarmError(f"Ray found no room for {wanted} within swarm.start_s={limit_s:g}: {why}; {fix}")
            if time.monotonic() >= say_at:
                say_at = math.inf
                text = f"waiting for Ray to find room for {wanted}: {why}"
                yield Notice(peer_index=-1, wall_time=time.time(), text=text)
            yield None

    def start(self, name: str, index: int, **arguments: Any) -> Any:
        """An actor in the bundle of this peer."""
        return PeerActor.options(  # type: ignore[attr-defined]
            name=name,
            num_cpus=self._swarm.cpus_per_peer,
            num_gpus=self._swarm.gpus_per_peer,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, index),
            runtime_env={"env_vars": {"RAY_worker_niceness": "0"}},
        ).remote(**arguments)

    def release(self) -> None:
        if self._group is not None and self._owns_group:
            remove_placement_group(self._group)
            self._group = None
