"""Peer indices of those that join a running swarm: claimed in the DHT, so that no two peers have the same, not even one
after the other. A peer that comes back with the same identity keeps its index."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import hivemind
from hivemind.utils import get_dht_time

from ray_gossip.errors import SwarmError
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.members import MOST_INDEX
from ray_gossip.hive.bounded_records import SOON_S
from ray_gossip.hive.charter import look_up

_HOLDS_S = 7 * 24 * 3600.0  # a claim outlives its peer, whose curves and folder are there still
_GAP = 1000  # between two indices of a swarm
_SETTLE_S = 1.0  # two that claim at the same moment have seen each other's claims by then


def claim_index(dht: hivemind.DHT, charter: Charter, *, within_s: float) -> int:
    """A peer index that is this peer's alone. Takes a second.

    Raises:
        SwarmError: the DHT does not answer in time, or another peer claims whatever this one does.
    """
    deadline = time.monotonic() + within_s
    key, own = f"{charter.run_id}.indices", dht.peer_id.to_bytes()

    def claims() -> dict[bytes, int]:
        record = look_up(dht, key, within_s=max(1.0, deadline - time.monotonic()))
        values = record.value if record is not None and isinstance(record.value, dict) else {}
        least = get_dht_time() + SOON_S  # others have more room for what holds for less, and would keep too many
        return {
            peer: entry.value
            for peer, entry in values.items()
            if _is_index(peer, entry.value) and entry.expiration_time > least
        }

    def claim(index: int) -> None:
        stored = dht.store(key, subkey=own, value=index, expiration_time=get_dht_time() + _HOLDS_S, return_future=True)
        try:
            stored.result(timeout=max(1.0, deadline - time.monotonic()))
        except (FutureTimeoutError, TimeoutError):
            raise SwarmError(f"the swarm's DHT did not answer within {within_s:g} s") from None

    return settle(own, claims, claim, first=charter.num_peers, pause=lambda: _pause(deadline, within_s))


def _pause(deadline: float, within_s: float) -> None:
    if time.monotonic() > deadline:
        raise SwarmError(f"no peer index was free within {within_s:g} s: others claim each that this peer claims")
    time.sleep(_SETTLE_S)


def _is_index(peer: Any, value: Any) -> bool:
    """Whether this is a claim, and one that leaves room for others."""
    return isinstance(peer, bytes) and type(value) is int and 0 <= value <= MOST_INDEX


def settle(
    own: Any,
    claims: Callable[[], dict[Any, int]],
    claim: Callable[[int], None],
    *,
    first: int,
    pause: Callable[[], None],
) -> int:
    """Claim an index until no peer that goes before this one claims the same.

    Args:
        claims: what everybody claims now, by peer.
        claim: claim an index for this peer, instead of an earlier one.
        first: the lowest index that may be claimed.
    """
    known = claims()
    index = known.get(own, -1)
    while True:
        if index < first:
            index = next_index(known.values(), first=first)
        claim(index)
        pause()
        known = claims()
        if own == min([own, *(peer for peer, claimed in known.items() if claimed == index)]):
            return index
        index = -1


def next_index(claimed: Iterable[int], *, first: int) -> int:
    """After those that are claimed one after the other, with gaps that peers may leave whose claims are over: one that
    claims the last index of all leaves no room behind it."""
    last = first - 1
    for index in sorted(claimed):
        if index > last + _GAP:
            break
        last = max(last, index)
    return last + 1


def exchange_names(dht: hivemind.DHT, run_id: str, peer_index: int, *, count: int, within_s: float) -> dict[str, int]:
    """Peer ids in this DHT -> peer indices, of so many peers that all ask at the same time."""
    deadline, key = time.monotonic() + within_s, f"{run_id}.names"
    expires = get_dht_time() + _HOLDS_S
    dht.store(key, subkey=dht.peer_id.to_base58(), value=peer_index, expiration_time=expires, return_future=True)
    while True:
        record = look_up(dht, key, within_s=within_s)
        values = record.value if record is not None and isinstance(record.value, dict) else {}
        if len(values) >= count or time.monotonic() > deadline:
            return {str(peer_id): entry.value for peer_id, entry in values.items()}
        time.sleep(0.1)
