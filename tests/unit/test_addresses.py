"""Addresses, keys and folders that a user types: told where they are typed, as hivemind would take them."""

from __future__ import annotations

import contextlib
import os
import socket
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon import P2P
from hivemind.utils.multiaddr import Multiaddr
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_gossip.addresses import Ports, check_free, check_identity, check_multiaddr
from ray_gossip.config import parse
from ray_gossip.errors import ConfigError, SwarmError
from ray_gossip.folders import check_writable
from ray_gossip.gossip.seat import Listen

RSA_ID = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
ED25519_ID = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"


@pytest.mark.parametrize(
    "address",
    [
        f"/ip4/192.0.2.1/tcp/4011/p2p/{RSA_ID}",
        f"/ip6/fd00::2/tcp/1/p2p/{ED25519_ID}",
        f"/dns4/swarm.example.org/udp/65535/quic/p2p/{RSA_ID}",
        f"/dns/localhost/tcp/80/ws/p2p/{RSA_ID}",
    ],
)
def test_an_address_that_hivemind_takes_passes(address: str) -> None:
    check_multiaddr("--initial_peer", address, names_peer=True)
    assert str(Multiaddr(address)) == address


@pytest.mark.parametrize(
    ("address", "line"),
    [
        (f"/ip4/192.0.2.1/tcp/65536/p2p/{RSA_ID}", "65536 is no port; it lies in 1..65535"),
        (f"/ip4/192.0.2.1/tcp/0/p2p/{RSA_ID}", "0 is no port; it lies in 1..65535"),
        (f"/ip4/999.1.1.1/tcp/1/p2p/{RSA_ID}", "999.1.1.1 is no IPv4 address"),
        (f"/ip4/localhost/tcp/1/p2p/{RSA_ID}", "localhost is no IPv4 address"),
        (f"/ip4/fd00::2/tcp/1/p2p/{RSA_ID}", "fd00::2 is no IPv4 address"),
        (f"/ip6/192.0.2.1/tcp/1/p2p/{RSA_ID}", "192.0.2.1 is no IPv6 address"),
        (f"/dns/-a-/tcp/1/p2p/{RSA_ID}", "-a- is no host name"),
        (f"/ip4/192.0.2.1/tcp/ssh/p2p/{RSA_ID}", "is no multiaddr"),
        (f"/ip4/192.0.2.1/udp/1/p2p/{RSA_ID}", "udp needs /quic, and tcp has none"),
        (f"/ip4/192.0.2.1/tcp/1/p2p/{RSA_ID[:-1]}", f"{RSA_ID[:-1]} is no peer id"),
        ("/ip4/192.0.2.1/tcp/1/p2p/" + "Q" * 46, "is no peer id"),
        ("/ip4/192.0.2.1/tcp/1/p2p/0OIl", "0OIl is no peer id"),
        ("/ip4/192.0.2.1/tcp/1", "names no peer id"),
        ("", "is no multiaddr"),
        ("/ip4/192.0.2.1/tcp/1\n", "/ip4/192.0.2.1/tcp/1\\n is no multiaddr"),
    ],
)
def test_an_address_that_nobody_can_dial_is_one_line(address: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_multiaddr("--initial_peer", address, names_peer=True)
    assert str(error.value).startswith("--initial_peer ")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


hosts = st.sampled_from(["192.0.2.1", "1.2.3", "01.2.3.4", "999.1.1.1", "::1", "::%lo", "a.b", "a..b", "x_y"])
hosts |= st.ip_addresses().map(str) | st.text(max_size=5)
peer_ids = st.sampled_from([RSA_ID, ED25519_ID, RSA_ID[:-1], ED25519_ID + "1", "", "Q" * 46]) | st.text(max_size=5)
addresses = st.tuples(
    st.sampled_from(["ip4", "ip6", "dns", "dns4", "onion"]),
    hosts,
    st.sampled_from(["tcp", "udp", "sctp"]),
    st.sampled_from(["0", "1", "65535", "65536", "ssh", "-1", "1.5"]),
    st.sampled_from(["", "quic", "ws", "quic/ws"]),
    st.just("p2p"),
    peer_ids,
).map(lambda parts: "/" + "/".join(part for part in parts if part))


@settings(max_examples=300)
@given(addresses)
def test_what_passes_here_passes_hivemind(address: str) -> None:
    with contextlib.suppress(ConfigError):
        check_multiaddr("--initial_peer", address, names_peer=True)
        assert PeerID.from_base58(Multiaddr(address)["p2p"]).to_base58() in address


@settings(max_examples=100)
@given(st.ip_addresses(), st.integers(1, 65535), st.sampled_from([RSA_ID, ED25519_ID]))
def test_what_hivemind_says_of_a_peer_passes_here(host: IPv4Address | IPv6Address, port: int, peer_id: str) -> None:
    address = str(Multiaddr(f"/ip{host.version}/{host}/tcp/{port}/p2p/{peer_id}"))
    check_multiaddr("--initial_peer", address, names_peer=True)


def test_a_port_that_is_taken_or_of_another_machine_is_told_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"^--host_maddr {taken}: Address already in use; name another"):
            check_free("--host_maddr", taken)
    check_free("--host_maddr", taken)
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1/tcp/0: Cannot assign requested address; name another"):
        check_free("--host_maddr", "/ip4/192.0.2.1/tcp/0")
    with pytest.raises(ConfigError, match=r"to listen, name an address of this machine"):
        check_free("--host_maddr", "/dns4/localhost/tcp/0")


