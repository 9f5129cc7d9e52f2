"""A peer whose training has diverged goes on with a neighbour's model, and not for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ray_gossip.testing import GossipPeer, Peers, start_swarm
from tests.swarm.swarms import blocking, gossip, values_of

SIZE = 1000


@pytest.fixture
def swarm() -> Iterator[Peers]:
    with start_swarm(blocking(2, "train.max_restores=1"), SIZE) as peers:
        yield peers


def diverge(peer: GossipPeer) -> None:
    values = peer.get()
    values[SIZE // 2] = torch.nan
    peer.set(values)


def notices(peer: GossipPeer) -> list[str]:
    return peer.engine.notices


def restored_by_loss(peer: GossipPeer) -> torch.Tensor:
    peer.engine.restore(peer.step, "its training loss is not finite")
    return peer.get()


def test_it_takes_over_the_model_of_another_says_so_and_averages_again_but_once(swarm: Peers) -> None:
    swarm.each(GossipPeer.set, [values_of(0, SIZE), values_of(1, SIZE)])
    swarm[1].call(diverge)
    first, second = swarm.all(gossip)
    assert (first.report.outcome, second.report.outcome) == ("alone", "failed")
    assert torch.equal(swarm[1].call(GossipPeer.get), values_of(0, SIZE))
    (told,) = swarm[1].call(notices)
    assert told == (
        "the training has diverged: at local step 1 its parameters are not finite; it goes on with the model of "
        "peer-00, 1 of train.max_restores=1"
    )
    assert [ended.report.outcome for ended in swarm.all(gossip)] == ["averaged", "averaged"]
    swarm[1].call(diverge)
    swarm[0].send(gossip)
    with pytest.raises(AssertionError, match=r"its parameters are not finite, after train\.max_restores=1"):
        swarm[1].call(gossip)
    assert swarm[0].receive().report.outcome == "alone"


def test_where_all_have_diverged_each_ends_with_the_cause(swarm: Peers) -> None:
    swarm.all(diverge)
    for peer in swarm:
        peer.send(gossip)
    for index, peer in enumerate(swarm):
        cause = f"no other peer has a model to give, peer-0{1 - index}: its parameters are not finite: the training has"
        with pytest.raises(AssertionError, match=cause):
            peer.receive()


def test_a_loss_that_says_so_is_enough(swarm: Peers) -> None:
    swarm.each(GossipPeer.set, [values_of(0, SIZE), values_of(1, SIZE)])
    assert [ended.report.outcome for ended in swarm.all(gossip)] == ["averaged", "averaged"]
    swarm[1].call(GossipPeer.set, values_of(2, SIZE))
    assert torch.equal(swarm[1].call(restored_by_loss), values_of(0, SIZE)), "what the other was at its last round"
