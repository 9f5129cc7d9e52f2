"""A GossipEngine on a vector, to be run in a RemotePeer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ray_gossip.config import Config
from ray_gossip.hive import guard_forks, quiet_hivemind, start_dht
from ray_gossip.hive.gossip import GossipEngine
from ray_gossip.records import RoundReport
from tests.swarm.harness import START_S, Peers, RemotePeer, VectorState


class GossipPeer:
    """One real peer: DHT, libp2p daemon, averager; its whole model is one vector."""

    def __init__(self, config: Config, peer_index: int, size: int, initial_peers: Sequence[str]) -> None:
        guard_forks()
        quiet_hivemind()
        self.dht = start_dht(initial_peers=initial_peers, host="127.0.0.1", start_s=START_S)
        self.engine = GossipEngine(config, dht=self.dht, run_id="test", peer_index=peer_index, state_size=size)
        self.state = VectorState(torch.zeros(size))
        self.engine.attach(self.state)
        self.step = 0

    def multiaddrs(self) -> list[str]:
        return [str(address) for address in self.dht.get_visible_maddrs()]

    def join(self) -> int:
        return len(self.engine.join(founders=self.engine.swarm.num_peers).members)

    def set(self, values: torch.Tensor) -> None:
        self.state.values = values.clone()

    def get(self) -> torch.Tensor:
        return self.state.values.clone()

    def round(self) -> RoundReport:
        """One blocking round."""
        self.step += self.engine.gossip.steps or 1
        (report,) = self.engine.after_step(self.step)
        return report


def start_swarm(config: Config, size: int) -> Peers:
    """Start `swarm.num_peers` peers in parallel and let them join."""
    first = RemotePeer(GossipPeer, config, 0, size, [])
    first.receive(START_S)
    addresses = first.call(GossipPeer.multiaddrs)
    others = [RemotePeer(GossipPeer, config, i, size, addresses) for i in range(1, config.swarm.num_peers)]
    for peer in others:
        peer.receive(START_S)
    peers = Peers([first, *others])
    assert peers.all(GossipPeer.join) == [config.swarm.num_peers] * config.swarm.num_peers
    return peers
