"""Samplers of several peers tell each other what they have begun, by the declarations of the members."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from ray_gossip.data.dealing import Dealing, Deck, Note, packed, unpacked
from ray_gossip.errors import SwarmError, UserError
from ray_gossip.gossip.members import MOST_NOTE_BYTES, Member, View

_EVERY_S = 2.0  # what a peer that is killed has begun since is begun once more by others
_POLL_S = 0.5
_ANSWER_S = 5.0
_SEVERAL = 2  # when so many vanish at once, this peer is cut off
_AWAITED_S = 30.0  # a peer that stands still for so long is waited for no longer


class Shares:
    """The dealings of one peer's samplers.

    Args:
        tell: declares what is given as this peer's note, and reads the members.
        num_told: samples on which the loop has said that it trained.
        goes_on: the samplers of all peers go on from saved positions, of which each peer has read its part.
    """

    def __init__(
        self,
        tell: Callable[[bytes], Future[View]],
        *,
        own: int,
        present: Iterable[int],
        goes_on: bool = False,
        num_told: Callable[[], int] = lambda: 0,
    ) -> None:
        self._tell, self.own, self._goes_on, self.num_told = tell, own, goes_on, num_told
        self._dealings: list[Dealing] = []
        self._present = self._before = frozenset(present)
        self._asked: Future[View] | None = None
        self._asked_at = float("-inf")
        self._is_over = False
        self.num_given = 0  # samples, by all samplers

    def add(self, deck: Deck) -> Dealing:
        """For one more sampler: its peers' are those that they have made at the same point of their loops."""
        dealing = Dealing(deck, own=self.own, members=self._present)
        self._dealings.append(dealing)
        return dealing

    def exchange(self) -> None:
        """Now and then; waits for nothing."""
        if self._asked is not None and self._asked.done():
            done, self._asked = self._asked, None
            with contextlib.suppress(SwarmError):  # the network side is being started again: another time
                self._learn(done.result())
        if self._dealings and self._asked is None and time.monotonic() - self._asked_at > _EVERY_S:
            self._ask()

    def exchange_now(self) -> View | None:
        """Wait until the others can hear what has been begun, and have been heard; None: the network side does not
        answer just now."""
        try:
            view = self._ask().result(timeout=_ANSWER_S)
        except (SwarmError, FutureTimeoutError, TimeoutError):
            return None
        finally:
            self._asked = None
        self._learn(view)
        return view

    def tell_last(self) -> None:
        """Before this peer leaves: what it has begun, nobody else is to begin."""
        deadline, self._is_over = time.monotonic() + _ANSWER_S, True
        while self.exchange_now() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def wait_until_known(self, dealing: Dealing) -> None:
        """Return when all others that share the deck deal to this peer, too: what is dealt to it, nobody else begins.
        They hear of a newcomer within seconds. Founders know each other, and wait only where they go on: then each has
        read a part of what has been begun."""
        number, deadline = self._dealings.index(dealing), time.monotonic() + _AWAITED_S
        while True:
            if self._is_over:
                raise UserError("this peer has left, and no samples are dealt to it any more")
            view = self.exchange_now()
            others = self._others(view) if view is not None else []
            _check_same_data(others, number, dealing.deck)
            there = [_of(notes, number, dealing.deck) for member, notes in others if not member.left]
            is_known = all(not self._goes_on if note is None else self.own in note.members for note in there)
            if (view is not None and is_known) or time.monotonic() > deadline:
                return
            time.sleep(_POLL_S)

    def _ask(self) -> Future[View]:
        self._asked_at = time.monotonic()
        notes = (dealing.note() for dealing in self._dealings)
        self._asked = self._tell(packed(notes, most_bytes=MOST_NOTE_BYTES))
        return self._asked

    def _learn(self, view: View) -> None:
        others = self._others(view)
        present = {member.peer_index for member, _ in others if not member.left}
        if not present and len(self._before - {self.own}) >= _SEVERAL and not any(member.left for member, _ in others):
            return  # nobody, where several were: this peer was cut off, and keeps to its share
        left = {member.peer_index for member, _ in others if member.left}
        # one view may lack a member for a moment; whoever is missing twice is gone
        self._present, self._before = frozenset((present | self._before) - left), frozenset(present)
        for number, dealing in enumerate(self._dealings):
            absent = {member.peer_index for member, notes in others if _shares_not(member, notes, number, dealing.deck)}
            dealing.deal_among(self._present - absent)
            for _, notes in others:
                if note := _of(notes, number, dealing.deck):
                    dealing.learn(note)

    def _others(self, view: View) -> list[tuple[Member, list[Note]]]:
        return [(each, unpacked(each.note)) for each in view.members if each.peer_index != self.own]


def _of(notes: list[Note], number: int, deck: Deck) -> Note | None:
    return notes[number] if number < len(notes) and notes[number].deck == deck else None


def _check_same_data(others: Iterable[tuple[Member, list[Note]]], number: int, deck: Deck) -> None:
    """Raise UserError where another peer deals other samples: they would overlap, or be left out."""
    for member, notes in others:
        if number < len(notes) and not member.left and notes[number].deck != deck:
            raise UserError(
                f"{member.name} samples {notes[number].deck}, this peer {deck}: give peer.sampler the same data in "
                "every peer, and make several samplers in the same order"
            )


def _shares_not(member: Member, notes: list[Note], number: int, deck: Deck) -> bool:
    """It trains on other data: it has begun a round, and has no such sampler."""
    return _of(notes, number, deck) is None and member.round >= member.from_round
