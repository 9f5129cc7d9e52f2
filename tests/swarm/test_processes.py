"""Every process of a peer ends with it, however it ends."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import pytest
import ray_gossip.hive.health
import torch

from ray_gossip.config import Config
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.protocols import StateShape
from ray_gossip.hive.shipped import HivemindEngine
from ray_gossip.testing import GossipPeer, Peers, start_swarm
from tests.swarm.swarms import Process, blocking, descendants, gossip

DEADLINE_S = 5.0
HUNG_S = 3.0


def is_running(process: Process) -> bool:
    """False for what is gone, and for what is dead and only not yet collected by its parent."""
    try:
        name, _, rest = Path(f"/proc/{process.pid}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return False
    return name == process.name and rest.split()[0] not in "ZX"


def assert_they_end(processes: Iterable[Process]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    left = list(processes)
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [process for process in left if is_running(process)]
    assert not left


def children(peers: Peers) -> list[list[Process]]:
    """The processes of each peer: its DHT, libp2p daemon and averager."""
    found = [descendants(peer.process.pid or 0) for peer in peers]
    for processes in found:
        names = [process.name for process in processes]  # Python's may be python, python3, pytest, ...
        assert (len(names), names.count("p2pd")) == (3, 1), names
    return found


def shared_memory_of(pid: int) -> list[str]:
    """The files of shared memory that a process has mapped; those without a name end in "(deleted)"."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sorted({line.partition("/dev/shm/")[2] for line in lines if "/dev/shm/torch_" in line})


class HeardPeer(GossipPeer):
    """What its processes write to standard error goes into a file."""

    def __init__(self, config: Config, peer_index: int, size: int, initial_peers: Sequence[str]) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the peer
        os.dup2(self.errors.fileno(), 2)
        super().__init__(config, peer_index, size, initial_peers)

    def shutdown_s(self) -> float:
        """Ends its processes; how long that took."""
        started = time.monotonic()
        self.shutdown()
        return time.monotonic() - started

    def written(self) -> str:
        self.errors.seek(0)
        return self.errors.read()


@pytest.mark.parametrize(("name", "called"), [("p2pd", "libp2p daemon"), ("dht", "DHT process")])
def test_a_peer_whose_network_died_says_so_and_does_not_train_alone(name: str, called: str) -> None:
    with start_swarm(blocking(2), 1000, build=HeardPeer) as peers:
        dht_pid = peers[1].call(dht_process)
        pid = dht_pid if name == "dht" else next(p.pid for p in descendants(dht_pid) if p.name == name)
        peers[0].call(GossipPeer.shutdown)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(AssertionError, match=rf"SwarmError: the {called} of this peer died"):
            peers[1].call(steps_for_a_while)
        assert peers[1].call(HeardPeer.shutdown_s) < DEADLINE_S
        assert peers[1].call(HeardPeer.written) == ""


