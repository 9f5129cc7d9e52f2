"""Who meets whom in a round: pure functions that every peer computes by itself, without a message.

A schedule splits the positions 0..num_members-1 of the sorted member list into disjoint groups. How well a
swarm mixes in one round depends on the number of groups alone, not on their sizes (`mixing.contraction`). So
groups are as few as `group_size` allows and then as equal as possible: 5 members with group_size 4 meet as
3+2, not as 4+1, and no peer is left alone that need not be.

Peers on different machines and Python versions must agree. Shuffling therefore uses neither `random.shuffle`
nor `Generator.permutation`, whose algorithms may change between versions, but sorts the raw 64-bit words of
PCG64: numpy guarantees that a fixed seed will always give the same ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Groups = tuple[tuple[int, ...], ...]
_Order = NDArray[np.intp]  # [num_members], positions

_DEALS = 64  # rounds after which a ragged grid starts over; bounds the work of a late round


@dataclass(frozen=True, kw_only=True)
class _Meeting:
    """What a schedule is asked."""

    round: int
    num_members: int
    group_size: int
    seed: int
    nodes: Sequence[Hashable] | None
    cross_every: int


def groups(
    schedule: str,
    *,
    round: int,
    num_members: int,
    group_size: int,
    seed: int = 0,
    nodes: Sequence[Hashable] | None = None,
    cross_every: int = 4,
) -> Groups:
    """All groups of a round: a partition of range(num_members) into sorted groups of at most `group_size`.

    Args:
        schedule: one of SCHEDULES.
        round: 0 or more.
        group_size: `all` ignores it.
        seed: shared by the swarm.
        nodes: the node of each member; `local` needs it, the others ignore it.
        cross_every: `local` meets across nodes in every such round.

    Raises:
        ValueError: unknown schedule, a number out of range, or `local` without the node of each member.
    """
    if schedule not in _SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
    if min(round, num_members, seed) < 0 or min(group_size, cross_every) < 1:
        raise ValueError(
            f"{round=}, {num_members=}, {seed=} must be 0 or more; {group_size=}, {cross_every=} 1 or more"
        )
    if num_members == 0:
        return ()
    meeting = _Meeting(
        round=round,
        num_members=num_members,
        group_size=group_size,
        seed=seed,
        nodes=nodes,
        cross_every=cross_every,
    )
    return tuple(sorted(tuple(sorted(group.tolist())) for group in _SCHEDULES[schedule](meeting)))


def group_of(
    position: int,
    schedule: str,
    *,
    round: int,
    num_members: int,
    group_size: int,
    seed: int = 0,
    nodes: Sequence[Hashable] | None = None,
    cross_every: int = 4,
) -> tuple[int, ...]:
    """The group in which the member at `position` meets, itself included. The rest as in `groups`."""
    if not 0 <= position < num_members:
        raise ValueError(f"position {position} is not in a swarm of {num_members}")
    everyone = groups(
        schedule,
        round=round,
        num_members=num_members,
        group_size=group_size,
        seed=seed,
        nodes=nodes,
        cross_every=cross_every,
    )
    return next(group for group in everyone if position in group)


@functools.cache
def radices(num_members: int, group_size: int) -> tuple[int, ...] | None:
    """The sides, each at most `group_size`, of the grid that holds exactly `num_members`, if there is one.

    As few sides as possible, then as equal as possible, largest first: 8 by 2 is (2, 2, 2), 6 by 4 is (3, 2).
    There is none when num_members has a prime factor above group_size. No schedule whatever is exact then:
    after any number of rounds, a member's share in another is a fraction whose denominator divides a product
    of group sizes; that prime divides none of them, so the share cannot be 1/num_members.
    """
    if num_members <= group_size:
        return (num_members,)
    found: list[tuple[int, ...]] = []
    for side in range(2, group_size + 1):
        if num_members % side == 0:
            others = radices(num_members // side, group_size)
            if others is not None:
                found.append(tuple(sorted((side, *others), reverse=True)))
    return min(found, key=lambda sides: (len(sides), sum(sides)), default=None)


def _random(meeting: _Meeting) -> Iterable[_Order]:
    """Fresh random groups each round: best under churn, since nothing depends on who was there before.

    Where one member must stay alone (an odd number in pairs), the lone place goes round: nobody is left out
    twice in a row.
    """
    order = _shuffled(meeting.num_members, meeting.seed, meeting.round)
    num_groups = _num_groups(meeting)
    if meeting.num_members // num_groups == 1:
        lone = meeting.round % meeting.num_members
        order = np.append(order[order != lone], lone)
    return np.array_split(order, num_groups)  # the smaller groups come last


def _grid(meeting: _Meeting) -> Iterable[_Order]:
    """A mixed-radix hypercube: round r averages along axis r mod d, so any d consecutive rounds are exact.

    An axis of at most half of group_size would make needlessly many groups, and mix worse than `random` in
    the meantime: neighbouring lines along the next axis are then joined up to group_size. Averaging over
    joined lines commutes with averaging along every axis, so d rounds stay exact. Without a full grid (see
    `radices`) the groups are those of `_ragged_grid`.

    References:
        Ryabinin et al., Moshpit SGD, https://arxiv.org/abs/2103.03239: grids whose sides are all M.
    """
    sides = radices(meeting.num_members, meeting.group_size)
    if sides is None:
        return _ragged_grid(meeting)
    cells = np.arange(meeting.num_members).reshape(sides)
    if len(sides) == 1:
        return [cells]
    axis = meeting.round % len(sides)
    neighbour = (axis + 1) % len(sides)
    lines = np.moveaxis(cells, (neighbour, axis), (-2, -1))
    num_blocks = math.ceil(sides[neighbour] / (meeting.group_size // sides[axis]))
    blocks = np.array_split(lines, num_blocks, axis=-2)
    return [group for block in blocks for group in block.reshape(-1, block.shape[-2] * block.shape[-1])]


def _ragged_grid(meeting: _Meeting) -> Iterable[_Order]:
    """The grid for a number that has none: equal groups, each of which the next round deals out like cards.

    Groups are cut from a row of all members; the next row is this one dealt out, last card first, to as many
    hands as there are groups, so that groupmates of one round part in the next. With M^d members this would
    be the full grid; with others it is nearly one, and unlike a grid with empty cells it never makes needless
    small groups.

    Measured without failures on 1,002 pairs N < 264, M <= 32 that have no full grid: the logarithm of the
    squared spread falls 1.76 times as fast as with `random` (mean), and slower for two pairs only, 7 by 3
    (0.95) and 3 by 2 (0.99). The first ceil(log_M N) rounds leave 0.16 times as much (mean, N < 72). Factor
    per round for 31 by 8: a grid of side 8 with empty cells 0.27, `random` 0.08, this 0.013.
    """
    row = np.arange(meeting.num_members)
    for _ in range(meeting.round % _DEALS):
        row = np.concatenate(_deal(row[::-1], _num_groups(meeting)))
    return np.array_split(row, _num_groups(meeting))


def _ring(meeting: _Meeting) -> Iterable[_Order]:
    """Neighbours on a ring; the cuts move on by half a group each round, so that values travel round it.

    For comparison: it mixes ever more slowly as the swarm grows, random groups do not.
    """
    shift = meeting.round * (meeting.group_size // 2)
    ring = np.roll(np.arange(meeting.num_members), -(shift % meeting.num_members))
    return np.array_split(ring, _num_groups(meeting))


def _all(meeting: _Meeting) -> Iterable[_Order]:
    """One group: local SGD with an all-reduce."""
    return [np.arange(meeting.num_members)]


def _local(meeting: _Meeting) -> Iterable[_Order]:
    """Random groups within each node, where the network is fast; every `cross_every`-th round, across nodes.

    A cross round lines members up node after node and deals them out, so that a group holds as few members of
    one node as possible: at most one if no node has more members than there are groups.
    """
    if meeting.nodes is None or len(meeting.nodes) != meeting.num_members:
        raise ValueError(f"schedule 'local' needs the node of each of the {meeting.num_members} members")
    by_node: dict[Hashable, list[int]] = {}  # in shuffled order, nodes and their members alike
    for position in _shuffled(meeting.num_members, meeting.seed, meeting.round).tolist():
        by_node.setdefault(meeting.nodes[position], []).append(position)
    members = [np.array(positions) for positions in by_node.values()]
    if meeting.round % meeting.cross_every == meeting.cross_every - 1:
        return _deal(np.concatenate(members), _num_groups(meeting))
    return [group for node in members for group in np.array_split(node, math.ceil(len(node) / meeting.group_size))]


def _num_groups(meeting: _Meeting) -> int:
    return math.ceil(meeting.num_members / meeting.group_size)


def _deal(order: _Order, num_groups: int) -> list[_Order]:
    """Deal out like cards. Hand j has as many as group j of `np.array_split`."""
    return [order[hand::num_groups] for hand in range(num_groups)]


def _shuffled(num_members: int, *seed: int) -> _Order:
    """range(num_members) in an order that depends on the seed alone, see the top of the file."""
    words = np.random.PCG64(seed).random_raw(num_members)
    return np.argsort(words, kind="stable")


_SCHEDULES: dict[str, Callable[[_Meeting], Iterable[NDArray[Any]]]] = {
    "random": _random,
    "grid": _grid,
    "ring": _ring,
    "all": _all,
    "local": _local,
}
SCHEDULES: tuple[str, ...] = tuple(_SCHEDULES)
