"""Whether a cluster has room for a swarm. Loads nothing heavy, so that a mistake is answered before Ray is loaded."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ray_gossip.config import SwarmConfig
from ray_gossip.errors import ResourceError

Node = Mapping[str, float]  # Ray's resources of one node; one that it does not list is not known yet


def bundle(config: SwarmConfig) -> dict[str, float]:
    """What Ray reserves for one peer."""
    each = {"CPU": config.cpus_per_peer, "GPU": config.gpus_per_peer}
    return {resource: amount for resource, amount in each.items() if amount > 0}


def this_machine() -> Node:
    """What a local Ray will have. GPUs are left open where there may be any: to count them would touch CUDA."""
    may_have_gpus = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None
    return {"CPU": float(len(os.sched_getaffinity(0))), **({} if may_have_gpus else {"GPU": 0.0})}


def check_fits(config: SwarmConfig, nodes: Sequence[Node]) -> None:
    """Raise ResourceError unless the nodes, were they idle, could hold every peer's bundle."""
    each = bundle(config)
    for resource, amount in each.items():
        if not all(resource in node for node in nodes):
            continue
        need, have = config.num_peers * amount, sum(node[resource] for node in nodes)
        if need > have:
            key = f"swarm.{resource.lower()}s_per_peer"
            raise ResourceError(
                f"swarm.num_peers={config.num_peers} with {key}={amount:g} needs {need:g} {resource}s but the cluster "
                f"has {have:g}: lower swarm.num_peers or {key}"
            )
    places = [_num_bundles(each, node) for node in nodes]
    if sum(places) < config.num_peers:
        wanted = " and ".join(f"{amount:g} {resource}s" for resource, amount in each.items())
        raise ResourceError(
            f"swarm.num_peers={config.num_peers} but only {sum(places):g} peers with {wanted} each, all on one node, "
            f"fit on the {len(nodes)} nodes of the cluster: lower swarm.num_peers, cpus_per_peer or gpus_per_peer"
        )
    roomy = sum(place >= 1 for place in places)
    if config.placement == "STRICT_SPREAD" and roomy < config.num_peers:
        raise ResourceError(
            f"swarm.placement=STRICT_SPREAD needs a node for each of swarm.num_peers={config.num_peers} but the "
            f"cluster has {roomy} with room for a peer: lower swarm.num_peers or use SPREAD"
        )


def _num_bundles(each: Node, node: Node) -> float:
    """How many bundles one node holds; infinity when nothing that they need is known of it."""
    known = [node[resource] / amount for resource, amount in each.items() if resource in node]
    return min((math.floor(share + 1e-9) for share in known), default=math.inf)


def num_that_fit(config: SwarmConfig, nodes: Sequence[Node]) -> int:
    """How many such swarms the nodes, were they idle, hold at once."""
    each = bundle(config)
    places = [_num_bundles(each, node) for node in nodes]
    if config.placement != "STRICT_SPREAD":
        return int(sum(places)) // config.num_peers
    num = 0
    while sum(min(place, num + 1) for place in places) >= (num + 1) * config.num_peers:  # a peer of each on a node
        num += 1
    return num
