"""A node of the DHT that stores nothing of what others ask it to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hivemind
import pytest
from hivemind.dht.protocol import DHTProtocol
from hivemind.p2p import P2PContext
from hivemind.proto import dht_pb2

from ray_gossip import config
from ray_gossip.gossip.seat import Listen
from ray_gossip.hive import guard_forks, quiet_hivemind, start_dht
from ray_gossip.hive.process import renew_locks
from ray_gossip.secret_file import given
from ray_gossip.testing import GossipPeer, RemotePeer, start_swarm
from tests.swarm.test_membership import SIZE, SoonForgotten, paced_for

LATE_S = 0.2  # the others have answered by then


class Refuses:
    """A node whose answer is always the last, and "no"."""

    def __init__(self, initial_peers: Sequence[str], identity_path: Path) -> None:
        guard_forks()
        renew_locks()
        quiet_hivemind()

        async def refuse(
            protocol: DHTProtocol, request: dht_pb2.StoreRequest, context: P2PContext
        ) -> dht_pb2.StoreResponse:
            await asyncio.sleep(LATE_S)
            return dht_pb2.StoreResponse(store_ok=[False] * len(request.keys), peer=protocol.node_info)

        changed: Any = DHTProtocol
        changed.rpc_store = refuse
        listen = Listen(identity_path=identity_path, secret=given(None))
        self.dht: hivemind.DHT = start_dht(initial_peers=initial_peers, listen=listen, start_s=30.0)


@pytest.mark.parametrize("interval", ["gossip.steps=10", "gossip.seconds=5"])
def test_one_node_that_refuses_declarations_keeps_nobody_out_of_rounds(tmp_path: Path, interval: str) -> None:
    """hivemind tells of the last node that has answered whether it has stored. The declarations of before have expired
    after three seconds here."""
    options = config.load(None, ["gossip.group_size=2", "swarm.num_peers=2", interval])
    with start_swarm(options, SIZE, build=SoonForgotten) as peers:
        node = RemotePeer(Refuses, peers[0].call(GossipPeer.multiaddrs), tmp_path / "identity")
        try:
            node.receive()
            peers.all(paced_for, 4.0, 0.05)
            outcomes = Counter(report.outcome for each in peers.all(paced_for, 11.0, 0.05) for report in each)
        finally:
            node.close()
    assert outcomes["averaged"] >= 2
    assert outcomes.keys() == {"averaged"}
