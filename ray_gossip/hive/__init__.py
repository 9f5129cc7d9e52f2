"""The only home of hivemind: DHT, averager, membership; hivemind's own optimizer."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # hivemind scripts two functions with torch.jit at import, which newer torch calls deprecated
    warnings.filterwarnings("ignore", message=r"`torch\.jit", category=Warning)
    import hivemind as hivemind

from ray_gossip.hive.charter import read_charter
from ray_gossip.hive.codec import mend_clipping
from ray_gossip.hive.indices import claim_index
from ray_gossip.hive.process import guard_forks, quiet_hivemind, start_dht, stop_dht
from ray_gossip.hive.repairs import (
    bound_answers,
    bound_messages,
    forbid_relays,
    keep_one_id_of_a_peer,
    keep_records_until_they_expire,
    mend_late_answers,
)

__all__ = ["claim_index", "guard_forks", "quiet_hivemind", "read_charter", "start_dht", "stop_dht"]

mend_late_answers()
bound_messages()
bound_answers()
forbid_relays()
keep_one_id_of_a_peer()
keep_records_until_they_expire()
mend_clipping()
