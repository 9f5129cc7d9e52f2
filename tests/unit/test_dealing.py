"""What peers tell each other of the samples that they have begun."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest

from ray_gossip.data import dealing
from ray_gossip.data.dealing import Dealing, Deck, packed, unpacked
from ray_gossip.gossip.members import MOST_NOTE_BYTES


def test_another_deck_and_what_nobody_of_us_has_written_are_passed_over() -> None:
    ours, theirs = (Dealing(Deck(num, founders=2, seed=0), own=0) for num in (10, 11))
    theirs.begin((0, 3))
    ours.learn(theirs.note())
    assert ours.next(last=0) == (0, 0)
    (note,) = unpacked(packed([ours.note()], most_bytes=MOST_NOTE_BYTES))
    assert note == ours.note()
    for wire in (b"", b"x", zlib.compress(b"{}"), zlib.compress(b"[1]"), zlib.compress(b'[{"deck": {}}]')):
        assert unpacked(wire) == []
    text = json.dumps(
        [{"deck": {"num_samples": 10, "founders": 2, "seed": 0}, "members": [0], "first": -1, "begun": {}}]
    )
    assert unpacked(zlib.compress(text.encode())) == []
    assert unpacked(zlib.compress(b" " * (dealing._MAX_BYTES + 1))) == []


def test_a_peer_that_is_far_ahead_tells_of_as_many_epochs_as_the_others_can_read() -> None:
    """By lot, because a founder is not there: its blocks make no pattern that could be written shorter."""
    deck = Deck(10_000, founders=3, seed=0)
    ahead = Dealing(deck, own=0, members=[1])
    for epoch in range(300):
        for number in np.flatnonzero(deck.owners(epoch, [0, 1]) == 0):
            ahead.begin((epoch, int(number)))
    few = packed([ahead.note(), Dealing(deck, own=0).note()], most_bytes=4_000)
    assert 2_000 < len(few) <= 4_000
    told, other = unpacked(few)
    assert 4 <= len(told.begun) == max(told.begun) + 1, "of the first epochs, in which the others are"
    assert other == Dealing(deck, own=0).note()
    assert all(ahead.note().begun[epoch] == bits for epoch, bits in told.begun.items())
    with pytest.raises(ValueError, match="more than can be told"):
        packed([ahead.note()], most_bytes=50)
