"""Who hears what a loop's peer has to say: a person at standard error, or the driver that has started the loop."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol

from ray_gossip.causes import NO_OTHERS, lacking
from ray_gossip.config import Config
from ray_gossip.gossip.members import Roster
from ray_gossip.gossip.protocols import FinalResult
from ray_gossip.loop.session import Session
from ray_gossip.records import Notice, RoundReport
from ray_gossip.telemetry import Observer, peers_named

_LONE_ROUNDS = 5
HOW_TO_MEET = "give all but the first one initial_peers, the address that it prints"


class Voice(Protocol):
    has_met: bool  # another member

    def rounds(self, reports: Sequence[RoundReport], roster: Roster | None) -> None:
        """Rounds have ended, mostly none; this is who is there."""

    def tell(self, text: str) -> None:
        """A sentence for a person."""


class Screen:
    """Standard error, of a loop that nobody else listens to: also what a driver would find out."""

    def __init__(self, config: Config, peer_index: int) -> None:
        self.has_met = False
        self._index, self._observer = peer_index, Observer(config, peers=[peer_index])
        self._present: tuple[int, ...] = ()  # peer indices, as they were told
        self._num_rounds = 0
        self._is_with_others = self._is_told_alone = False

    def rounds(self, reports: Sequence[RoundReport], roster: Roster | None) -> None:
        for report in reports:
            for notice in self._observer.see(report):
                if isinstance(notice, Notice):
                    self.tell(notice.text)
            is_with_others = report.outcome != "alone" or report.cause != NO_OTHERS
            if self._is_with_others and not is_with_others:
                self.tell("no other peer is in the swarm any more: this one trains on alone")
            self._is_with_others = is_with_others
            self.has_met |= is_with_others
        self._num_rounds += len(reports)
        if not self.has_met and not self._is_told_alone and self._num_rounds >= _LONE_ROUNDS:
            self._is_told_alone = True
            self.tell(f"{_LONE_ROUNDS} rounds, and no other peer is here yet; {HOW_TO_MEET}")
        if roster is not None and roster.present != self._present:
            self._tell_of_others(roster.present)

    def tell(self, text: str) -> None:
        print(f"ray_gossip: {text}", file=sys.stderr, flush=True)

    def _tell_of_others(self, present: tuple[int, ...]) -> None:
        """Who has come, and who is gone."""
        before, now = ({*peers} - {self._index} for peers in (self._present, present))
        for peers, what in ((now - before, "here"), (before - now, "gone")):
            if peers and now:  # that all are gone is said elsewhere
                self.tell(f"{peers_named(peers)} {'is' if len(peers) == 1 else 'are'} {what}")
        self._present = present


def wrong_with(final: FinalResult, *, has_met: bool) -> list[str]:
    """What is to be said of the end; mostly nothing."""
    silent = [lacking(final.silent)] if final.silent else []
    if final.outcome == "averaged":
        return [*([f"the final average lacks some of the swarm: {final.cause}"] if final.cause else []), *silent]
    if not (has_met or final.silent or final.cause != NO_OTHERS):
        return [f"no other peer was ever here, so that nothing was averaged; {HOW_TO_MEET}"]
    cause = f" ({final.cause})" if final.cause else ""
    return [
        f"no agreement in the end: the final round was {final.outcome}{cause}; the model is this peer's own",
        *silent,
    ]


class Driver:
    """The driver, which counts, watches and shows all of it."""

    has_met = True  # it says who is there

    def __init__(self, session: Session) -> None:
        self._session = session

    def rounds(self, reports: Sequence[RoundReport], roster: Roster | None) -> None:
        for report in reports:
            self._session.records.put(report)

    def tell(self, text: str) -> None:
        self._session.say(text)
