"""Records of the DHT that nobody can read are neither stored nor taken from others.

In hivemind 1.1 one of them ends the search of each peer that comes upon it, with the error of its unpacking; under the
members' key that is every peer of the swarm.
"""

from __future__ import annotations

from hivemind.dht.crypto import DHTRecord, RecordValidatorBase

from ray_gossip.gossip.messages import Malformed, plain


class ReadableRecords(RecordValidatorBase):
    def validate(self, record: DHTRecord) -> bool:
        try:
            plain(record.value)
        except Malformed:
            return False
        return True
