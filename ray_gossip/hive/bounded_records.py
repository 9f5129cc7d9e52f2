"""What others store in this peer's DHT process takes a bounded part of its memory: a member may sign as many records
as it likes, under as many peer ids.

Records that hold for long have little room of their own, so that nobody fills the room of the members' declarations
for days: those make room again within minutes.
"""

from __future__ import annotations

from time import monotonic

from hivemind.dht.crypto import DHTRecord, RecordValidatorBase
from hivemind.utils import get_dht_time

SOON_S = 600.0  # a record that expires later than that holds for long: of ours, a claim to a peer index
_MOST_SOON, _MOST_LONG = 2**26, 2**22  # bytes: of 10,000 declarations, and of 4,000 claims
_OVERHEAD = 1024  # bytes that hivemind keeps beside a record's own
_TO_GROW = 2048  # bytes: a declaration that grows by a few finds room where there is none for others
_PAUSE_S = 1.0  # between two looks for what has expired


class _Room:
    """The records in it, by name, and what is reserved for each. What has expired goes when the room is full."""

    def __init__(self, most_bytes: int, to_grow: int = 0) -> None:
        self._most, self._to_grow = most_bytes, to_grow
        self._held: dict[tuple[bytes, bytes], tuple[int, float]] = {}
        self._bytes = 0
        self._tidied_at = -_PAUSE_S

    def takes(self, name: tuple[bytes, bytes], num_bytes: int, expires: float) -> bool:
        before, until = self._held.get(name, (0, 0.0))
        if expires <= until:
            return True  # the one that is held stays
        if num_bytes > before and self._bytes + num_bytes + self._to_grow - before > self._most:
            self._tidy()
            before, _ = self._held.get(name, (0, 0.0))
        reserved = before if num_bytes <= before else num_bytes + self._to_grow
        if reserved > before and self._bytes + reserved - before > self._most:
            return False
        self._held[name] = (reserved, expires)
        self._bytes += reserved - before
        return True

    def _tidy(self) -> None:
        if monotonic() < self._tidied_at + _PAUSE_S:
            return
        now, self._tidied_at = get_dht_time(), monotonic()
        self._held = {name: held for name, held in self._held.items() if held[1] > now}
        self._bytes = sum(num_bytes for num_bytes, _ in self._held.values())


class BoundedRecords(RecordValidatorBase):
    """Refuses what there is no room for. A record that is renewed takes the place of the one before."""

    def __init__(self, *, most_soon: int = _MOST_SOON, most_long: int = _MOST_LONG) -> None:
        self._soon, self._long = _Room(most_soon, _TO_GROW), _Room(most_long)

    def validate(self, record: DHTRecord) -> bool:
        room = self._long if record.expiration_time - get_dht_time() > SOON_S else self._soon
        num_bytes = len(record.value) + _OVERHEAD
        return room.takes((record.key, record.subkey), num_bytes, record.expiration_time)

    @property
    def priority(self) -> int:
        """The last to look: only what all others let pass takes room."""
        return -1
