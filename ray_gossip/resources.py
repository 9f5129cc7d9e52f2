"""Whether a cluster has room for a swarm. Loads nothing heavy, so that a mistake is answered before Ray is loaded."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ray_gossip.config import SwarmConfig
from ray_gossip.errors import ResourceError

Node = Mapping[str, float]  # Ray's resources of one node; without "GPU", what GPUs it has is not known yet

_KEYS = {"CPU": "cpus_per_peer", "GPU": "gpus_per_peer"}
_KIND = "accelerator_type:"  # Ray's name of a node's kind of GPU begins so, and the node has 1 of it
_SHARE_OF_KIND = 0.001  # as Ray itself asks for it: enough to be placed there


def bundle(config: SwarmConfig) -> dict[str, float]:
    """What Ray reserves for one peer."""
    each = {"CPU": config.cpus_per_peer, "GPU": config.gpus_per_peer, **config.resources_per_peer}
    if config.accelerator_type is not None:
        each[_KIND + config.accelerator_type] = _SHARE_OF_KIND
    return {resource: amount for resource, amount in each.items() if amount > 0}


def in_words(config: SwarmConfig) -> str:
    """A peer's bundle: 2 CPUs and 1 GPUs and 1 fast_network and a H100."""
    named = [
        f"a {resource.removeprefix(_KIND)}" if resource.startswith(_KIND) else f"{amount:g} {_plural(resource)}"
        for resource, amount in bundle(config).items()
    ]
    return " and ".join(named)


def this_machine() -> Node:
    """What a local Ray will have. GPUs are left open where there may be any: to count them would touch CUDA."""
    may_have_gpus = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None
    return {"CPU": float(len(os.sched_getaffinity(0))), **({} if may_have_gpus else {"GPU": 0.0})}


def machine_id() -> str:
    """The same for all processes that share this machine, in whatever container or Ray node, and for nobody else."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def pid_namespace() -> int:
    """Process ids mean something within one only: each container usually has its own."""
    return Path("/proc/self/ns/pid").stat().st_ino


def check_fits(config: SwarmConfig, nodes: Sequence[Node]) -> None:
    """Raise ResourceError unless the nodes, were they idle, could hold the bundles of all peers that it begins with."""
    each, least = bundle(config), config.least
    key_of_least = "num_peers" if config.min_peers is None else "min_peers"
    for resource, amount in each.items():
        need, have = least * amount, sum(_amount(node, resource) for node in nodes)
        if resource.startswith(_KIND) and have == 0:
            kinds = sorted({name.removeprefix(_KIND) for node in nodes for name in node if name.startswith(_KIND)})
            raise ResourceError(
                f"swarm.accelerator_type={config.accelerator_type} is on no node of the cluster; there "
                f"{'is ' + ', '.join(kinds) if kinds else 'are no GPUs of a kind that Ray knows'}"
            )
        if need > have and not resource.startswith(_KIND):
            key = f"swarm.{_KEYS.get(resource, f'resources_per_peer.{resource}')}"
            raise ResourceError(
                f"swarm.{key_of_least}={least} with {key}={amount:g} needs {need:g} {_plural(resource)} but the "
                f"cluster has {have:g}: lower swarm.{key_of_least} or {key}"
            )
    if config.port_range is not None:
        first, last = config.port_range
        if (last - first + 1) * len(nodes) < least:
            raise ResourceError(
                f"swarm.port_range=[{first}, {last}] has fewer ports than swarm.{key_of_least}={least} needs on "
                f"{len(nodes)} node{'s' * (len(nodes) > 1)}, one for each peer: widen it"
            )
    places = [_num_bundles(each, node) for node in nodes]
    if sum(places) < least:
        raise ResourceError(
            f"swarm.{key_of_least}={least} but only {sum(places):g} peers with {in_words(config)} each, all on "
            f"one node, fit on the {len(nodes)} nodes of the cluster: lower swarm.{key_of_least}, cpus_per_peer "
            "or gpus_per_peer"
        )
    roomy = sum(place >= 1 for place in places)
    if config.placement == "STRICT_SPREAD" and roomy < config.num_peers:
        raise ResourceError(
            f"swarm.placement=STRICT_SPREAD needs a node for each of swarm.num_peers={config.num_peers} but the "
            f"cluster has {roomy} with room for a peer: lower swarm.num_peers or use SPREAD"
        )


def _amount(node: Node, resource: str) -> float:
    is_open = "GPU" not in node and (resource == "GPU" or resource.startswith(_KIND))
    return node.get(resource, math.inf if is_open else 0.0)


def _plural(resource: str) -> str:
    return f"{resource}s" if resource in _KEYS else resource


def _num_bundles(each: Node, node: Node) -> float:
    """How many bundles one node holds; infinity when nothing that they need is known of it."""
    shares = [_amount(node, resource) / amount for resource, amount in each.items()]
    return min((share if math.isinf(share) else math.floor(share + 1e-9) for share in shares), default=math.inf)


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
