"""Loops whose models hold more than what trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest
import torch
from torch import nn

import ray_gossip
from ray_gossip.testing import START_S, RemotePeer
from tests import zoo

CONFIG = {"gossip": {"steps": 1, "overlap": False, "matchmaking_s": 20}, "swarm": {"final_s": 20, "start_s": 30}}


class Loop:
    """A process that trains one of the zoo on random images."""

    def __init__(self, kind: type[nn.Module], initial_peers: Sequence[str]) -> None:
        torch.manual_seed(len(initial_peers))
        self.model = kind((1, 8, 8), 10)
        self.model.train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.peer = ray_gossip.join(self.model, initial_peers=initial_peers, config=CONFIG)

    def multiaddrs(self) -> list[str]:
        return list(self.peer.multiaddrs)

    def steps(self, number: int) -> list[str]:
        """Outcomes of the rounds that these local steps brought about."""
        outcomes: list[str] = []
        for _ in range(number):
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(torch.randn(8, 1, 8, 8)), torch.randint(10, (8,)))
            loss.backward()
            self.optimizer.step()
            outcomes += [report.outcome for report in self.peer.step()]
        return outcomes

    def unfreeze(self) -> None:
        self.model.requires_grad_(True)

    def leave(self) -> str | None:
        return self.peer.leave()

    def values(self) -> dict[str, torch.Tensor]:
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {name: tensor.detach().clone() for name, tensor in named}


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[RemotePeer, RemotePeer]]:
    """Two loops of one swarm."""
    with ExitStack() as stack:
        first = RemotePeer(Loop, request.param, [])
        stack.callback(first.close)
        first.receive(START_S)
        second = RemotePeer(Loop, request.param, first.call(Loop.multiaddrs))
        stack.callback(second.close)
        second.receive(START_S)
        yield first, second


KINDS = [zoo.Masked, zoo.Growing, zoo.Expanded, zoo.Quantised, zoo.TiedByData, zoo.Frozen, zoo.NumpyInit]


@pytest.mark.parametrize("pair", KINDS, ids=lambda kind: kind.__name__, indirect=True)
def test_two_loops_average_what_trains_and_end_with_one_model(pair: tuple[RemotePeer, RemotePeer]) -> None:
    before = pair[1].call(Loop.values)
    for loop in pair:
        loop.send(Loop.steps, 3)
    assert [loop.receive(60) for loop in pair] == [["averaged"] * 3] * 2
    for loop in pair:
        loop.send(Loop.leave)
    assert [loop.receive(60) for loop in pair] == ["averaged"] * 2
    one, other = (loop.call(Loop.values) for loop in pair)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], msg=name)
    for name in ("mask", "eye", "codes", "norm.running_mean", "body.1.weight"):
        if name in before:
            assert other[name].equal(before[name]), name


@pytest.mark.parametrize("pair", [zoo.Frozen], ids=["Frozen"], indirect=True)
def test_what_is_unfrozen_after_the_loop_has_joined_is_one_line(pair: tuple[RemotePeer, RemotePeer]) -> None:
    pair[0].call(Loop.unfreeze)
    with pytest.raises(AssertionError, match=r"UserError: norm\.weight is not averaged, .*: unfreeze it before\n"):
        pair[0].call(Loop.steps, 1)
