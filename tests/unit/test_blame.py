"""Whom a peer blames when it cannot go on with an all-reduce."""

from __future__ import annotations

from typing import Any

from hivemind.p2p import PeerID

from ray_gossip.causes import BAD_PART, GAVE_UP, LOST
from ray_gossip.hive.allreduce import StrictAllReduce, _Refusal

OWN, FIRST, SECOND = (PeerID(letter * 34) for letter in (b"o", b"f", b"s"))


def told(*, seen: dict[PeerID, str], gave_up: dict[PeerID, PeerID | None]) -> PeerID | None:
    """What others hear from a peer that has seen this, and has been refused so."""
    allreduce: Any = object.__new__(StrictAllReduce)
    allreduce.peer_id, allreduce.ordered_peer_ids = OWN, (FIRST, OWN, SECOND)
    allreduce._seen = dict(seen)
    allreduce._gave_up = {peer_id: _Refusal(blamed, GAVE_UP) for peer_id, blamed in gave_up.items()}
    answer: PeerID | None = allreduce._to_blame()
    return answer


def test_whoever_is_refused_as_the_cause_does_not_blame_the_one_that_says_so() -> None:
    """Its own part could not be averaged, and it does not know."""
    assert told(seen={FIRST: LOST}, gave_up={FIRST: OWN}) is None


def test_who_has_received_a_bad_part_names_its_sender_whomever_that_one_blames() -> None:
    assert told(seen={SECOND: BAD_PART}, gave_up={SECOND: OWN}) == SECOND
    assert told(seen={SECOND: BAD_PART}, gave_up={SECOND: FIRST, FIRST: OWN}) == SECOND


def test_what_another_has_found_out_is_passed_on() -> None:
    assert told(seen={FIRST: LOST}, gave_up={FIRST: SECOND}) == SECOND
    assert told(seen={SECOND: LOST}, gave_up={}) == SECOND
    assert told(seen={}, gave_up={}) is None
