"""Guests: peers that joined a running swarm by themselves. The driver does not know them; a peer of its own passes on
what they tell.

A guest sends its records to any peer that the driver has started, from averager to averager; that peer keeps them
until its own training process takes them along with the next report.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgpack
import numpy as np

from ray_gossip.gossip.members import MOST_INDEX, View
from ray_gossip.gossip.messages import Malformed, plain
from ray_gossip.mixing import SKETCH_SIZE
from ray_gossip.records import PeerFinished, PeerLeft, PeerLost, Record, from_json, to_json

_MAX_KEPT = 4096  # records; a driver that takes none must not cost memory


def pack(record: Record) -> bytes:
    """For the wire. Sketches as float32."""
    fields = to_json(record, with_sketches=True)
    for key in fields:
        if key.startswith("sketch"):
            fields[key] = np.asarray(fields[key], dtype="<f4").tobytes()
    packed: bytes = msgpack.packb(fields)
    return packed


def pack_all(records: Sequence[bytes]) -> bytes:
    """Several of those, as one message."""
    packed: bytes = msgpack.packb([*records])
    return packed


def unpack_all(wire: bytes) -> list[Record]:
    """Raises Malformed."""
    found = plain(wire)
    if not isinstance(found, tuple) or not all(isinstance(each, bytes) for each in found):
        raise Malformed("these are no records")
    return [*map(unpack, found)]


def unpack(wire: bytes) -> Record:
    """The record that was packed. Raises Malformed when there is none."""
    try:
        fields = plain(wire)
        for key in fields:
            if key.startswith("sketch"):
                fields[key] = np.frombuffer(fields[key], dtype="<f4").tolist()
                if len(fields[key]) not in (0, SKETCH_SIZE):
                    raise ValueError(f"a sketch has {SKETCH_SIZE} numbers")
        record = from_json(fields)
    except (TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"this is no record: {error}") from None
    if not 0 <= record.peer_index <= MOST_INDEX:
        raise Malformed(f"this is no record: no peer has the index {record.peer_index}")
    return record


class GuestBook:
    """What guests have told this peer and the driver has not yet taken.

    Args:
        num_peers: the driver's own peers have the indices below this.
    """

    def __init__(self, num_peers: int) -> None:
        self._num_peers = num_peers
        self._present: dict[str, int] = {}  # peer id -> peer index, of those that have not said goodbye
        self._seen: set[str] = set()  # those of them that were in a view: a newcomer's declaration may come later
        self._records: list[Record] = []

    def write(self, peer_id: str, records: Sequence[Record]) -> None:
        """Take what this guest tells.

        Raises:
            Malformed: these are not the records of one guest.
        """
        indices = {record.peer_index for record in records}
        if len(indices) != 1 or min(indices) < self._num_peers or self._present.get(peer_id, *indices) not in indices:
            raise Malformed(f"{peer_id} sends records of the peers {sorted(indices)}")
        self._present[peer_id] = indices.pop()
        if any(isinstance(record, (PeerFinished, PeerLeft)) for record in records):
            del self._present[peer_id]
        self._records = [*self._records, *records][-_MAX_KEPT:]

    def take(self, view: View) -> list[Record]:
        """What was told since the last time, and which guests are gone without a goodbye."""
        here = {member.peer_id for member in view.present}
        self._seen |= here & self._present.keys()
        for peer_id in self._seen - here:
            self._seen.remove(peer_id)
            if peer_id in self._present:
                self._records.append(
                    PeerLost(
                        peer_index=self._present.pop(peer_id),
                        wall_time=time.time(),
                        cause="it did not renew its declaration: it died, or cannot be reached",
                    )
                )
        records, self._records = self._records, []
        return records
