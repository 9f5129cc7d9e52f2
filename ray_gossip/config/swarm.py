"""The `swarm:` section."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ray_gossip.config.section import Count, Peers, Seconds, Section

Port = Annotated[int, Field(ge=1, le=65535)]


class SwarmConfig(Section):
    """Who takes part, and what each peer gets."""

    num_peers: Peers = 4
    """Peers that the driver starts, 1 or more. One peer = one Ray actor = one hivemind averager."""
    min_peers: Peers | None = None
    """The run begins when so many peers have room; the others come in when the cluster has grown, and go when it
    shrinks. Unset: swarm.num_peers, all or nothing. For clusters that scale, and for spot instances."""
    cpus_per_peer: float = Field(0.25, ge=0.001, le=1000)
    """Ray CPUs reserved for a peer. A fraction lets more peers than cores share a machine: good for trying things
    out. On a GPU cluster 2 or more: libp2p costs CPU."""
    gpus_per_peer: float = Field(0.0, ge=0, le=1000)
    """Ray GPUs reserved for a peer. 0 trains on the CPU; 1 is the normal choice on a cluster; 0.25 lets four peers
    share a GPU."""
    accelerator_type: str | None = Field(None, min_length=1, max_length=100)
    """The kind of GPU that peers are placed on, as Ray names it: A100, H100, ...; unset: any. For clusters of several
    kinds."""
    resources_per_peer: dict[str, Annotated[float, Field(ge=0.001, le=1e9)]] = Field(default_factory=dict)
    """Custom Ray resources reserved for a peer, such as {fast_network: 1}, on nodes that were started with them."""
    preload: bool = True
    """Processes of peers are forked from one for each node that has imported torch once: each starts in seconds less,
    and they share its memory. Off: each imports everything by itself. A job with a Python of its own (pip, conda, uv, a
    container in its runtime environment) always does."""
    placement: Literal["PACK", "SPREAD", "STRICT_SPREAD"] = "PACK"
    """How Ray places the peers. SPREAD over nodes when the network between them is fast and their memory is not."""
    port_range: tuple[Port, Port] | None = None
    """First and last of the TCP ports at which peers listen, for firewalls: [20000, 20099]. Each peer of a machine
    takes one (with engine=hivemind two). Unset: any free ones."""
    start_s: Seconds = 180.0
    """Deadline in seconds for the swarm to come up. Raise it when many peers share few cores."""
    silent_s: Seconds = 60.0
    """Seconds without a sign of life from a peer's process, after which the peer is lost: it is stopped, or hangs. How
    long a local step or an evaluation takes does not matter. Raise it when machines stand still for a minute and go on
    after it."""
    max_replacements: Count | None = None
    """How often a peer is replaced that is lost again and again, with less than a minute of training in between; 0:
    never. A successor takes over model, optimizer and local step of a living peer. Unset: 3; for a `train.loop` 0,
    because it begins at its beginning: set it where the loop goes on at `peer.local_step`."""
    max_replacements_per_run: Count = 1000
    """How often peers are replaced in all."""
    open: bool = False
    """Anybody who can reach a peer can join, read the model and change it. Else only who knows the run's secret, which
    the driver makes and keeps in a file that only its user can read."""
    stop_s: Seconds = 10.0
    """Deadline in seconds for an orderly stop; what has not stopped by then is killed."""
    final_s: Seconds = 60.0
    """Deadline in seconds for the final rounds, in which the swarm mixes to agreement. A peer that is done waits at
    most this long for slower ones: raise it when peers differ much in speed."""

    @property
    def least(self) -> int:
        """Peers with which a run begins."""
        return self.num_peers if self.min_peers is None else self.min_peers

    @model_validator(mode="after")
    def _grows(self) -> SwarmConfig:
        if self.least > self.num_peers:
            raise ValueError(f"min_peers={self.least} is above num_peers={self.num_peers}, which is the most; lower it")
        if self.least < self.num_peers and self.placement != "PACK":
            raise ValueError(f"min_peers needs placement=PACK, not {self.placement}: who comes later is placed alone")
        return self

    @field_validator("port_range", mode="before")
    @classmethod
    def _two_ports(cls, ports: Any) -> Any:
        match ports:
            case None:
                return None
            case [int(first), int(last)] if 1 <= first <= last <= 65535:
                return (first, last)
        raise ValueError(f"{ports} is no range; give its first and last port, [20000, 20099]")

    @field_validator("resources_per_peer")
    @classmethod
    def _custom(cls, resources: dict[str, float]) -> dict[str, float]:
        own = {"CPU": "cpus_per_peer", "GPU": "gpus_per_peer"}
        for name in own.keys() & resources.keys():
            raise ValueError(f"{name} has a key of its own: set swarm.{own[name]}")
        return resources

    @field_validator("gpus_per_peer")
    @classmethod
    def _whole_or_a_share(cls, gpus: float) -> float:
        """What Ray can reserve: ten-thousandths of one GPU, or whole ones."""
        if 0 < gpus < 0.001 or (gpus > 1 and gpus != int(gpus)):
            raise ValueError(
                f"{gpus:g} is no share that Ray can reserve; give 0, a share from 0.001 to 1, or whole GPUs"
            )
        return gpus
