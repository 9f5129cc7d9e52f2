"""The only home of hivemind: DHT, averager, membership, both engines."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # hivemind scripts two functions with torch.jit at import, which newer torch calls deprecated
    warnings.filterwarnings("ignore", message=r"`torch\.jit", category=Warning)
    import hivemind

from ray_gossip.config import Config
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.protocols import Engine, StateShape
from ray_gossip.hive.charter import read_charter
from ray_gossip.hive.codec import mend_clipping
from ray_gossip.hive.gossip import GossipEngine
from ray_gossip.hive.indices import claim_index
from ray_gossip.hive.process import Listen, guard_forks, quiet_hivemind, start_dht, stop_dht
from ray_gossip.hive.repairs import mend_late_answers
from ray_gossip.hive.shipped import HivemindEngine

__all__ = [
    "Listen",
    "build_engine",
    "claim_index",
    "guard_forks",
    "quiet_hivemind",
    "read_charter",
    "start_dht",
    "stop_dht",
]

mend_late_answers()
mend_clipping()


def build_engine(
    config: Config,
    *,
    dht: hivemind.DHT,
    charter: Charter,
    peer_index: int,
    shape: StateShape,
    node: str = "",
    data: str = "",
) -> Engine:
    """The engine that the config names. On the main thread, before any CUDA call: it forks."""
    engine = HivemindEngine if config.engine == "hivemind" else GossipEngine
    return engine(config, dht=dht, charter=charter, peer_index=peer_index, shape=shape, node=node, data=data)
