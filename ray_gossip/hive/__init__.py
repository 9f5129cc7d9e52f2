"""The only home of hivemind: DHT, averager, membership, both engines."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # hivemind scripts two functions with torch.jit at import, which newer torch calls deprecated
    warnings.filterwarnings("ignore", message=r"`torch\.jit", category=Warning)
    import hivemind

from ray_gossip.config import Config
from ray_gossip.hive.engine import Engine, FinalResult, TrainingState
from ray_gossip.hive.gossip import GossipEngine
from ray_gossip.hive.process import guard_forks, quiet_hivemind, start_dht, stop_dht
from ray_gossip.hive.shipped import HivemindEngine

__all__ = [
    "Engine",
    "FinalResult",
    "TrainingState",
    "build_engine",
    "guard_forks",
    "quiet_hivemind",
    "start_dht",
    "stop_dht",
]


def build_engine(
    config: Config, *, dht: hivemind.DHT, run_id: str, peer_index: int, state_size: int, node: str = ""
) -> Engine:
    """The engine that the config names. On the main thread, before any CUDA call: it forks."""
    engine = HivemindEngine if config.engine == "hivemind" else GossipEngine
    return engine(config, dht=dht, run_id=run_id, peer_index=peer_index, state_size=state_size, node=node)
