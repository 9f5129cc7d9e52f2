"""What the training process asks of its averager process: each answer is a future."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from ray_gossip.errors import SwarmError
from ray_gossip.gossip.guests import pack
from ray_gossip.gossip.handover import Handover
from ray_gossip.gossip.members import View
from ray_gossip.gossip.round import RoundResult
from ray_gossip.hive.calls import AVERAGER_DIED, Calls
from ray_gossip.records import Record

_PIECE_BYTES = 8192  # hivemind's pipe between two processes takes no message above 16 KB


class Commands:
    """Mix-in for an averager that answers them."""

    _calls: Calls
    _outer_pipe: Any  # hivemind's

    def declare(self, from_round: int, *, is_founder: bool, began_as: str = "") -> Future[View]:
        """Declare this peer, from now on and every few seconds, for as long as this process lives.

        The snapshot must hold the parameters with which the peer starts.
        """
        return self._call("_join", from_round=from_round, is_founder=is_founder, began_as=began_as)

    def start_anew(self) -> Future[None]:
        """The snapshot has become another one since this peer declared itself: the swarm starts from it."""
        return self._call("_start_anew")

    def read_members(self) -> Future[View]:
        """Who is in the swarm now, as far as this peer can see."""
        return self._call("_read_members")

    def gossip_round(
        self, round: int, *, local_step: int, weight: float = 1.0, wait_s: float, interval_s: float = 0.0
    ) -> Future[RoundResult]:
        """Run one round on the snapshot; when it resolves to `averaged`, `delta` holds what to add.

        Args:
            wait_s: how long to wait for groupmates that are late.
            interval_s: until this peer's next round is due. If the round is over already, it waits that long for the
                next one of the swarm before it calls others to it.
        """
        return self._call(
            "_gossip_round", round=round, local_step=local_step, weight=weight, wait_s=wait_s, interval_s=interval_s
        )

    def tell_driver(self, record: Record) -> Future[None]:
        """A guest's record, by way of one of the driver's own peers; it is lost when none of them can be reached."""
        wire = pack(record)
        pieces = [wire[start : start + _PIECE_BYTES] for start in range(0, len(wire), _PIECE_BYTES)]
        for piece in pieces[:-1]:
            self._call("_take_piece", piece=piece)
        return self._call("_tell_driver", last_piece=pieces[-1])

    def take_guest_records(self) -> Future[list[Record]]:
        """What guests have told this peer for the driver."""
        return self._call("_take_guest_records")

    def leave(self) -> Future[None]:
        """Announce that this peer is going: others leave it out from the next round on."""
        return self._call("_leave")

    def download(self, *, donor: str = "") -> Future[Handover | str]:
        """The model of a peer that shares it: of this one, or of any; if there is none, why."""
        return self._call("_download", donor=donor)

    def _call(self, method: str, **arguments: Any) -> Future[Any]:
        number, future = self._calls.open()
        try:
            self._outer_pipe.send(("_answer", [method, number], arguments))
        except OSError:
            raise SwarmError(AVERAGER_DIED) from None
        return future
