"""Real peers for tests and benchmarks: one process each, because hivemind keeps one libp2p identity per process."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

from ray_gossip.config import Config
from ray_gossip.hive import guard_forks, quiet_hivemind, start_dht
from ray_gossip.hive.gossip import GossipEngine
from ray_gossip.records import RoundReport

START_S = 60.0
CALL_S = 60.0


class VectorState:
    """The smallest TrainingState: one vector."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self.optimizer: Any = None

    def read_state(self, out: torch.Tensor) -> None:
        out.copy_(self.values)

    def add_to_state(self, delta: torch.Tensor) -> None:
        self.values += delta


class RemotePeer:
    """A process that builds an object by `build(*arguments)` and runs functions on it, one at a time."""

    def __init__(self, build: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, build, arguments))
        self.process.start()
        theirs.close()

    def send(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._connection.send((function, arguments))

    def receive(self, timeout: float = CALL_S) -> Any:
        if not self._connection.poll(timeout):
            raise TimeoutError(f"a peer did not answer within {timeout} s")
        succeeded, value = self._connection.recv()
        if not succeeded:
            raise AssertionError(f"a peer raised:\n{value}")
        return value

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.send(function, *arguments)
        return self.receive()

    def close(self) -> None:
        if self.process.is_alive():
            self.process.kill()  # the fork guard takes its children along
        self.process.join(timeout=10.0)


class Peers(Sequence[RemotePeer]):
    """Several RemotePeers; leaving the context ends exactly the processes that it started."""

    def __init__(self, peers: Sequence[RemotePeer]) -> None:
        self._peers = list(peers)

    def __getitem__(self, index: Any) -> Any:
        return self._peers[index]

    def __len__(self) -> int:
        return len(self._peers)

    def all(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run a function on all peers at the same time."""
        for peer in self._peers:
            peer.send(function, *arguments)
        return [peer.receive() for peer in self._peers]

    def each(self, function: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
        """Run a function on all peers at the same time, each with its own argument."""
        for peer, argument in zip(self._peers, arguments, strict=True):
            peer.send(function, argument)
        return [peer.receive() for peer in self._peers]

    def __enter__(self) -> Peers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for peer in self._peers:
            peer.close()


def _serve(connection: Connection, build: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        target = build(*arguments)
        connection.send((True, None))
        while True:
            function, arguments = connection.recv()
            connection.send((True, function(target, *arguments)))
    except EOFError:
        return
    except BaseException:
        connection.send((False, traceback.format_exc()))


class GossipPeer:
    """One real peer: DHT, libp2p daemon, averager; its whole model is one vector."""

    def __init__(self, config: Config, peer_index: int, size: int, initial_peers: Sequence[str]) -> None:
        guard_forks()
        quiet_hivemind()
        self.dht = start_dht(initial_peers=initial_peers, host="127.0.0.1", start_s=START_S)
        self.engine = GossipEngine(config, dht=self.dht, run_id="test", peer_index=peer_index, state_size=size)
        self.state = VectorState(torch.zeros(size))
        self.engine.attach(self.state)
        self.step = 0

    def multiaddrs(self) -> list[str]:
        return [str(address) for address in self.dht.get_visible_maddrs()]

    def join(self) -> int:
        return len(self.engine.join(founders=self.engine.swarm.num_peers).members)

    def set(self, values: torch.Tensor) -> None:
        self.state.values = values.clone()

    def get(self) -> torch.Tensor:
        return self.state.values.clone()

    def round(self) -> RoundReport:
        """One blocking round."""
        self.step += self.engine.gossip.steps or 1
        (report,) = self.engine.after_step(self.step)
        return report


def start_swarm(config: Config, size: int) -> Peers:
    """Start `swarm.num_peers` peers in parallel and let them join."""
    first = RemotePeer(GossipPeer, config, 0, size, [])
    first.receive(START_S)
    addresses = first.call(GossipPeer.multiaddrs)
    others = [RemotePeer(GossipPeer, config, i, size, addresses) for i in range(1, config.swarm.num_peers)]
    for peer in others:
        peer.receive(START_S)
    peers = Peers([first, *others])
    assert peers.all(GossipPeer.join) == [config.swarm.num_peers] * config.swarm.num_peers
    return peers
