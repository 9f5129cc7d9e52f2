"""A sidecar that dies in the final round: its peer takes part all the same, as soon as another one is there."""

from __future__ import annotations

import os
import signal
import time

import pytest

from ray_gossip.gossip.protocols import FinalResult
from ray_gossip.testing import GossipPeer, start_swarm
from tests.swarm.swarms import blocking, distance_from_mean, fill, sidecar

NUM_PEERS = 3


def finish(peer: GossipPeer) -> FinalResult:
    return peer.engine.finish(peer.step)


def finish_later(peer: GossipPeer) -> FinalResult:
    """After some more local steps."""
    ends_at = time.monotonic() + 4.0
    while time.monotonic() < ends_at:
        time.sleep(0.05)
        peer.engine.averager.check()
    return finish(peer)


@pytest.mark.parametrize("killed", [[0], [1], [0, 2], [1, 2]], ids=str)
def test_peers_whose_sidecars_die_in_the_final_round_agree_with_the_others_all_the_same(killed: list[int]) -> None:
    """The last peer comes later than the others; its sidecar may die before. The first one is the host."""
    with start_swarm(blocking(NUM_PEERS, f"gossip.group_size={NUM_PEERS}", "gossip.steps=1000"), 1000) as peers:
        peers.each(fill, [1, 2, 3])
        pids = [peers[index].call(sidecar) for index in killed]
        for peer in peers[:-1]:
            peer.send(finish)
        peers[-1].send(finish_later)
        time.sleep(1.0)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        ended = [peer.receive() for peer in peers]
        assert [(each.outcome, each.agreed, each.cause) for each in ended] == [("averaged", True, "")] * NUM_PEERS
        assert max(peer.call(distance_from_mean, [1, 2, 3]) for peer in peers) < 1e-5
