"""One peer: trainer and engine side by side; knows nothing of Ray."""

from ray_gossip.peer.peer import Peer

__all__ = ["Peer"]
