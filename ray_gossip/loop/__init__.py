"""A training loop of the user's own as a peer: by itself, or started by a driver under Ray.

joining.py   `join`: the way into a swarm
peer.py      `LoopPeer`: step, report, leave
shard.py     this peer's part of a data set, before it has joined
voice.py     who hears what it has to say
session.py   what a driver gives a loop
worker.py    a loop as a peer under a driver
"""

from ray_gossip.loop.joining import join
from ray_gossip.loop.peer import LoopPeer
from ray_gossip.loop.shard import shard_of

__all__ = ["LoopPeer", "join", "shard_of"]
