"""Peer indices, claimed at any moments by any number of peers."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_gossip.errors import SwarmError
from ray_gossip.gossip.members import MOST_INDEX
from ray_gossip.hive import indices
from ray_gossip.hive.indices import next_index, settle


def claim_all(order: list[int], start_with: dict[int, int], *, first: int) -> dict[int, int]:
    """Threads that claim at the same time, in steps that are dealt by `order`; returns what each ends with."""
    shared, ended, turn = dict(start_with), {}, threading.Condition()
    peers = sorted(set(order))
    waiting = set[int]()

    def run(peer: int) -> None:
        def pause() -> None:  # all that still claim have claimed when the first goes on
            with turn:
                waiting.add(peer)
                turn.notify_all()
                assert turn.wait_for(lambda: peer not in waiting, timeout=10.0)

        ended[peer] = settle(
            peer, lambda: dict(shared), lambda i: shared.__setitem__(peer, i), first=first, pause=pause
        )
        with turn:
            turn.notify_all()

    threads = [threading.Thread(target=run, args=(peer,)) for peer in peers]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with turn:
            turn.wait_for(lambda: len(waiting) + len(ended) == len(peers), timeout=10.0)
            waiting.clear()
            turn.notify_all()
    return ended


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=8, unique=True), st.integers(0, 5))
def test_no_two_peers_that_claim_at_the_same_time_have_the_same_index(peers: list[int], first: int) -> None:
    ended = claim_all(peers, {200: first + 3}, first=first)
    assert ended.keys() == set(peers)
    assert len({*ended.values(), first + 3}) == len(peers) + 1
    assert min(ended.values()) >= first


def test_one_that_copies_every_claim_holds_a_newcomer_up_for_as_long_as_it_waits_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(indices, "_SETTLE_S", 0.01)
    claimed: dict[int, int] = {}

    def claim(index: int) -> None:
        claimed.update({2: index, 1: index})  # the other one has the lower id

    deadline = time.monotonic() + 0.2
    with pytest.raises(SwarmError, match=r"no peer index was free within 0\.2 s"):
        settle(2, lambda: dict(claimed), claim, first=4, pause=lambda: indices._pause(deadline, 0.2))
    assert max(claimed.values()) > 6


def test_whoever_claims_the_last_index_of_all_leaves_room_for_others() -> None:
    ended = claim_all([1, 2, 3], {8: 4, 9: MOST_INDEX - 1}, first=4)
    assert sorted(ended.values()) == [5, 6, 7]
    assert next_index([4, 5, 900, 2000], first=4) == 901


def test_a_peer_that_comes_back_keeps_its_index_and_an_index_is_not_taken_twice() -> None:
    assert claim_all([7], {7: 4, 8: 5}, first=4) == {7: 4}
    assert claim_all([9], {7: 4, 8: 5}, first=4) == {9: 6}
