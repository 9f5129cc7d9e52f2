"""Where the peers of a swarm run: a bundle of Ray's for each, which its successor takes over, or leaves for another."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_gossip.config import SwarmConfig
from ray_gossip.errors import SwarmError
from ray_gossip.records import Notice
from ray_gossip.resources import bundle, num_that_fit
from ray_gossip.swarm.actor import PeerActor
from ray_gossip.swarm.cluster import nodes
from ray_gossip.swarm.launching import Launchers
from ray_gossip.swarm.looking import kill, state_of

_ROOM_POLL_S = 1  # how often the driver looks up while Ray looks for room; there it counts whole seconds
_SETTLES_S = 1.0  # after enough bundles are there, for the others
_PATIENCE_S = 3.0  # a cluster that has room says so sooner; then the user is told what is awaited


class Places:
    """A bundle for each peer of a swarm, on its own from when all are there, so that one can move without the others.

    Args:
        group: reserved by somebody else and left to them: nobody moves there; None: `reserve` does so, and `release`
            gives all back.
    """

    def __init__(self, swarm: SwarmConfig, group: PlacementGroup | None) -> None:
        self._swarm, self._given = swarm, group
        self._own: dict[int, PlacementGroup] = {}  # by peer index; of one bundle each
        self._launchers = Launchers(is_used=swarm.preload)

    def reserve(self, deadline: float) -> Iterator[Notice | None]:
        """Wait until Ray has set a bundle aside for every peer.

        Raises:
            SwarmError: it has not by this time, of the monotonic clock.
        """
        if self._given is not None:
            return
        swarm = self._swarm
        if swarm.least < swarm.num_peers:
            yield from self._reserve_some(deadline)
            return
        # all or nothing, so that two runs do not wait for each other's halves; and by the strategy that is asked for
        together = placement_group([bundle(swarm)] * swarm.num_peers, strategy=swarm.placement)
        try:
            yield from self._wait(together.wait, deadline)
            where = placement_group_table(together)["bundles_to_node_id"]
            self._launchers.look(where.values())
        finally:
            remove_placement_group(together)
        self._own = {index: self._alone(on=where[index]) for index in range(swarm.num_peers)}
        for group in self._own.values():
            yield from self._wait(group.wait, deadline)

    def _reserve_some(self, deadline: float) -> Iterator[Notice | None]:
        """As many as there is room for, if they are enough; what the others wait for is seen by an autoscaler."""
        self._own = {index: self._alone() for index in range(self._swarm.num_peers)}

        def are_enough(within_s: float) -> bool:
            if len(self.with_room()) < swarm.least:
                time.sleep(within_s)
            return len(self.with_room()) >= swarm.least

        swarm = self._swarm
        yield from self._wait(are_enough, deadline)
        if len(self.with_room()) < swarm.num_peers:
            time.sleep(_SETTLES_S)  # several come at once
        if (present := len(self.with_room())) < swarm.num_peers:
            text = f"there is room for {present} of {swarm.num_peers} peers: they begin, and the others come later"
            yield Notice(peer_index=-1, wall_time=time.time(), text=text)

    def with_room(self) -> list[int]:
        """Peers whose bundles are there."""
        return [index for index in range(self._swarm.num_peers) if self.has_room(index)]

    def has_room(self, index: int) -> bool:
        """This peer's bundle is there, as far as Ray knows."""
        # not PlacementGroup.wait: with no time to wait it says no to one that is there
        return self._given is not None or placement_group_table(self._own[index])["state"] == "CREATED"

    def _wait(self, is_there: Callable[[int], bool], deadline: float) -> Iterator[Notice | None]:
        swarm = self._swarm
        wanted = f"{swarm.least} times {bundle(swarm)}"
        if num_that_fit(swarm, nodes()):
            why, fix = "other jobs hold the resources", "wait for them, or ask for less"
        else:
            why, fix = "nodes are missing, which its autoscaler is to bring", "ask for less, or raise swarm.start_s"
        say_at = time.monotonic() + _PATIENCE_S
        while not is_there(_ROOM_POLL_S):
            if time.monotonic() >= deadline:
                limit_s = swarm.start_s
                raise SwarmError(f"Ray found no room for {wanted} within swarm.start_s={limit_s:g}: {why}; {fix}")
            if time.monotonic() >= say_at:
                say_at = math.inf
                text = f"waiting for Ray to find room for {wanted}: {why}"
                yield Notice(peer_index=-1, wall_time=time.time(), text=text)
            yield None

    def node_of(self, index: int) -> str | None:
        """The id of the node on which this peer's bundle is; None: it cannot move, or has none just now."""
        if (group := self._own.get(index)) is None:
            return None
        node: str | None = placement_group_table(group)["bundles_to_node_id"].get(0)
        return node or None

    def move(self, index: int) -> None:
        """Another bundle for this peer, wherever Ray has room for it now or later; the same, where they are given."""
        if self._given is None:
            remove_placement_group(self._own[index])
            self._own[index] = self._alone()

    def start(self, name: str, index: int, **arguments: Any) -> Any:
        """An actor in the bundle of this peer, once it is there."""
        return PeerActor.options(  # type: ignore[attr-defined]
            name=name,
            num_cpus=self._swarm.cpus_per_peer,
            num_gpus=self._swarm.gpus_per_peer,
            scheduling_strategy=self._strategy(index),
            runtime_env=self._environment(index),
        ).remote(**arguments)

    def state_of(self, index: int, process: tuple[int, int]) -> Any:
        """What the system says of this process, on the node where this peer's bundle is; a reference."""
        return state_of.options(**self._beside(index)).remote(*process)

    def kill(self, index: int, process: tuple[int, int]) -> None:
        """This process, on that node; waits for nothing."""
        kill.options(**self._beside(index)).remote(*process)

    def release(self) -> None:
        for group in self._own.values():
            remove_placement_group(group)
        self._own.clear()

    def _beside(self, index: int) -> dict[str, Any]:
        """For a task on the node of this peer."""
        return {"scheduling_strategy": self._strategy(index), "runtime_env": self._environment(index)}

    def _environment(self, index: int) -> dict[str, Any]:
        group, bundle_index = (self._own[index], 0) if self._given is None else (self._given, index)
        return self._launchers.environment(placement_group_table(group)["bundles_to_node_id"][bundle_index])

    def _strategy(self, index: int) -> PlacementGroupSchedulingStrategy:
        group, bundle_index = (self._own[index], 0) if self._given is None else (self._given, index)
        return PlacementGroupSchedulingStrategy(group, bundle_index)

    def _alone(self, *, on: str | None = None) -> PlacementGroup:
        return placement_group([bundle(self._swarm)], strategy="STRICT_PACK", _soft_target_node_id=on)
