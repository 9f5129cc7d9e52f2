"""How a peer ends its part in a swarm: final rounds to agreement, a goodbye, and the end of its network side."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from ray_gossip.causes import IS_DONE, OTHER_VIEW
from ray_gossip.errors import SwarmError
from ray_gossip.gossip.commands import Commands, Interrupted
from ray_gossip.gossip.members import Roster, View
from ray_gossip.gossip.protocols import FinalResult
from ray_gossip.gossip.round import RoundResult
from ray_gossip.gossip.snapshot import Snapshot

_FINAL_ATTEMPTS, _FAILED_ATTEMPTS = 10, 3
_DISAGREE_S = 1.0  # before another final round, when one member counts a dead peer that another does not
_READ_S = 2.0  # how long a final round waits to see which peers are there: its last view may be a whole interval old
_LEAVE_S = 3.0  # to announce a departure
_GOODBYE_S = 5.0  # how long a peer that is done stays for others that are about to be
_POLL_S = 0.2

_LATE = (FutureTimeoutError, TimeoutError)


class Leaving:
    """One peer's way out.

    Args:
        final_s: how long the final rounds wait for others.
    """

    def __init__(
        self, averager: Commands, snapshot: Snapshot, *, wait: Callable[[Future[Any]], Any], final_s: float
    ) -> None:
        self._averager, self._snapshot, self._wait, self._final_s = averager, snapshot, wait, final_s

    def agree(self, local_step: int) -> FinalResult:
        """The final rounds: all peers in one group, until the swarm agrees or `swarm.final_s` is over."""
        attempt, bytes_sent, had_others, deadline = 0, 0, False, time.monotonic() + self._final_s
        has_restarted = False
        for _ in range(_FINAL_ATTEMPTS):
            self._snapshot.take(local_step)
            self._averager.wait_until_back(self._final_s)
            with contextlib.suppress(*_LATE, Interrupted):  # then the last view counts, as in any round
                self._averager.read_members().result(timeout=_READ_S)
            wait_s = max(_READ_S, deadline - time.monotonic())
            try:
                result: RoundResult = self._wait(
                    self._averager.gossip_round(attempt, is_final=True, local_step=local_step, wait_s=wait_s)
                )
            except Interrupted as died:  # the others may be in it still
                result, has_restarted = RoundResult.interrupted(attempt, str(died), roster=Roster()), True
                if time.monotonic() < deadline:
                    continue
            bytes_sent += result.bytes_sent
            had_others |= len(result.roster.present) > 1 or result.is_hermit or (has_restarted and bool(result.silent))
            if result.outcome == "averaged":
                self._snapshot.state.add_to_state(self._averager.delta)
            if not _is_worth_another(result, attempt) or time.monotonic() > deadline:
                break
            attempt += 1
            if OTHER_VIEW in result.cause:
                time.sleep(_DISAGREE_S)
        return FinalResult(
            reports=[],
            outcome=result.outcome,
            cause=result.cause,
            agreed=result.outcome == "averaged" or (result.outcome == "alone" and not had_others),
            silent=result.silent,
            bytes_sent=bytes_sent,
            sketch=result.sketch_after,
        )

    def say_goodbye(self) -> None:
        """Announce the departure, then wait until the others have done so too, at most _GOODBYE_S: after a final round
        that all took part in, what is still on its way to them must not be cut off."""
        deadline = time.monotonic() + _GOODBYE_S
        with contextlib.suppress(*_LATE, SwarmError):
            self._averager.leave().result(timeout=_GOODBYE_S)
            while time.monotonic() < deadline:
                view: View = self._averager.read_members().result(timeout=_GOODBYE_S)
                if not view.present:
                    return
                time.sleep(_POLL_S)

    def shutdown(self) -> None:
        """Announce the departure and end the network side."""
        with contextlib.suppress(*_LATE, SwarmError):  # it may have died: then others see the declaration expire
            self._averager.leave().result(timeout=_LEAVE_S)
        self._averager.end()


def _is_worth_another(result: RoundResult, attempt: int) -> bool:
    """Whether a final round after this one may agree better: it failed, or met somebody that counted other members (a
    dead peer expires for one a moment earlier than for the other), or that is a final round ahead."""
    if result.outcome in ("failed", "partial"):
        return attempt + 1 < _FAILED_ATTEMPTS
    return OTHER_VIEW in result.cause or (result.outcome == "alone" and IS_DONE in result.cause)
