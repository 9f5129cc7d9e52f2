"""Gossip training: Ray actors host hivemind peers; no parameter server, no global barrier.

GossipTrainer(...).fit()     a whole run from Python
join(model, ...)             a peer in a training loop of your own
shard_of(dataset)            this peer's part of it, where a trainer joins later
UserError, SwarmError        what they raise, see `ray_gossip.errors`
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ray_gossip.errors import ConfigError, DataError, RayGossipError, ResourceError, SwarmError, UserError

if TYPE_CHECKING:
    from ray_gossip.gossip_trainer import GossipTrainer
    from ray_gossip.loop import join, shard_of

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "DataError",
    "GossipTrainer",
    "RayGossipError",
    "ResourceError",
    "SwarmError",
    "UserError",
    "join",
    "shard_of",
]

_HOMES = {"GossipTrainer": "ray_gossip.gossip_trainer", "join": "ray_gossip.loop", "shard_of": "ray_gossip.loop"}


def __getattr__(name: str) -> Any:
    """What is heavy is loaded when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