def test_the_key_that_hivemind_writes_is_taken_for_one(tmp_path: Path) -> None:
    key = tmp_path / "key"
    check_identity("--identity_path", key)  # is made
    P2P.generate_identity(str(key))
    check_identity("--identity_path", key)
    content = key.read_bytes()
    for broken in (b"", content[:-1], content + b"\0", content[1:], b"-----BEGIN PRIVATE KEY-----\n"):
        key.chmod(0o600)
        key.write_bytes(broken)
        with pytest.raises(ConfigError, match=r"^--identity_path .*/key holds no key of a peer id; name another file"):
            check_identity("--identity_path", key)


def test_a_key_that_can_be_neither_read_nor_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path, line in (
        (tmp_path, " is no file; name one, it is made if missing"),
        (tmp_path / "no" / "key", f"/no/key: there is no folder {tmp_path}/no; make it, or name another file"),
        (tmp_path / "loop", "/loop: Too many levels of symbolic links; name another file"),
        (Path("/proc/key"), "cannot write to --identity_path /proc: /proc: No such file or directory"),
        (tmp_path / ("a" * 300), " is no file"),
    ):
        with pytest.raises(ConfigError) as error:
            check_identity("--identity_path", path)
        assert line in str(error.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("loop/run", "{folder}/loop: Too many levels of symbolic links; name another folder"),
        ("file/run", "{folder}/file is not a writable folder"),
        ("a" * 256, "cannot be the name of a folder"),
        ("a/" * 1500, "cannot be the name of a folder"),
        ("a\nb", "cannot be the name of a folder"),
        ("/proc/run", "/proc: No such file or directory; name another folder"),
        ("/sys/run", "/sys: "),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_one_line_and_leaves_nothing(
    name: str, line: str, tmp_path: Path
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as error:
        check_writable(tmp_path / name)
    assert str(error.value).startswith(("--run-dir ", "cannot write to --run-dir "))
    assert line.format(folder=tmp_path) in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]  # noqa: PTH208


def test_a_folder_that_can_be_written_to_is_tried_without_a_trace(tmp_path: Path) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "new" / "er")
    assert list(tmp_path.iterdir()) == []


def test_peers_listen_at_ports_of_the_range_that_nobody_else_has_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1]
        listen = Listen(("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/4011"))
        one, other = Ports((first, first + 2)), Ports((first, first + 2))
        found = [listen.within(ports).host_maddrs for ports in (one, other)]
        assert found == [(f"/ip4/127.0.0.1/tcp/{first + each}", "/ip4/127.0.0.1/tcp/4011") for each in (1, 2)]
        with pytest.raises(SwarmError, match=rf"^no port of swarm.port_range=\[{first}, {first + 2}\] is free on this"):
            listen.within(one)
    assert listen.within(Ports(None)) == listen
    one.release()
    assert other.take("/ip4/127.0.0.1/udp/0/quic") == f"/ip4/127.0.0.1/udp/{first}/quic"
    other.release()


@pytest.mark.parametrize(
    ("ports", "says"),
    [
        (
            [20099, 20000],
            r"swarm.port_range.*\[20099, 20000\] is no range; give its first and last port, \[20000, 20099",
        ),
        ([20000], r"swarm.port_range.*\[20000\] is no range"),
        ([0, 10], "swarm.port_range.*is no range"),
        ([70000, 70001], "swarm.port_range.*is no range"),
        ("20000-20099", "swarm.port_range.*20000-20099 is no range"),
    ],
)
def test_a_range_that_is_none_is_refused(ports: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse({"swarm": {"port_range": ports}})
