"""How a peer comes into its swarm: as one of those that begin it, or as a newcomer to one that runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ray_gossip.config import SwarmConfig
from ray_gossip.errors import ConfigError, SwarmError
from ray_gossip.gossip.commands import Commands, Interrupted
from ray_gossip.gossip.handover import Handover
from ray_gossip.gossip.members import REFRESH_S, View
from ray_gossip.gossip.snapshot import Snapshot
from ray_gossip.records import BEGAN_APART

_POLL_S = 0.2  # how often a founder looks whether all the others are there
_NAMED = 5  # parameters in a notice
_RESTORE_S = 10.0  # for a neighbour to give its model to a peer that has lost its own
_OBSERVE_S = 1.0  # how long a newcomer watches the pace of the swarm's rounds


@dataclass(frozen=True, kw_only=True)
class Entered:
    """Where a newcomer begins."""

    view: View
    local_step: int  # at which the swarm is
    from_round: int  # the first in which it counts


class Entry:
    """One peer's way into its swarm.

    Args:
        averager: the network side.
        wait: for what the averager answers, at most so long.
        data: a digest of the swarm's samples, as this peer has them; empty: it has its own.
        notices: sentences for a person are added to these.
    """

    def __init__(
        self,
        averager: Commands,
        snapshot: Snapshot,
        *,
        wait: Callable[..., Any],
        swarm: SwarmConfig,
        peer_index: int,
        data: str,
        notices: list[str],
    ) -> None:
        self._averager, self._snapshot, self._wait, self._swarm = averager, snapshot, wait, swarm
        self._peer_index, self._data, self._notices = peer_index, data, notices

    def found(self, *, founders: int, local_step: int, has_taken_over: bool = False) -> View:
        """Begin a swarm with all `founders`; wait for them, at most `swarm.start_s`.

        Args:
            has_taken_over: this peer begins with the model of one that is there: it need not compare its own.
        """
        deadline = self._deadline()
        self._snapshot.take(local_step)
        self._ask(self._averager.share_state)
        began_as = self._snapshot.state.digest()
        view: View = self._ask(lambda: self._averager.declare(from_round=0, is_founder=True, began_as=began_as))
        while len(view.members) < founders and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            view = self._ask(self._averager.read_members)
        if len(view.members) < founders:
            self._notices.append(
                f"{len(view.members)} of {founders} founders came within swarm.start_s={self._swarm.start_s:g} s: "
                "this peer begins without the others"
            )
        self._check_data(view)
        return view if has_taken_over else self._as_the_first(view, began_as, deadline)

    def _as_the_first(self, view: View, began_as: str, deadline: float) -> View:
        """Begin with the model of the first of those that are there; where that one dies over it, of the next."""
        while (first := view.present[0]).began_as != began_as and first.peer_index != self._peer_index:
            answer = self._take_over(donor=first.peer_id)
            if isinstance(answer, int):
                self._ask(self._averager.start_anew)
                if self._data:  # else the model is of the user's own loop, and any
                    self._notices.append(
                        f"{BEGAN_APART} {first.name}, and has taken over that one's: let the random "
                        "numbers of your model come from torch, which is seeded"
                    )
                break
            self._check_time(deadline, answer)
            view = self._ask(self._averager.read_members)
        return view

    def join_running(self, *, has_model: bool = False) -> Entered:
        """Come into a swarm that runs: with the model of one of its peers, from a round that is still ahead.

        Args:
            has_model: this peer brings the swarm's model along.

        Raises:
            SwarmError: nobody answers, or nobody shares its model, within `swarm.start_s`.
        """
        deadline = self._deadline()
        view: View = self._ask(self._averager.read_members)
        while view.latest_round < 0:
            if time.monotonic() > deadline:
                raise SwarmError("no running swarm was found: is the run id the same, and has it begun?")
            time.sleep(_POLL_S)
            view = self._ask(self._averager.read_members)
        self._check_data(view)
        started, first = time.monotonic(), view.latest_round
        if has_model:
            local_step = max(member.local_step for member in view.present)
            self._snapshot.take(local_step)
        else:
            local_step = self._load_state(deadline)
        self._ask(self._averager.share_state)
        time.sleep(max(0.0, _OBSERVE_S - (time.monotonic() - started)))
        view = self._ask(self._averager.read_members)
        rounds_per_s = (view.latest_round - first) / (time.monotonic() - started)
        from_round = view.latest_round + 2 + math.ceil(2 * REFRESH_S * rounds_per_s)
        declared: View = self._ask(lambda: self._averager.declare(from_round, is_founder=False))
        return Entered(view=declared, local_step=local_step, from_round=from_round)

    def state_of_one_that_has_not_begun(self) -> int | None:
        """Take over the model of a swarm that is about to begin; returns its local step. None: it runs already."""
        view: View = self._ask(self._averager.read_members)
        return self._load_state(self._deadline()) if view.latest_round < 0 else None

    def restore(self) -> str:
        """Go on with a neighbour's model; returns whose.

        Raises:
            SwarmError: nobody has one to give.
        """
        deadline = time.monotonic() + _RESTORE_S
        while True:
            view: View = self._ask(self._averager.read_members)
            others = [member for member in view.present if member.peer_index != self._peer_index]
            why = "there is no other peer"
            for member in sorted(others, key=lambda member: -member.local_step):
                if isinstance(answer := self._take_over(donor=member.peer_id), int):
                    return member.name
                why = f"no other peer has a model to give, {member.name}: {answer}"
            if not others or time.monotonic() > deadline:
                raise SwarmError(why)
            time.sleep(_POLL_S)

    def _check_data(self, view: View) -> None:
        """Raise ConfigError when a peer numbers other samples than this one: their shards would overlap."""
        for member in view.present:
            if self._data and member.data and member.data != self._data:
                raise ConfigError(
                    f"data: {member.name} has other samples, or in another order: every peer must read the same"
                )

    def _load_state(self, deadline: float) -> int:
        """Begin with the model of any peer; returns the local step at which that one is."""
        while not isinstance(answer := self._take_over(), int):
            self._check_time(deadline, answer)
        return answer

    def _take_over(self, *, donor: str = "") -> int | str:
        """Begin with the model of this peer, or of any: the local step at which it is. Or why it gave none."""
        handover: Handover | str = self._ask(lambda: self._averager.download(donor=donor), within_s=math.inf)
        if isinstance(handover, str):
            return handover
        if frozen := self._snapshot.take_over(handover):
            self._notices.append(
                f"frozen parameters were others here than in the swarm, and are the swarm's now: "
                f"{', '.join(frozen[:_NAMED])}{', ...' if len(frozen) > _NAMED else ''}"
            )
        return handover.local_step

    def _check_time(self, deadline: float, latest: str) -> None:
        """A moment before the next try. Raises SwarmError when it is too late for one."""
        if time.monotonic() > deadline:
            raise SwarmError(
                f"no peer gave its model within swarm.start_s={self._swarm.start_s:g} s; the last one: {latest}"
            )
        time.sleep(_POLL_S)

    def _deadline(self) -> float:
        return time.monotonic() + self._swarm.start_s

    def _ask(self, command: Callable[[], Future[Any]], *, within_s: float | None = None) -> Any:
        """What the network side answers, within `swarm.start_s` or so long. One that dies over it is asked again
        when it is back."""
        deadline, within_s = self._deadline(), self._swarm.start_s if within_s is None else within_s
        while True:
            try:
                return self._wait(command(), within_s=within_s)
            except Interrupted:
                if time.monotonic() > deadline:
                    raise
                self._averager.wait_until_back(deadline - time.monotonic())
