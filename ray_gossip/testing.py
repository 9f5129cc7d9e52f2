"""Real peers for tests and benchmarks: one process each, because hivemind keeps one libp2p identity per process.

Peers are forked from a server process that has imported everything and started nothing: four of them are up in 2 s
instead of 7 s on two cores.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Literal

import psutil
import torch

from ray_gossip.config import Config
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.engine import GossipEngine
from ray_gossip.gossip.protocols import StateShape
from ray_gossip.gossip.seat import Listen, Place
from ray_gossip.records import RoundReport
from ray_gossip.secret_file import given
from ray_gossip.sidecar.network import Network
from ray_gossip.sidecar.nursery import title

START_S = 60.0
CALL_S = 60.0


def processes_of(pid: int) -> list[psutil.Process]:
    """A training process, all below it, and its sidecar with DHT process and libp2p daemon; a sidecar is no child of
    its training process."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["name"]):
        if process.pid == pid or process.info["name"] == title(pid):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ends just now
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return [*found.values()]


class VectorState:
    """The smallest TrainingState: one vector."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self.optimizer: Any = None
        self.samples = 0

    def read_state(self, out: torch.Tensor) -> None:
        out.copy_(self.values)

    def add_to_state(self, delta: torch.Tensor) -> None:
        self.values += delta

    def write_state(self, flat: torch.Tensor) -> None:
        self.values.copy_(flat)

    def rest(self) -> dict[str, torch.Tensor]:
        return {}

    def take_rest(self, rest: Mapping[str, torch.Tensor]) -> list[str]:
        assert not rest
        return []

    def drifting(self) -> list[str]:
        return []

    def digest(self) -> str:
        return str(self.values.double().sum().item())


class RemotePeer:
    """A process that builds an object by `build(*arguments)` and runs functions on it, one at a time.

    Args:
        start_method: what the peer's program has chosen for its own child processes; Ray's workers fork.
    """

    def __init__(
        self, build: Callable[..., Any], *arguments: Any, start_method: Literal["fork", "spawn"] = "fork"
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, build, arguments, start_method))
        self.process.start()
        theirs.close()
        atexit.register(self.close)  # before multiprocessing's own, which waits for ever for a process that lives

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
        """Kill the process. The fork guard takes its children along; one that a test has stopped, and not waked because
        it failed, is waked to end."""
        atexit.unregister(self.close)
        if self.process.is_alive():
            below = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for each in below:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.resume()
        self.process.join(timeout=10.0)
        self._connection.close()


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
        return self._receive()

    def each(self, function: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
        """Run a function on all peers at the same time, each with its own argument."""
        for peer, argument in zip(self._peers, arguments, strict=True):
            peer.send(function, argument)
        return self._receive()

    def _receive(self) -> list[Any]:
        """One answer of every peer, even if one raises: what is left in a pipe would answer the next call."""
        answers: list[Any] = []
        errors: list[Exception] = []
        for peer in self._peers:
            try:
                answers.append(peer.receive())
            except (AssertionError, EOFError, OSError) as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return answers

    def __enter__(self) -> Peers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for peer in self._peers:
            peer.close()


def _serve(connection: Connection, build: Callable[..., Any], arguments: tuple[Any, ...], start_method: str) -> None:
    multiprocessing.set_start_method(start_method, force=True)
    try:
        target = build(*arguments)
        connection.send((True, None))
    except Exception:
        connection.send((False, traceback.format_exc()))
        return
    while True:
        try:
            function, arguments = connection.recv()
        except (EOFError, ConnectionError):  # the process that asked is gone
            return
        try:
            answer = (True, function(target, *arguments))
        except Exception:
            answer = (False, traceback.format_exc())
        connection.send(answer)


class GossipPeer:
    """One real peer: DHT, libp2p daemon, averager; its whole model is one vector. Its doors are closed where the
    environment has a secret."""

    def __init__(self, config: Config, peer_index: int, size: int, initial_peers: Sequence[str]) -> None:
        charter = Charter.of(config, run_id="test", has_driver=True)
        listen, place = Listen(secret=given(None)), Place(charter, peer_index)
        self.network = Network(config, listen=listen, initial_peers=initial_peers, place=place)
        data = self.data_of(peer_index)
        self.network.open(StateShape(size=size, num_parameters=size), data=data)
        self.engine = GossipEngine(config, self.network, self.network.seat, data=data)
        self.state = VectorState(torch.zeros(size))
        self.engine.attach(self.state)
        self.step = 0

    def data_of(self, peer_index: int) -> str:
        """A digest of the samples that a peer knows."""
        return "test"

    def multiaddrs(self) -> list[str]:
        return list(self.network.seat.multiaddrs)

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

    def shutdown(self) -> None:
        """Leave the swarm and end all processes but this one."""
        self.engine.shutdown()


def start_swarm(
    config: Config,
    size: int,
    *,
    build: Callable[..., GossipPeer] = GossipPeer,
    start_method: Literal["fork", "spawn"] = "fork",
) -> Peers:
    """Start `swarm.num_peers` peers in parallel and let them join.

    Args:
        size: elements of each peer's vector.
        build: GossipPeer, or a subclass that takes the same arguments.
        start_method: see RemotePeer.
    """
    started: list[RemotePeer] = []
    try:
        initial_peers: list[str] = []
        for index in range(config.swarm.num_peers):
            started.append(RemotePeer(build, config, index, size, initial_peers, start_method=start_method))
            if index == 0:
                started[0].receive(START_S)
                initial_peers = started[0].call(GossipPeer.multiaddrs)
        for peer in started[1:]:
            peer.receive(START_S)
        peers = Peers(started)
        assert peers.all(GossipPeer.join) == [config.swarm.num_peers] * config.swarm.num_peers
    except BaseException:
        for peer in started:
            peer.close()
        raise
    return peers
