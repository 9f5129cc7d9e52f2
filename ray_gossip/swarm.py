"""The Ray home: the cluster, the actor that hosts a peer, placement, supervision, an orderly stop.

The pending item of each peer's stream of reports is its heartbeat: when the actor dies, Ray fails it at once.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util import get_node_ip_address
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_gossip.config import Config, SwarmConfig
from ray_gossip.errors import ResourceError, SwarmError
from ray_gossip.records import Notice, PeerFinished, PeerLost, PeerStarted, Record

_POLL_S = 0.2  # how often the driver looks up from waiting, so that Ctrl-C is answered at once
_LOCAL_OBJECT_STORE_BYTES = 200 * 2**20  # reports and one model pass through it, nothing else


@contextlib.contextmanager
def cluster(config: SwarmConfig, *, address: str | None) -> Iterator[None]:
    """Connect to the Ray cluster at `address`, or start a local one; leave it (or end it) afterwards.

    Raises:
        ResourceError: the cluster cannot hold the swarm. Found before anything of the swarm is started.
    """
    if ray.is_initialized():
        check_fits(config, _node_resources())
        yield
        return
    if address is None:
        num_cpus = len(os.sched_getaffinity(0))
        check_fits(config, [{"CPU": float(num_cpus), **({} if _may_have_gpus() else {"GPU": 0.0})}])
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
            logging_level="ERROR",
        )
    else:
        ray.init(logging_level="ERROR")  # a bare init: RAY_ADDRESS and the job's own runtime environment count
    try:
        check_fits(config, _node_resources())
        yield
    finally:
        ray.shutdown()


def check_fits(config: SwarmConfig, nodes: list[dict[str, float]]) -> None:
    """Raise ResourceError unless the nodes can hold every peer's bundle. A resource that a node does not list is
    not checked: it is not known yet."""
    for resource, each in (("CPU", config.cpus_per_peer), ("GPU", config.gpus_per_peer)):
        if each == 0 or not all(resource in node for node in nodes):
            continue
        have = sum(node[resource] for node in nodes)
        need = config.num_peers * each
        key = f"swarm.{resource.lower()}s_per_peer"
        if need > have:
            raise ResourceError(
                f"swarm.num_peers={config.num_peers} with {key}={each:g} needs {need:g} {resource}s but the cluster "
                f"has {have:g}: lower swarm.num_peers or {key}"
            )
        places = sum(math.floor(node[resource] / each + 1e-9) for node in nodes)
        if places < config.num_peers:
            raise ResourceError(
                f"swarm.num_peers={config.num_peers} with {key}={each:g}: the cluster has {have:g} {resource}s, but "
                f"on its {len(nodes)} nodes only {places} whole peers fit: lower swarm.num_peers or {key}"
            )
    if config.placement == "STRICT_SPREAD" and len(nodes) < config.num_peers:
        raise ResourceError(
            f"swarm.placement=STRICT_SPREAD needs a node per peer: swarm.num_peers={config.num_peers} but the cluster "
            f"has {len(nodes)} nodes; use SPREAD"
        )


def _node_resources() -> list[dict[str, float]]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [{"CPU": node.get("CPU", 0.0), "GPU": node.get("GPU", 0.0)} for node in nodes]


def _may_have_gpus() -> bool:
    """Whether this machine could have an NVIDIA GPU. The driver never touches CUDA, so it cannot count them."""
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


@ray.remote(concurrency_groups={"control": 2}, max_restarts=0, max_task_retries=0)
class PeerActor:
    """One peer in a Ray actor. `__init__` is on the main thread, as hivemind's forks need."""

    def __init__(self, config: Config, *, run_id: str, peer_index: int, first_peer: list[Any], loopback: bool) -> None:
        from ray_gossip.peer import Peer

        self._index = peer_index
        self._peer = Peer(
            config,
            run_id=run_id,
            peer_index=peer_index,
            host="127.0.0.1" if loopback else get_node_ip_address(),
            # nested in a list, so that Ray does not wait for peer 0 before this peer has done its imports
            initial_peers=lambda: ray.get(first_peer[0]) if first_peer else (),
            node=ray.get_runtime_context().get_node_id(),
        )

    def __repr__(self) -> str:
        return f"peer-{self._index:02d}"

    @ray.method(concurrency_group="control")
    def multiaddrs(self) -> tuple[str, ...]:
        return self._peer.multiaddrs()

    @ray.method(concurrency_group="control")
    def started(self) -> PeerStarted:
        return self._peer.started()

    @ray.method(num_returns="streaming")
    def run(self) -> Iterator[list[Record]]:
        yield from self._peer.run()

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        self._peer.stop()

    @ray.method(concurrency_group="control")
    def model(self) -> bytes:
        return self._peer.model()

    @ray.method(concurrency_group="control")
    def shutdown(self) -> None:
        self._peer.shutdown()


