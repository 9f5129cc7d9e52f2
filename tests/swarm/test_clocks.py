"""Machines whose clocks differ: hivemind's DHT allows 3 s."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import hivemind
import hivemind.dht.protocol
import pytest

from ray_gossip.errors import SwarmError
from ray_gossip.gossip.seat import Listen
from ray_gossip.hive import guard_forks, quiet_hivemind, start_dht, stop_dht
from ray_gossip.hive.process import renew_locks
from ray_gossip.testing import RemotePeer


class Node:
    """A DHT node on a machine whose clock is so many seconds ahead."""

    def __init__(self, initial_peers: Sequence[str], ahead_s: float) -> None:
        guard_forks()
        renew_locks()  # another test's peer may have been killed with one that all have from the same process
        quiet_hivemind()
        hivemind.dht.protocol.get_dht_time = lambda: time.time() + ahead_s
        self.dht: hivemind.DHT | None = None
        self.refused = ""
        try:
            self.dht = start_dht(initial_peers=initial_peers, listen=Listen(), start_s=30.0)
        except SwarmError as error:
            self.refused = str(error)


def addresses(node: Node) -> list[str]:
    assert node.dht is not None
    return [str(address) for address in node.dht.get_visible_maddrs()]


def refused(node: Node) -> str:
    return node.refused


def stop(node: Node) -> None:
    if node.dht is not None:
        stop_dht(node.dht)


@pytest.mark.parametrize(
    ("ahead_s", "line"),
    [
        (10.0, r"is (9\.9|10\.\d) s ahead of that of the swarm, and may differ by 3 s: set both by NTP"),
        (-60.0, r"is (59\.9|60\.\d) s behind that of the swarm, and may differ by 3 s: set both by NTP"),
        (2.0, ""),
    ],
)
def test_a_peer_whose_clock_is_wrong_is_told_so_in_one_line(ahead_s: float, line: str) -> None:
    founder = RemotePeer(Node, (), 0.0)
    late: RemotePeer | None = None
    try:
        founder.receive()  # it is up
        late = RemotePeer(Node, founder.call(addresses), ahead_s)
        late.receive()
        answer = late.call(refused)
        assert re.fullmatch(f".*the clock of this machine {line}" if line else "", answer), answer
        late.call(stop)
        founder.call(stop)
    finally:
        for peer in (late, founder):
            if peer is not None:
                peer.close()
