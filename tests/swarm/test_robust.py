"""A group of real peers, one of which sends what is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from ray_gossip.causes import FAR_OUT, TOO_FEW
from ray_gossip.testing import GossipPeer, Peers, start_swarm
from tests.swarm.swarms import blocking, fill, values_of

SIZE, BAD = 5003, 2
FIRST = random.randrange(20_000, 30_000)
PORTS = (FIRST, FIRST + 5)


def spoil(peer: GossipPeer) -> None:
    peer.set(1e6 * peer.get())


@pytest.fixture(scope="module", params=["clip", "trimmed"])
def peers(request: pytest.FixtureRequest) -> Iterator[Peers]:
    words = ("gossip.group_size=4", f"gossip.robust={request.param}", f"swarm.port_range={[*PORTS]}")
    with start_swarm(blocking(4, *words), SIZE) as peers:
        yield peers


def test_each_has_a_port_of_a_narrow_range_to_itself(peers: Peers) -> None:
    ports = [int(address.split("/")[4]) for each in peers.all(GossipPeer.multiaddrs) for address in each]
    assert len({*ports}) == len(ports) == 4
    assert all(PORTS[0] <= port <= PORTS[1] for port in ports)


def test_the_others_hardly_move_name_it_and_agree(peers: Peers) -> None:
    for index, peer in enumerate(peers):
        peer.call(fill, index)
    peers[BAD].call(spoil)
    reports = peers.all(GossipPeer.round)
    assert [report.outcome for report in reports] == ["averaged"] * 4
    assert {report.cause for report in reports} == {f"peer-{BAD:02d} {FAR_OUT}"}
    honest = torch.stack([values_of(index, SIZE) for index in range(4) if index != BAD])
    for index in range(4):
        if index != BAD:
            moved = peers[index].call(GossipPeer.get) - honest.mean(dim=0)
            assert float(torch.linalg.vector_norm(moved)) < float(torch.linalg.vector_norm(honest[0]))
            assert torch.allclose(peers[index].call(GossipPeer.get), peers[0].call(GossipPeer.get), atol=1e-5)


def test_a_group_in_which_nobody_can_be_outvoted_does_not_average(peers: Peers) -> None:
    for index in (1, BAD):
        peers[index].call(GossipPeer.shutdown)
    reports = Peers([peers[0], peers[3]]).all(GossipPeer.round)
    assert [report.outcome for report in reports] == ["alone"] * 2
    assert all(TOO_FEW in report.cause for report in reports)
