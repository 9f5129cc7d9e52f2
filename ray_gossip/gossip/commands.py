"""What a training process asks of the network side of its peer: each answer is a future."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from torch import Tensor

from ray_gossip.errors import SwarmError
from ray_gossip.gossip.guests import pack
from ray_gossip.gossip.handover import Handover
from ray_gossip.gossip.members import View
from ray_gossip.gossip.round import RoundResult
from ray_gossip.gossip.signals import Signals
from ray_gossip.records import Record


class Interrupted(SwarmError):
    """The network side has died, and is started again: what was asked of it is lost, and nothing else."""


def interrupted(why: str) -> Future[Any]:
    """What one gets who asks it just then."""
    future = Future[Any]()
    future.set_exception(Interrupted(why))
    return future


class Commands:
    """The training process's end; how a call gets to the other is its subclass's matter."""

    snapshot: Tensor  # float32 [size]
    delta: Tensor  # float32 [size]
    signals: Signals
    first_round: int  # in which this peer counts again, after its network side was started again; -1: it was not
    notices: list[str]  # sentences for a person; once passed on, they are taken out
    kept: Tensor  # float32 [num_kept], what averaging keeps from round to round: anchors and outer momentum
    goes_on = False  # from something kept

    def hand_over_by(self, hand_over: Callable[[], Handover]) -> None:
        """What gives this peer's model to a newcomer; called in a thread of its own."""
        raise NotImplementedError

    def check(self) -> None:
        """Have the network side started again if it has died, in the background. Costs next to nothing.

        Raises:
            SwarmError: that was tried too often.
        """
        raise NotImplementedError

    def wait_until_back(self, within_s: float) -> None:
        """Return when a network side that has died runs again, or that takes longer."""
        raise NotImplementedError

    def end(self) -> None:
        """End all its processes; what does not end in time is killed."""
        raise NotImplementedError

    def declare(self, from_round: int, *, is_founder: bool, began_as: str = "") -> Future[View]:
        """Declare this peer, from now on and every few seconds, for as long as this process lives.

        The snapshot must hold the parameters with which the peer starts.
        """
        goes_on = self.goes_on
        return self._call("_join", from_round=from_round, is_founder=is_founder, began_as=began_as, goes_on=goes_on)

    def keep(self, kept: Tensor) -> None:
        """Go on from what averaging has kept, if that is of this peer's config. Before `declare`."""
        if kept.shape == self.kept.shape:
            self.kept.copy_(kept)
            self.goes_on = True

    def start_anew(self) -> Future[None]:
        """The snapshot has become another one since this peer declared itself: the swarm starts from it."""
        return self._call("_start_anew")

    def read_members(self) -> Future[View]:
        """The members of the swarm now, as far as this peer can see."""
        return self._call("_read_members")

    def tell_members(self, note: bytes) -> Future[View]:
        """Declare this note, in place of the one before, and read the members with theirs."""
        return self._call("_tell_members", note=note)

    def gossip_round(
        self,
        round: int,
        *,
        local_step: int,
        weight: float = 1.0,
        wait_s: float,
        interval_s: float = 0.0,
        is_final: bool = False,
    ) -> Future[RoundResult]:
        """Run one round on the snapshot; when it resolves to `averaged`, `delta` holds what to add.

        Args:
            round: its number; final rounds count from 0 again.
            wait_s: how long to wait for groupmates that are late.
            interval_s: until this peer's next round is due. If the round is over already, it waits that long for the
                next one of the swarm before it calls others to it.
        """
        return self._call(
            "_gossip_round",
            round=round,
            local_step=local_step,
            weight=weight,
            wait_s=wait_s,
            interval_s=interval_s,
            is_final=is_final,
        )

    def tell_driver(self, record: Record) -> Future[None]:
        """A guest's record, by way of one of the driver's own peers; it is lost when none of them can be reached."""
        return self._call("_tell_driver", record=pack(record))

    def take_guest_records(self) -> Future[list[Record]]:
        """What guests have told this peer for the driver."""
        return self._call("_take_guest_records")

    def leave(self) -> Future[None]:
        """Announce that this peer is going: others leave it out from the next round on."""
        return self._call("_leave")

    def download(self, *, donor: str = "") -> Future[Handover | str]:
        """The model of a peer that shares it: of this one, or of any; if there is none, why."""
        return self._call("_download", donor=donor)

    def share_state(self) -> Future[None]:
        """From now on newcomers may start from this peer's model."""
        return self._call("_share_state")

    def _call(self, method: str, **arguments: Any) -> Future[Any]:
        raise NotImplementedError
