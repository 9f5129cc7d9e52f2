"""The home of Ray's core: the cluster, the actor that hosts a peer, placement, supervision, an orderly stop,
and faults on purpose."""

from ray_gossip.swarm.cluster import cluster, connected_address
from ray_gossip.swarm.known import Saves
from ray_gossip.swarm.storage import check_storage
from ray_gossip.swarm.storm import Storm
from ray_gossip.swarm.supervision import Swarm

__all__ = ["Saves", "Storm", "Swarm", "check_storage", "cluster", "connected_address"]
