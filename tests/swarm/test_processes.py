"""Every process of a peer ends with it, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import psutil
import pytest

from ray_gossip.testing import GossipPeer, Peers, start_swarm
from tests.swarm.faults import FaultyPeer
from tests.swarm.swarms import blocking, gossip, network_processes

DEADLINE_S = 5.0
HUNG_S = 3.0


def is_running(process: psutil.Process) -> bool:
    """False for what is gone, and for what is dead and only not yet collected by its parent."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_they_end(processes: Iterable[psutil.Process]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    left = list(processes)
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [process for process in left if is_running(process)]
    assert not left


def children(peers: Peers) -> list[list[psutil.Process]]:
    """The network processes of each peer."""
    return [network_processes(peer) for peer in peers]


def shared_memory_of(process: psutil.Process) -> list[str]:
    """The files of shared memory that it has mapped; those without a name end in "(deleted)"."""
    lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    return sorted({line.split(maxsplit=5)[5] for line in lines if "/dev/shm/torch_" in line or "/memfd:" in line})


def own_pid(peer: GossipPeer) -> int:
    return os.getpid()


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
            assert ended.report.outcome == "averaged", ended.report
        for peer in peers:
            shared = shared_memory_of(network_processes(peer)[0])
            assert shared
            assert all(name.endswith("(deleted)") for name in shared), shared


def test_network_processes_take_no_core_from_a_training_process_that_has_just_woken() -> None:
    with start_swarm(blocking(2), 1000) as peers:
        for ended in peers.all(gossip):
            assert ended.report.outcome == "averaged", ended.report
        for peer in peers:
            for process in network_processes(peer):
                for thread in process.threads():
                    with contextlib.suppress(ProcessLookupError):  # it has just ended
                        assert os.sched_getscheduler(thread.id) == os.SCHED_BATCH, process
            assert os.sched_getscheduler(peer.call(own_pid)) == os.SCHED_OTHER


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_an_orderly_shutdown_is_quick_and_leaves_nothing(start_method: Literal["fork", "spawn"]) -> None:
    """Whatever start method the program around it has chosen."""
    with start_swarm(blocking(3, "gossip.group_size=3"), 1000, start_method=start_method) as peers:
        for ended in peers.all(gossip):
            assert ended.report.outcome == "averaged", ended.report
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
            assert ended.report.outcome == "averaged", ended.report
            assert ended.report.cause in ("peer-02 has left", "peer-02 could not be reached")
        assert time.monotonic() - started < DEADLINE_S


def called_to(peer: GossipPeer) -> int:
    return peer.engine.averager.signals.called


@pytest.mark.parametrize("build", [GossipPeer, FaultyPeer], ids=["of the nursery", "of a test"])
def test_a_stopped_sidecar_ends_with_its_peer(build: type[GossipPeer]) -> None:
    with start_swarm(blocking(1), 1_000, build=build) as peers:
        sidecar = psutil.Process(peers[0].call(sidecar_pid))
        processes = [sidecar, *sidecar.children(recursive=True)]
        assert len(processes) >= 3  # DHT process and daemon, too
        sidecar.suspend()
    assert_they_end(processes)


def sidecar_pid(peer: GossipPeer) -> int:
    return peer.network.pid
