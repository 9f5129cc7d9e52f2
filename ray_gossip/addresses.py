"""Multiaddrs, libp2p's addresses, and the keys of peer ids: checked where they are typed, by light code.

What passes here, hivemind's own parsers take; they are too heavy to be asked before a mistake is answered.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from pathlib import Path

import base58

from ray_gossip.errors import ConfigError, SwarmError
from ray_gossip.folders import check_writable, is_possible

_PARTS = re.compile(
    r"/(?P<kind>ip4|ip6|dns|dns4|dns6)/(?P<host>[^/]+)/(?P<transport>tcp|udp)/(?P<port>[0-9]{1,5})"
    r"(?P<over>(/(quic|quic-v1|ws|wss|tls))*)(/p2p/(?P<peer_id>[^/]+))?",
    re.ASCII,
)
_ANY_PORT = re.compile(r"(?<=/(?:tcp|udp)/)0(?=/|\Z)")
_NAME = re.compile(r"(?=.{1,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.?)+", re.ASCII | re.IGNORECASE)
# multihashes that peer ids are: SHA-256 of a key, or a short key itself (Ed25519, secp256k1)
_PEER_IDS = ((b"\x12\x20", 34), (b"\x00\x24", 38), (b"\x00\x25", 39))
_RSA_KEY = b"\x08\x00\x12"  # protobuf: field 1, the type, is RSA; field 2, the key, follows


def check_multiaddr(option: str, address: str, *, names_peer: bool) -> None:
    """Raise ConfigError when this is no multiaddr, or (on request) none that names a peer.

    Args:
        option: where it was typed.
    """
    example = "/ip4/192.0.2.1/tcp/4011" + ("/p2p/Qm..." if names_peer else "")
    parts = _PARTS.fullmatch(str(address))  # of a user's own code, it may be anything
    if parts is None:
        raise ConfigError(f"{option} {address} is no multiaddr; one looks like {example}")
    if not _is_host(parts["kind"], parts["host"]):
        raise ConfigError(
            f"{option} {address}: {parts['host']} is no {_KINDS[parts['kind']]}; one looks like {example}"
        )
    lowest = 1 if names_peer else 0
    if not lowest <= int(parts["port"]) <= 65535:
        raise ConfigError(f"{option} {address}: {parts['port']} is no port; it lies in {lowest}..65535")
    if (parts["transport"] == "udp") != ("/quic" in parts["over"]):
        raise ConfigError(f"{option} {address}: udp needs /quic, and tcp has none; one looks like {example}")
    if names_peer and parts["peer_id"] is None:
        raise ConfigError(f"{option} {address} names no peer id; a whole one looks like {example}")
    if parts["peer_id"] is not None and not _is_peer_id(parts["peer_id"]):
        raise ConfigError(f"{option} {address}: {parts['peer_id']} is no peer id; a whole one looks like {example}")


_KINDS = {"ip4": "IPv4 address", "ip6": "IPv6 address"} | dict.fromkeys(("dns", "dns4", "dns6"), "host name")


def _is_host(kind: str, host: str) -> bool:
    if kind.startswith("dns"):
        return _NAME.fullmatch(host) is not None
    try:
        return "%" not in host and ipaddress.ip_address(host).version == int(kind[-1])
    except ValueError:
        return False


def _is_peer_id(word: str) -> bool:
    try:
        decoded = base58.b58decode(word)
    except ValueError:
        return False
    return any(decoded.startswith(prefix) and len(decoded) == length for prefix, length in _PEER_IDS)


def check_free(option: str, address: str) -> None:
    """Raise ConfigError when nobody can listen at this multiaddr now: it is not of this machine, or taken."""
    parts = _PARTS.fullmatch(address)
    if parts is None or not parts["kind"].startswith("ip"):
        raise ConfigError(
            f"{option} {address}: to listen, name an address of this machine, such as /ip4/0.0.0.0/tcp/4011"
        )
    family = socket.AF_INET if parts["kind"] == "ip4" else socket.AF_INET6
    kind = socket.SOCK_STREAM if parts["transport"] == "tcp" else socket.SOCK_DGRAM
    try:
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as libp2p: free again right after its use
            probe.bind((parts["host"], int(parts["port"])))
    except OSError as error:
        raise ConfigError(f"{option} {address}: {error.strerror}; name another address or port") from None


class Ports:
    """The ports of a range that this process has taken: no other of this program, on this machine, gets them while it
    lives. That nobody listens there yet says nothing: libp2p's daemons may share a port, and then each hears a part of
    what is meant for the other.

    Args:
        ports: first and last; None: any.
    """

    def __init__(self, ports: tuple[int, int] | None) -> None:
        self._range, self._claims = ports, list[socket.socket]()

    def take(self, address: str) -> str:
        """This multiaddr, with a free port of the range where it names any. Raises SwarmError where there is none."""
        if self._range is None or not _ANY_PORT.search(address):
            return address
        for port in range(self._range[0], self._range[1] + 1):
            named = _ANY_PORT.sub(str(port), address)
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                claim.bind(f"\0ray_gossip.port.{port}")  # in the same network namespace as the port itself
                check_free("", named)
            except (OSError, ConfigError):
                claim.close()
            else:
                self._claims.append(claim)
                return named
        raise SwarmError(f"no port of swarm.port_range={[*self._range]} is free on this machine: widen it")

    def release(self) -> None:
        while self._claims:
            self._claims.pop().close()


def check_identity(option: str, path: Path) -> None:
    """Raise ConfigError unless this file holds the key of a peer id, or can be made to hold one."""
    if not is_possible(path) or path.is_dir():
        raise ConfigError(f"{option} {path} is no file; name one, it is made if missing")
    if not os.path.lexists(path):
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"{option} {path}: there is no folder {path.parent}; make it, or name another file")
        return check_writable(path.absolute().parent, option)
    try:
        with path.open("rb") as file:
            content = file.read(10_000)
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror}; name another file") from None
    if not _is_key(content):
        raise ConfigError(f"{option} {path} holds no key of a peer id; name another file, it is made if missing")
    return None


def _is_key(content: bytes) -> bool:
    """RSA, which is what hivemind writes and reads: in a protobuf, whose lengths must fit."""
    key = content[5:]  # after a length of two bytes: keys of 1,024 to 4,096 bits
    return (
        content.startswith(_RSA_KEY)
        and len(content) > 5
        and len(key) == (content[3] & 0x7F) + (content[4] << 7)
        and key.startswith(b"\x30\x82")
        and len(key) == 4 + int.from_bytes(key[2:4], "big")
    )


def free_port_of(ip_address: str) -> str:
    """The multiaddr of any free port of an address, of version 4 or 6."""
    return f"/ip{ipaddress.ip_address(ip_address).version}/{ip_address}/tcp/0"
