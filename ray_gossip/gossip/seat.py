"""A peer's place in a swarm: as one that founds it, or as one that comes to it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ray_gossip.addresses import Ports, free_port_of
from ray_gossip.config import Config
from ray_gossip.gossip.admission import Secret
from ray_gossip.gossip.charter import Charter


@dataclass(frozen=True)
class Listen:
    """Where a peer can be dialled, and by whom. Multiaddrs, e.g. /ip4/0.0.0.0/tcp/4011; port 0: a free one."""

    host_maddrs: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    announce_maddrs: tuple[str, ...] = ()  # what others are told instead, behind a NAT or in a container
    identity_path: Path | None = None  # file with the key of a peer id that stays; made if missing
    secret: Secret | None = field(default=None, repr=False)  # that others must know, and this peer shows; None: all may

    def absolute(self) -> Listen:
        """For a process with another working directory."""
        return self if self.identity_path is None else replace(self, identity_path=self.identity_path.absolute())

    def at_port_of(self, multiaddrs: tuple[str, ...]) -> Listen:
        """Where a peer has listened that was told any free port; others may know it."""
        (port,) = {address.split("/tcp/")[1].split("/")[0] for address in multiaddrs if "/tcp/" in address} or {"0"}
        hosts = tuple(
            f"{each.removesuffix('/tcp/0')}/tcp/{port}" if each.endswith("/tcp/0") else each
            for each in self.host_maddrs
        )
        return replace(self, host_maddrs=hosts)

    def within(self, ports: Ports) -> Listen:
        """Any free port becomes one of these. Raises SwarmError where there is none."""
        return replace(self, host_maddrs=tuple(map(ports.take, self.host_maddrs)))

    @classmethod
    def at(cls, ip_address: str, *, secret: Secret | None = None) -> Listen:
        """A free port of this address, of version 4 or 6."""
        return cls((free_port_of(ip_address),), secret=secret)


class Place(NamedTuple):
    """Given by a driver, or to a peer that founds a swarm by itself."""

    charter: Charter
    peer_index: int
    incarnation: int = 0  # processes of this index that were lost before it


@dataclass(frozen=True, kw_only=True)
class Founder:
    """The place of a peer that begins a swarm, or of the successor of one."""

    run_id: str
    peer_index: int  # 0..swarm.num_peers-1
    has_driver: bool  # which takes what this peer's `run` yields
    incarnation: int = 0  # processes of this index that were lost; above 0, it joins the swarm, which runs
    samples: int = 0  # that those have seen
    begins_again: bool = False  # nobody is there: it begins the swarm again, with the model that it brings along

    def place(self, config: Config) -> Place:
        """In the swarm of this config."""
        charter = Charter.of(config, run_id=self.run_id, has_driver=self.has_driver)
        return Place(charter, self.peer_index, self.incarnation)


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Taken."""

    peer_id: str  # libp2p, base58
    place: Place
    multiaddrs: tuple[str, ...]
    secret: Secret | None = field(default=None, repr=False)  # of its swarm

    @property
    def charter(self) -> Charter:
        return self.place.charter

    @property
    def peer_index(self) -> int:
        return self.place.peer_index
