"""The engine that a config asks for."""

from __future__ import annotations

from ray_gossip.config import Config
from ray_gossip.gossip.engine import GossipEngine
from ray_gossip.gossip.protocols import Engine
from ray_gossip.sidecar.network import Network


def build_engine(config: Config, network: Network, *, data: str) -> Engine:
    """Attached to no trainer yet.

    Args:
        data: digest of the data set on which this peer trains.
    """
    engine = GossipEngine(config, network, network.seat, data=data)
    if config.engine == "gossip":
        return engine
    from ray_gossip.hive.shipped import HivemindEngine

    return HivemindEngine(config, engine, network.seat)
