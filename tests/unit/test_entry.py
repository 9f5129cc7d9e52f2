"""A peer that comes in waits for its network side, asks it again when it has died meanwhile, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from ray_gossip.config import SwarmConfig
from ray_gossip.errors import SwarmError
from ray_gossip.gossip.commands import Commands, Interrupted
from ray_gossip.gossip.engine import GossipEngine
from ray_gossip.gossip.entry import Entry
from ray_gossip.gossip.handover import Handover
from ray_gossip.gossip.members import Member, View
from tests.unit.dictionary_dht import member

START_S = 1.0


class Sidecars(Commands):
    """Answers each command with the next of these: a value, an error, or None for nothing at all."""

    def __init__(self, *answers: object) -> None:
        self._answers: Iterator[object] = iter(answers)
        self.notices = []

    def check(self) -> None:
        pass

    def wait_until_back(self, within_s: float) -> None:
        time.sleep(min(within_s, 0.05))

    def _call(self, method: str, **arguments: Any) -> Future[Any]:
        future, answer = Future[Any](), next(self._answers, Interrupted("it died"))
        if isinstance(answer, Exception):
            future.set_exception(answer)
        elif answer is not None:
            future.set_result(answer)
        return future


def entry(sidecars: Sidecars) -> Entry:
    engine: Any = SimpleNamespace(averager=sidecars)
    unused: Any = None
    return Entry(
        sidecars,
        unused,
        wait=partial(GossipEngine._wait, engine),
        swarm=SwarmConfig(start_s=START_S),
        peer_index=0,
        data="",
        notices=[],
    )


def test_a_peer_asks_again_what_its_network_side_has_not_answered_because_it_died() -> None:
    running = View((member("A", 1, round=4),))
    assert entry(Sidecars(Interrupted("it died"), running)).state_of_one_that_has_not_begun() is None


class Models:
    """A snapshot that takes over any model."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(digest=lambda: "own")
        self.num_taken = 0

    def take(self, local_step: int) -> None:
        pass

    def take_over(self, handover: Handover) -> list[str]:
        self.num_taken += 1
        return []


@pytest.mark.parametrize("others", [[], [member("B", 1, began_as="b")]], ids=["itself", "another"])
def test_a_founder_whose_first_has_died_begins_with_the_model_of_the_next(others: list[Member]) -> None:
    first, own = member("A", 0, began_as="a"), member("C", 2, began_as="own")
    given = Handover(local_step=0, state=torch.zeros(0))
    answers = ["done", View((first, *others, own)), "it cannot be reached", View((*others, own)), given, "done"]
    beginning, models = entry(Sidecars(*answers)), Models()
    beginning._snapshot, beginning._peer_index = cast(Any, models), 2
    view = beginning.found(founders=2, local_step=0)
    assert view == View((*others, own))
    assert models.num_taken == len(others)


@pytest.mark.parametrize(
    ("answers", "error"),
    [((None,), "the network side of this peer has not answered for 1 s"), ((), "it died")],
    ids=["it never answers", "it dies again and again"],
)
def test_a_peer_that_comes_in_waits_for_its_network_side_for_start_s(answers: tuple[None, ...], error: str) -> None:
    started = time.monotonic()
    with pytest.raises(SwarmError, match=error):
        entry(Sidecars(*answers)).state_of_one_that_has_not_begun()
    assert START_S <= time.monotonic() - started < START_S + 5.0
