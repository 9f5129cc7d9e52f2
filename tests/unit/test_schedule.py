"""Who meets whom: partitions, agreement between machines, and how fast each schedule mixes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_gossip.mixing import average_round, squared_spread
from ray_gossip.mixing.schedule import SCHEDULES, group_of, groups, radices

SWARMS = {"num_members": st.integers(1, 60), "group_size": st.integers(1, 12)}
MOMENTS = {"round": st.integers(0, 500), "seed": st.integers(0, 2**40)}


def _spread_left(schedule: str, num_members: int, group_size: int, rounds: range, seed: int = 0) -> float:
    """Mean share of the squared spread that these rounds leave, exactly: each member starts with its own axis."""
    values = np.eye(num_members)
    for round in rounds:
        met = groups(schedule, round=round, num_members=num_members, group_size=group_size, seed=seed)
        values = average_round(values, met)
    return squared_spread(values) / squared_spread(np.eye(num_members))


@given(schedule=st.sampled_from(SCHEDULES), num_nodes=st.integers(1, 7), **SWARMS, **MOMENTS)
def test_every_member_meets_in_exactly_one_group_of_the_allowed_size(
    schedule: str, num_nodes: int, num_members: int, group_size: int, round: int, seed: int
) -> None:
    nodes = [f"node{position % num_nodes}" for position in range(num_members)]
    met = groups(schedule, round=round, num_members=num_members, group_size=group_size, seed=seed, nodes=nodes)
    assert sorted(itertools.chain.from_iterable(met)) == list(range(num_members))
    assert all(group == tuple(sorted(group)) for group in met)
    assert schedule == "all" or max(map(len, met)) <= group_size


@given(schedule=st.sampled_from(("random", "ring")), **SWARMS, **MOMENTS)
def test_groups_are_as_few_and_as_equal_as_possible(
    schedule: str, num_members: int, group_size: int, round: int, seed: int
) -> None:
    met = groups(schedule, round=round, num_members=num_members, group_size=group_size, seed=seed)
    sizes = [len(group) for group in met]
    assert len(sizes) == math.ceil(num_members / group_size)
    assert max(sizes) - min(sizes) <= 1


def test_every_machine_and_version_computes_the_same_groups() -> None:
    random = groups("random", round=3, num_members=10, group_size=4, seed=7)
    assert random == ((0, 6, 9), (1, 5, 8), (2, 3, 4, 7))
    grid = groups("grid", round=5, num_members=11, group_size=4)
    assert grid == ((0, 1, 9, 10), (2, 3, 4, 5), (6, 7, 8))
    nodes = ["a"] * 4 + ["b"] * 4
    local = groups("local", round=3, num_members=8, group_size=2, seed=7, nodes=nodes)
    assert local == ((0, 6), (1, 5), (2, 4), (3, 7))


@given(schedule=st.sampled_from(("random", "grid", "ring", "all")), **SWARMS, **MOMENTS)
def test_a_member_finds_its_own_group(schedule: str, num_members: int, group_size: int, round: int, seed: int) -> None:
    met = groups(schedule, round=round, num_members=num_members, group_size=group_size, seed=seed)
    last = num_members - 1
    own = group_of(last, schedule, round=round, num_members=num_members, group_size=group_size, seed=seed)
    assert last in own
    assert own in met


def test_random_groups_change_with_round_and_seed() -> None:
    drawn = {
        groups("random", round=round, num_members=16, group_size=4, seed=seed)
        for round in range(10)
        for seed in range(10)
    }
    assert len(drawn) == 100


@given(half=st.integers(1, 20), **MOMENTS)
def test_nobody_stays_alone_twice_in_a_row(half: int, round: int, seed: int) -> None:
    alone = []
    for next_round in range(round, round + 2 * half + 1):
        met = groups("random", round=next_round, num_members=2 * half + 1, group_size=2, seed=seed)
        alone += [group[0] for group in met if len(group) == 1]
    assert sorted(alone) == list(range(2 * half + 1))


def test_radices_are_few_then_equal_and_largest_first() -> None:
    assert radices(8, 2) == (2, 2, 2)
    assert radices(6, 4) == (3, 2)
    assert radices(16, 4) == (4, 4)
    assert radices(64, 32) == (8, 8)
    assert radices(512, 32) == (32, 16)
    assert radices(3, 4) == (3,)
    assert radices(1, 1) == (1,)
    assert radices(5, 1) is None


@given(num_members=st.integers(1, 300), group_size=st.integers(2, 20))
def test_a_full_grid_exists_unless_a_prime_factor_exceeds_the_group(num_members: int, group_size: int) -> None:
    sides = radices(num_members, group_size)
    largest_prime = max((p for p in range(2, num_members + 1) if _is_prime_factor(p, num_members)), default=1)
    if largest_prime > group_size:
        assert sides is None
    else:
        assert sides is not None
        assert math.prod(sides) == num_members
        assert max(sides) <= group_size


def _is_prime_factor(number: int, of: int) -> bool:
    return of % number == 0 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def test_a_full_grid_is_exact_after_one_round_per_axis_from_any_round() -> None:
    for num_members, group_size in itertools.product(range(2, 49), (2, 3, 4, 5, 8, 16)):
        sides = radices(num_members, group_size)
        for start in range(len(sides or ())):
            rounds = range(start, start + len(sides or ()))
            assert _spread_left("grid", num_members, group_size, rounds) < 1e-25


def test_an_axis_shorter_than_half_a_group_joins_its_lines() -> None:
    assert radices(14, 13) == (7, 2)
    sizes = [[len(group) for group in groups("grid", round=round, num_members=14, group_size=13)] for round in (0, 1)]
    assert sizes == [[7, 7], [8, 6]]


def test_without_a_full_grid_the_grid_mixes_better_than_random() -> None:
    for num_members, group_size, num_rounds in ((5, 2, 3), (17, 4, 3), (31, 8, 2), (37, 4, 3), (101, 16, 2)):
        assert radices(num_members, group_size) is None
        left = {
            schedule: np.mean(
                [
                    _spread_left(schedule, num_members, group_size, range(start, start + num_rounds), seed=1)
                    for start in range(12)
                ]
            )
            for schedule in ("grid", "random")
        }
        assert left["grid"] < 0.5 * left["random"]


@given(num_members=st.integers(2, 60), group_size=st.integers(2, 12), round=st.integers(0, 500))
def test_a_ring_group_is_a_stretch_of_neighbours(num_members: int, group_size: int, round: int) -> None:
    for group in groups("ring", round=round, num_members=num_members, group_size=group_size):
        gaps = sum((b - a) % num_members > 1 for a, b in itertools.pairwise((*group, group[0])))
        assert gaps <= 1


@given(num_members=st.integers(2, 20), group_size=st.integers(2, 6))
def test_values_travel_all_round_the_ring(num_members: int, group_size: int) -> None:
    values = np.eye(num_members)
    for round in range(2 * num_members):
        values = average_round(values, groups("ring", round=round, num_members=num_members, group_size=group_size))
    assert values.min() > 0


def test_all_is_one_group_whatever_the_group_size() -> None:
    assert groups("all", round=9, num_members=5, group_size=2) == ((0, 1, 2, 3, 4),)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), group_size=st.integers(1, 6), **MOMENTS)
def test_local_groups_stay_on_a_node_except_in_cross_rounds(
    sizes: list[int], group_size: int, round: int, seed: int
) -> None:
    nodes = [node for node, size in enumerate(sizes) for _ in range(size)]
    met = groups(
        "local",
        round=round,
        num_members=len(nodes),
        group_size=group_size,
        seed=seed,
        nodes=nodes,
        cross_every=3,
    )
    if round % 3 != 2:
        assert all(len({nodes[position] for position in group}) == 1 for group in met)
    else:
        for node, size in enumerate(sizes):
            together = [sum(nodes[position] == node for position in group) for group in met]
            assert max(together) <= math.ceil(size / len(met))


def test_the_user_learns_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="known: random, grid, ring, all, local"):
        groups("hypercube", round=0, num_members=4, group_size=2)
    with pytest.raises(ValueError, match="needs the node of each of the 4 members"):
        groups("local", round=0, num_members=4, group_size=2)
    with pytest.raises(ValueError, match="group_size=0"):
        groups("random", round=0, num_members=4, group_size=0)
    with pytest.raises(ValueError, match="position 4 is not in a swarm of 4"):
        group_of(4, "random", round=0, num_members=4, group_size=2)


def test_an_empty_swarm_has_no_groups() -> None:
    assert groups("grid", round=0, num_members=0, group_size=2) == ()
