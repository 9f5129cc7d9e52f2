"""What a newcomer must share with the swarm that it joins."""

from __future__ import annotations

import json
from concurrent.futures import Future
from typing import Any

import pytest

from ray_gossip import config
from ray_gossip.errors import ConfigError, SwarmError
from ray_gossip.gossip.charter import Charter
from ray_gossip.hive.charter import read_charter


def charter(*overrides: str) -> Charter:
    return Charter.of(config.load(None, overrides), run_id="a-run", has_driver=True)


@pytest.mark.parametrize(
    "words",
    [(), ("gossip.alpha=0.5",), ("swarm.num_peers=9", "data.batch_size=7"), ("optimizer.lr=1",), ("data.root=/x",)],
)
def test_peers_may_differ_in_what_is_their_own(words: tuple[str, ...]) -> None:
    charter().check(config.load(None, words))


@pytest.mark.parametrize(
    ("of_swarm", "own", "advice"),
    [
        ("gossip.group_size=4", "gossip.group_size=8", "give gossip.group_size=4"),
        ("model.name=mlp", "model.name=cnn", "give model.name=mlp"),
        ("gossip.seconds=5", "gossip.steps=20", "give gossip.seconds=5.0 gossip.steps=null"),
        ("seed=1", "seed=2", "give seed=1"),
        ("data.shards=label_sorted", "seed=0", "give data.shards=label_sorted"),
    ],
)
def test_others_are_told_what_to_give(of_swarm: str, own: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice + "$"):
        charter(of_swarm).check(config.load(None, [own]))


class OneRecord:
    """A DHT that holds one value, or none; or that hangs."""

    def __init__(self, value: str | None, *, hangs: bool = False) -> None:
        self.value, self.hangs = value, hangs

    def get(self, key: str, *, latest: bool, return_future: bool) -> Future[OneRecord | None]:
        future: Future[OneRecord | None] = Future()
        if not self.hangs:
            future.set_result(None if self.value is None else self)
        return future


def test_it_is_read_as_it_was_written() -> None:
    dht: Any = OneRecord(charter("gossip.steps=7").to_wire())
    assert read_charter(dht, within_s=1.0) == charter("gossip.steps=7")


@pytest.mark.parametrize("wire", ["no JSON", "{}", json.dumps(["a-run", "four", True, {}])])
def test_another_version_is_said_to_be_one(wire: str) -> None:
    dht: Any = OneRecord(wire)
    with pytest.raises(SwarmError, match="another version"):
        read_charter(dht, within_s=1.0)


def test_a_dht_that_hangs_is_not_waited_for_longer_than_asked() -> None:
    dht: Any = OneRecord("", hangs=True)
    with pytest.raises(SwarmError, match="did not answer within"):
        read_charter(dht, within_s=0.0)


def test_no_swarm_is_said_to_be_none_in_time() -> None:
    dht: Any = OneRecord(None)
    with pytest.raises(SwarmError, match="no swarm of ray_gossip was found"):
        read_charter(dht, within_s=0.0)
