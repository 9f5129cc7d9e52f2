"""The only home of Ray: the cluster, the actor that hosts a peer, placement, supervision, an orderly stop."""

from ray_gossip.swarm.cluster import cluster, connected_address
from ray_gossip.swarm.supervision import Swarm

__all__ = ["Swarm", "cluster", "connected_address"]
