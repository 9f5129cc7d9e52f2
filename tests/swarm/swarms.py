"""What tests run on real peers: functions that travel to a peer's process, and configs for blocking rounds."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from hivemind.p2p import P2P

from ray_gossip import config
from ray_gossip.config import Config
from ray_gossip.gossip.admission import Secret, Tokens
from ray_gossip.hive.doors import ClosedClient
from ray_gossip.records import RoundReport
from ray_gossip.testing import GossipPeer, RemotePeer


@dataclass(frozen=True)
class Ended:
    """A round as a test sees it."""

    report: RoundReport
    unchanged: bool  # the parameters are bitwise what they were
    seconds: float


def blocking(num_peers: int, *overrides: str) -> Config:
    """Rounds at every step, without overlap, so that a test counts rounds and nothing else."""
    fixed = ("gossip.steps=1", "gossip.overlap=false", f"swarm.num_peers={num_peers}", "swarm.final_s=20")
    return config.load(overrides=[*fixed, *overrides])


def let_in(p2p: P2P, secret: str) -> None:
    """From now on this node of a test's own shows a secret: as tests have it, `os.environ[TEXT]`."""
    p2p._client = ClosedClient(p2p._client, Tokens(Secret.parse(secret), own=p2p.peer_id.to_bytes()))


def values_of(seed: int, size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def fill(peer: GossipPeer, seed: int) -> None:
    """Random values that a test can make again."""
    peer.set(values_of(seed, peer.state.values.numel()))


def gossip(peer: GossipPeer) -> Ended:
    """One round, and what became of the parameters."""
    before, started = peer.get(), time.monotonic()
    report = peer.round()
    seconds = time.monotonic() - started
    return Ended(report, torch.equal(peer.state.values, before), seconds)


def distance_from_mean(peer: GossipPeer, seeds: list[int]) -> float:
    """The largest difference from the mean of these seeds' values."""
    size = peer.state.values.numel()
    mean = torch.stack([values_of(seed, size) for seed in seeds]).mean(dim=0)
    return float((peer.state.values - mean).abs().max())


def sidecar(peer: GossipPeer) -> int:
    """The process id of the present one."""
    return peer.network.pid


def network_processes(peer: RemotePeer) -> list[psutil.Process]:
    """Sidecar, DHT and libp2p daemon of a peer, in this order."""
    present = psutil.Process(peer.call(sidecar))
    dht, daemon = sorted(present.children(recursive=True), key=lambda process: process.name() == "p2pd")
    return [present, dht, daemon]


@contextlib.contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """These processes stand still meanwhile. On busy cores a thread may run on for a moment after the signal, and
    answer somebody: waits until all have stopped."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 10.0
        while not all(map(_stands_still, pids)):
            assert time.monotonic() < deadline, "a process did not stop"
            time.sleep(0.01)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _stands_still(pid: int) -> bool:
    states = [file.read_text().rpartition(")")[2].split()[0] for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}
