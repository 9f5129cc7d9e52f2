"""Records of the DHT that nobody can read, and endless ones, are neither stored nor taken from others.

In hivemind 1.1 one that is unreadable ends the search of each peer that comes upon it, with the error of its unpacking;
under the members' key that is every peer of the swarm. It bounds neither how long a record is nor how long it holds.
"""

from __future__ import annotations

from hivemind.dht.crypto import DHTRecord, RecordValidatorBase
from hivemind.utils import get_dht_time

from ray_gossip.gossip.messages import Malformed, plain

_MOST_BYTES = 64 * 1024  # the longest of ours, a declaration with a sketch, has a few thousand
_MOST_S = 8 * 24 * 3600.0  # a claim to a peer index holds a week


class ReadableRecords(RecordValidatorBase):
    def validate(self, record: DHTRecord) -> bool:
        if len(record.value) > _MOST_BYTES or not record.expiration_time - get_dht_time() <= _MOST_S:  # nor NaN
            return False
        try:
            plain(record.value)
        except Malformed:
            return False
        return True
