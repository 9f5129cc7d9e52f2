"""Which peers leave when nodes are drained."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_gossip.config import parse
from ray_gossip.errors import ConfigError
from ray_gossip.swarm.moves import Moves
from ray_gossip.swarm.placement import Places


class OnNodes:
    """Where peers are."""

    def __init__(self, nodes: dict[int, str]) -> None:
        self.nodes = nodes

    def node_of(self, index: int) -> str | None:
        return self.nodes.get(index)


def moves(nodes: dict[int, str], going: set[str]) -> Moves:
    return Moves(cast("Places", OnNodes(nodes)), lambda: frozenset(going))


def test_those_of_a_node_that_is_drained_are_told_once() -> None:
    told = moves({0: "a", 1: "b", 2: "b", 3: "c"}, {"b"})
    assert told.due({0, 1, 2, 3}) == [1, 2]
    assert told.due({0, 1, 2, 3}) == []
    assert told.due({0, 3}) == []


def test_nobody_leaves_while_no_node_goes_or_from_a_place_that_is_not_ours() -> None:
    assert moves({0: "a", 1: "b"}, set()).due({0, 1}) == []
    assert moves({}, {"a"}).due({0, 1}) == []


def test_the_last_one_follows_when_others_are_back() -> None:
    places = {0: "a", 1: "a"}
    told = moves(places, {"a"})
    assert told.due({0, 1}) == [1]
    assert told.due({0}) == [], "it is the last that has the model"
    places[1] = "b"
    assert told.due({0, 1}) == [0]


def test_one_that_is_alone_leaves_too() -> None:
    assert moves({0: "a"}, {"a"}).due({0}) == [0], "it begins again elsewhere, with its own model"


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8), st.sets(st.sampled_from("abc")))
def test_one_always_stays_and_all_others_of_such_nodes_leave(nodes: list[str], going: set[str]) -> None:
    places: dict[int, str] = dict(enumerate(nodes))
    told, training = moves(places, going), set(places)
    for _ in range(2 * len(nodes)):
        leaving = told.due(training)
        training -= set(leaving)
        also = told.due(training)  # while they are away
        assert also == []
        assert training or len(nodes) == 1, "nobody is left"
        for index in leaving:
            places[index] = "elsewhere"
        training |= set(leaving)
    assert not [index for index, node in places.items() if node in going]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"swarm": {"min_peers": 5}}, "above num_peers=4"),
        ({"swarm": {"min_peers": 2, "placement": "SPREAD"}}, "placement=PACK"),
        ({"swarm": {"min_peers": 2}, "engine": "hivemind"}, "engine=gossip"),
        ({"swarm": {"min_peers": 2, "max_replacements": 0}}, "swarm.max_replacements"),
    ],
)
def test_a_least_number_that_makes_no_sense_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(values)


def test_a_place_that_somebody_else_has_given_stays() -> None:
    places = Places(parse({}).swarm, cast("Any", object()))
    places.move(1)
    assert places.node_of(1) is None
    assert places.has_room(1)
