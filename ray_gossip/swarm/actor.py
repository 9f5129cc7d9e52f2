"""The actor that hosts one peer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray
from ray.util import get_node_ip_address

from ray_gossip.config import Config
from ray_gossip.errors import SwarmError
from ray_gossip.records import PeerStarted, Record


@ray.remote(concurrency_groups={"control": 2}, max_restarts=0, max_task_retries=0)
class PeerActor:
    """One peer in a Ray actor. `__init__` is on the main thread, as hivemind's forks need.

    Args:
        first_peer: for all but the first peer, a reference to its multiaddrs; nested in a list, so that Ray does not
            wait for it before this peer has done its imports.
        loopback: listen on 127.0.0.1 only: all peers are on one machine.
    """

    def __init__(self, config: Config, *, run_id: str, peer_index: int, first_peer: list[Any], loopback: bool) -> None:
        from ray_gossip.hive import Listen
        from ray_gossip.peer import Founder, Peer

        self._index = peer_index
        self._peer = Peer(
            config,
            listen=Listen((f"/ip4/{'127.0.0.1' if loopback else get_node_ip_address()}/tcp/0",)),
            founder=Founder(run_id=run_id, peer_index=peer_index, has_driver=True),
            initial_peers=lambda: _founder(first_peer[0]) if first_peer else (),
            node=ray.get_runtime_context().get_node_id(),
        )

    def __repr__(self) -> str:
        return f"peer-{self._index:02d}"

    @ray.method(concurrency_group="control")
    def multiaddrs(self) -> tuple[str, ...]:
        return self._peer.multiaddrs()

    @ray.method(concurrency_group="control")
    def started(self) -> PeerStarted:
        return self._peer.started()

    @ray.method(num_returns="streaming")
    def run(self, *, founders: int) -> Iterator[list[Record]]:
        yield from self._peer.run(founders=founders)

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        self._peer.stop()

    @ray.method(concurrency_group="control")
    def model(self) -> bytes:
        return self._peer.model()

    @ray.method(concurrency_group="control")
    def shutdown(self) -> None:
        self._peer.shutdown()


def _founder(multiaddrs: Any) -> tuple[str, ...]:
    try:
        found: tuple[str, ...] = ray.get(multiaddrs)
    except ray.exceptions.RayError as error:
        raise SwarmError("the first peer, through which the others join, did not come up") from error
    return found