class Swarm:
    """The peers of one run. Use as a context manager: leaving it stops every peer, whatever happened."""

    def __init__(self, config: Config, *, run_id: str) -> None:
        self.config, self.run_id = config, run_id
        self._group: PlacementGroup | None = None
        self._actors: dict[int, Any] = {}  # live peers by index
        self._streams: dict[Any, int] = {}
        self._finished: dict[int, PeerFinished] = {}

    def __enter__(self) -> Swarm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Iterator[Record]:
        """Start all peers at once; yields each PeerStarted or PeerLost as it happens.

        Raises:
            SwarmError: no peer came up within `swarm.start_s`.
        """
        swarm = self.config.swarm
        deadline = time.monotonic() + swarm.start_s
        bundle = {"CPU": swarm.cpus_per_peer}
        if swarm.gpus_per_peer > 0:
            bundle["GPU"] = swarm.gpus_per_peer
        self._group = placement_group([bundle] * swarm.num_peers, strategy=swarm.placement)
        if not self._group.wait(swarm.start_s):
            raise SwarmError(
                f"Ray found no room for {swarm.num_peers} bundles of {bundle} within swarm.start_s={swarm.start_s:g}: "
                "other jobs may hold the resources"
            )
        loopback = len(_node_resources()) == 1
        first_peer: list[Any] = []
        for index in range(swarm.num_peers):
            actor = PeerActor.options(  # type: ignore[attr-defined]
                name=f"{self.run_id}/peer-{index:02d}",
                num_cpus=swarm.cpus_per_peer,
                num_gpus=swarm.gpus_per_peer,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, index),
                runtime_env={"env_vars": {"RAY_worker_niceness": "0"}},
            ).remote(self.config, run_id=self.run_id, peer_index=index, first_peer=first_peer, loopback=loopback)
            self._actors[index] = actor
            if index == 0:
                first_peer = [actor.multiaddrs.remote()]
        pending = {actor.started.remote(): index for index, actor in self._actors.items()}
        while pending and time.monotonic() < deadline:
            ready, _ = ray.wait(list(pending), timeout=_POLL_S)
            for reference in ready:
                index = pending.pop(reference)
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield from self._lose(index, error)
        for index in pending.values():
            ray.kill(self._actors.pop(index))
            yield _lost(index, f"did not come up within swarm.start_s={swarm.start_s:g} s")
        if not self._actors:
            raise SwarmError("no peer came up")

    def run(self) -> Iterator[Record]:
        """Let all peers train; yields their records until each has finished or is lost."""
        self._streams = {actor.run.remote(): index for index, actor in self._actors.items()}
        yield from self._read(deadline=math.inf)

    def stop(self) -> Iterator[Record]:
        """Ask all peers to stop; yields what they still had to say, for at most `swarm.stop_s` seconds."""
        for actor in self._actors.values():
            actor.stop.remote()
        yield from self._read(deadline=time.monotonic() + self.config.swarm.stop_s)

    def model(self) -> bytes | None:
        """The merged model from the first peer that took part in the final rounds; None when there is none."""
        averaged_first = sorted(self._finished.values(), key=lambda f: (f.final_outcome != "averaged", f.peer_index))
        for index in (finished.peer_index for finished in averaged_first):
            if index in self._actors:
                with contextlib.suppress(ray.exceptions.RayError):
                    model: bytes = ray.get(self._actors[index].model.remote(), timeout=self.config.swarm.final_s)
                    return model
        return None

    def close(self) -> None:
        """End every peer and its processes within `swarm.stop_s`; what has not ended by then is killed."""
        shutdowns = [actor.shutdown.remote() for actor in self._actors.values()]
        if shutdowns:
            ray.wait(shutdowns, num_returns=len(shutdowns), timeout=self.config.swarm.stop_s)
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def _read(self, *, deadline: float) -> Iterator[Record]:
        while self._streams and time.monotonic() < deadline:
            ready, _ = ray.wait(list(self._streams), timeout=_POLL_S)
            for stream in ready:
                index = self._streams[stream]
                try:
                    records: list[Record] = ray.get(next(stream))
                except StopIteration:
                    del self._streams[stream]
                except ray.exceptions.RayError as error:
                    del self._streams[stream]
                    yield from self._lose(index, error)
                else:
                    self._finished.update({r.peer_index: r for r in records if isinstance(r, PeerFinished)})
                    yield from records

    def _lose(self, index: int, error: ray.exceptions.RayError) -> Iterator[Record]:
        actor = self._actors.pop(index)
        if isinstance(error, ray.exceptions.RayTaskError):  # the actor lives, but its code raised
            yield Notice(peer_index=index, wall_time=time.time(), text=str(error))
            ray.kill(actor)
            yield _lost(index, f"raised {str(error.cause or error).strip().splitlines()[-1]}")
        elif isinstance(error, ray.exceptions.ActorDiedError) and "creation task" in str(error):
            yield Notice(peer_index=index, wall_time=time.time(), text=str(error))
            yield _lost(index, f"could not start: {str(error).strip().splitlines()[-1]}")
        else:
            yield _lost(index, "its process died")


def _lost(index: int, cause: str) -> PeerLost:
    return PeerLost(peer_index=index, wall_time=time.time(), cause=cause)