class ShippedPeer(GossipPeer):
    """A peer of the engine that wraps hivemind's own optimizer."""

    def __init__(self, config: Config, peer_index: int, size: int, initial_peers: Sequence[str]) -> None:
        super().__init__(config, peer_index, size, initial_peers)
        self.shipped = HivemindEngine(
            config,
            dht=self.dht,
            charter=Charter.of(config, run_id="shipped", has_driver=False),
            peer_index=peer_index,
            shape=StateShape(size=size, num_parameters=size),
        )

    def steps_of_shipped(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            self.shipped.after_step(0)
            time.sleep(0.05)


def test_so_does_one_of_the_engine_hivemind() -> None:
    with start_swarm(blocking(1), 1000, build=ShippedPeer) as (peer,):
        os.kill(next(p.pid for p in descendants(peer.call(dht_process)) if p.name == "p2pd"), signal.SIGKILL)
        with pytest.raises(AssertionError, match="SwarmError: the libp2p daemon of this peer died"):
            peer.call(ShippedPeer.steps_of_shipped)


def dht_process(peer: GossipPeer) -> int:
    pid: int = peer.dht.pid
    return pid


def steps_for_a_while(peer: GossipPeer) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        peer.engine.after_step(0)  # no round is due
        time.sleep(0.05)


@pytest.mark.parametrize("is_in_a_round", [False, True])
def test_a_killed_peer_leaves_no_process(is_in_a_round: bool) -> None:
    with start_swarm(blocking(2, "gossip.matchmaking_s=60"), 1000) as peers:
        processes = children(peers)[1]
        if is_in_a_round:
            peers[1].send(gossip)  # its partner does not come
        os.kill(peers[1].process.pid, signal.SIGKILL)
        assert_they_end(processes)


def test_memory_that_is_shared_has_no_name_that_a_killed_peer_could_leave_behind() -> None:
    with start_swarm(blocking(2), 1000) as peers:
        for ended in peers.all(gossip):
            assert ended.report.outcome == "averaged"
        for peer in peers:
            shared = shared_memory_of(peer.call(averager_pid))
            assert shared
            assert all(name.endswith("(deleted)") for name in shared), shared


def test_a_collection_of_garbage_in_a_child_does_not_copy_the_memory_that_it_has_inherited() -> None:
    with start_swarm(blocking(1), 1000) as (peer,):
        assert peer.call(copied_by_a_collection) < 10e6


def copied_by_a_collection(_: GossipPeer) -> int:
    """How many bytes more of its own a forked child has after a full collection; without `gc.freeze` 63 million."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        before = private_bytes()
        gc.collect()
        os.write(writing, str(private_bytes() - before).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return int(os.read(reading, 100))


def private_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("Private_Dirty:"))
    return int(kilobytes) * 1000


def test_a_peer_whose_averager_is_killed_says_so_and_ends_cleanly() -> None:
    with start_swarm(blocking(2), 1000) as peers:
        processes = children(peers)[1]
        os.kill(peers[1].call(averager_pid), signal.SIGKILL)
        with pytest.raises(AssertionError, match="SwarmError: the averager process of this peer died"):
            peers[1].call(gossip)
        peers[1].call(GossipPeer.shutdown)
        peers[1].close()
        assert_they_end(processes)


class ImpatientPeer(GossipPeer):
    """To this one an averager process is hung after three seconds without a sign of life, not after thirty."""

    def __init__(self, config: Config, peer_index: int, size: int, initial_peers: Sequence[str]) -> None:
        ray_gossip.hive.health._HUNG_S = HUNG_S
        super().__init__(config, peer_index, size, initial_peers)


def test_an_averager_is_hung_when_it_stands_still_not_when_its_round_takes_long() -> None:
    with start_swarm(blocking(2, f"gossip.matchmaking_s={2 * HUNG_S}"), 1000, build=ImpatientPeer) as peers:
        ended = peers[0].call(gossip)  # its partner does not come
        assert ended.report.outcome == "alone"
        assert ended.seconds > HUNG_S + 1.0
        pid = peers[0].call(averager_pid)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(AssertionError, match="SwarmError: the averager process of this peer has been hung"):
                peers[0].call(gossip)
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_an_orderly_shutdown_is_quick_and_leaves_nothing(start_method: Literal["fork", "spawn"]) -> None:
    """Whatever start method the program around it has chosen."""
    with start_swarm(blocking(3, "gossip.group_size=3"), 1000, start_method=start_method) as peers:
        for ended in peers.all(gossip):
            assert ended.report.outcome == "averaged"
        processes = [process for each in children(peers) for process in each]
        started = time.monotonic()
        peers.all(GossipPeer.shutdown)
        assert time.monotonic() - started < DEADLINE_S
        assert_they_end(processes)


def test_a_peer_leaves_while_others_are_in_a_round_with_it() -> None:
    """It does not wait for them, and they do not wait for it."""
    with start_swarm(blocking(3, "gossip.group_size=3", "gossip.matchmaking_s=30"), 1000) as peers:
        peers.all(gossip)
        for peer in peers[:2]:
            peer.send(gossip)
        deadline = time.monotonic() + DEADLINE_S
        while peers[2].call(called_to) < 1:  # they are in their second round, and wait for it
            assert time.monotonic() < deadline
        started = time.monotonic()
        peers[2].call(GossipPeer.shutdown)
        for peer in peers[:2]:
            ended = peer.receive()
            assert ended.report.outcome == "averaged"
            assert ended.report.cause in ("peer-02 has left", "peer-02 could not be reached")
        assert time.monotonic() - started < DEADLINE_S


class SharingPeer(GossipPeer):
    """Its program has shared tensors between processes before, as data loaders do."""

    def __init__(self, config: Config, peer_index: int, size: int, initial_peers: Sequence[str]) -> None:
        torch.multiprocessing.set_sharing_strategy("file_system")
        self.shared = torch.zeros(10).share_memory_()
        super().__init__(config, peer_index, size, initial_peers)


def test_the_fork_guard_spares_the_socket_through_which_torch_shares_memory() -> None:
    with start_swarm(blocking(2), 1000, build=SharingPeer) as peers:
        for ended in peers.all(gossip):
            assert ended.report.outcome == "averaged"


def averager_pid(peer: GossipPeer) -> int:
    pid: int = peer.engine.averager.pid
    return pid


def called_to(peer: GossipPeer) -> int:
    return peer.engine.averager.signals.called
