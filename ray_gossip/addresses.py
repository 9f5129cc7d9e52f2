"""Multiaddrs, libp2p's addresses: checked where they are typed, before anything heavy is loaded."""

from __future__ import annotations

import re

from ray_gossip.errors import ConfigError

_LISTEN = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/[^/\s]+/(tcp|udp)/\d{1,5}(/\S*)?")
_PEER_ID = re.compile(r"\S*/p2p/[1-9A-HJ-NP-Za-km-z]{40,}")


def check_multiaddr(option: str, address: str, *, names_peer: bool) -> None:
    """Raise ConfigError when this is no multiaddr, or (on request) none that names a peer.

    Args:
        option: where it was typed.
    """
    example = "/ip4/192.0.2.1/tcp/4011" + ("/p2p/Qm..." if names_peer else "")
    if not _LISTEN.fullmatch(address):
        raise ConfigError(f"{option} {address} is no multiaddr; one looks like {example}")
    if names_peer and not _PEER_ID.fullmatch(address):
        raise ConfigError(f"{option} {address} names no peer id; a whole one looks like {example}")
