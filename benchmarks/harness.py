"""What the benchmarks share: real peers whose engine can be replaced, tables, and the last line."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from ray_gossip.config import Config
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.engine import GossipEngine
from ray_gossip.gossip.protocols import Engine, StateShape, TrainingState
from ray_gossip.gossip.seat import Listen, Place
from ray_gossip.hive import guard_forks, quiet_hivemind, start_dht
from ray_gossip.hive.shipped import HivemindEngine
from ray_gossip.records import RoundReport
from ray_gossip.sidecar.network import Network
from ray_gossip.testing import Peers, RemotePeer

if TYPE_CHECKING:
    from hivemind import DHT  # `ray_gossip.hive` imports it, and keeps quiet about what is deprecated in it

MARK = "RAY_GOSSIP_BENCHMARK"
START_S, LEFT_S = 120.0, 15.0


class BenchmarkPeer:
    """One real peer: engines come and go, each with a network side and a swarm of its own.

    The first one has a DHT node that stays: there they find each other.
    """

    engine: Engine
    network: Network
    config: Config

    def __init__(self, peer_index: int, initial_peers: Sequence[str]) -> None:
        torch.set_num_threads(1)  # as Ray does for an actor that has one CPU or less
        self.peer_index, self._initial_peers = peer_index, list(initial_peers)
        if not initial_peers:
            self._initial_peers = [str(address) for address in self.dht.get_visible_maddrs()]

    @functools.cached_property
    def dht(self) -> DHT:
        """A node of this process, from when it is first asked for: of the first peer, and for hivemind as shipped."""
        guard_forks()
        quiet_hivemind()
        folder = tempfile.TemporaryDirectory(prefix="ray-gossip-benchmark-")
        listen = Listen(identity_path=Path(folder.name) / "identity")  # a node that signs: else it refuses all that do
        with folder:
            return start_dht(initial_peers=self._initial_peers, listen=listen, start_s=START_S)

    def multiaddrs(self) -> list[str]:
        return self._initial_peers

    first_step = 0  # the local step at which this peer begins

    def open_engine(
        self,
        config: Config,
        run_id: str,
        state: TrainingState,
        state_size: int,
        *,
        is_founder: bool = True,
        node: str = "",
    ) -> None:
        """Build the engine that the config names, and join the swarm `run_id`, which begins or runs."""
        self.config = config
        charter = Charter.of(config, run_id=run_id, has_driver=False)
        self.network = Network(
            config, listen=Listen(), initial_peers=self._initial_peers, place=Place(charter, self.peer_index)
        )
        self.network.open(StateShape(size=state_size, num_parameters=state_size), node=node, data="benchmark")
        engine = GossipEngine(config, self.network, self.network.seat, data="benchmark")
        self.engine = HivemindEngine(config, engine, self.network.seat) if config.engine == "hivemind" else engine
        self.engine.attach(state)
        if is_founder:
            self.engine.join(founders=config.swarm.num_peers)
        else:
            self.first_step = self.engine.join_running()

    def close_engine(self) -> None:
        self.engine.shutdown()


class FlatModel:
    """A model of one flat parameter, with an optimizer, as engines want it; its gradient is always the same."""

    def __init__(self, size: int) -> None:
        self.parameter = torch.nn.Parameter(torch.zeros(size))
        self.optimizer: Any = torch.optim.SGD([self.parameter], lr=1e-3)
        self._gradient = torch.ones(size)
        self.samples = 0

    def step(self) -> None:
        """The optimizer's update, which hivemind's wrapper turns into its rounds."""
        self.parameter.grad = self._gradient
        self.optimizer.step()
        self.samples += 1

    @torch.no_grad()
    def read_state(self, out: torch.Tensor) -> None:
        out.copy_(self.parameter)

    @torch.no_grad()
    def add_to_state(self, delta: torch.Tensor) -> None:
        self.parameter.add_(delta)

    @torch.no_grad()
    def write_state(self, flat: torch.Tensor) -> None:
        self.parameter.copy_(flat)

    def rest(self) -> dict[str, torch.Tensor]:
        return {}

    def take_rest(self, rest: Mapping[str, torch.Tensor]) -> list[str]:
        assert not rest
        return []

    def drifting(self) -> list[str]:
        return []

    def digest(self) -> str:
        return ""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How one peer got on with its local steps."""

    seconds: float
    step_s: tuple[float, ...]  # of each local step, from its begin to the end of `after_step`
    reports: tuple[RoundReport, ...]

    @property
    def steps_per_s(self) -> float:
        return len(self.step_s) / self.seconds


class SteppingPeer(BenchmarkPeer):
    """A peer whose local step takes a fixed time and no CPU, as a GPU's would, but for the optimizer's update."""

    model_of: type[FlatModel] = FlatModel

    def open(self, config: Config, run_id: str, size: int) -> None:
        self.model = self.model_of(size)
        self.open_engine(config, run_id, self.model, size)

    def enter(self, config: Config, run_id: str, size: int) -> None:
        """Join a swarm that runs."""
        self.model = self.model_of(size)
        self.open_engine(config, run_id, self.model, size, is_founder=False)

    def train(self, fixed_s: float, seconds: float) -> Pace:
        """Local steps of `fixed_s` for so many seconds."""
        step_s: list[float] = []
        reports: list[RoundReport] = []
        begun = started = time.monotonic()
        while started - begun < seconds:
            time.sleep(fixed_s)
            self.model.step()
            reports += self.engine.after_step(len(step_s) + 1)
            now = time.monotonic()
            step_s.append(now - started)
            started = now
        return Pace(seconds=started - begun, step_s=tuple(step_s), reports=tuple(reports))


_run_ids = itertools.count()


def measure(
    peers: Sequence[RemotePeer], config: Config, *, fixed_s: Sequence[float], size: int, seconds: float
) -> list[Pace]:
    """Let SteppingPeers train together with one config; peer i takes fixed_s[i] seconds a local step."""
    all_at_once(peers, SteppingPeer.open, config, f"measure{next(_run_ids)}", size, wait_s=START_S)
    for peer, step_s in zip(peers, fixed_s, strict=True):
        peer.send(SteppingPeer.train, step_s, seconds)
    paces = [peer.receive(seconds + START_S) for peer in peers]
    all_at_once(peers, SteppingPeer.close_engine, wait_s=START_S)
    return paces


def count_outcomes(paces: Iterable[Pace]) -> dict[str, int]:
    """Rounds by outcome, as all peers reported them."""
    return dict(Counter(report.outcome for pace in paces for report in pace.reports))


def start_peers(build: Callable[[int, Sequence[str]], BenchmarkPeer], num_peers: int) -> Peers:
    """Start peers 0..num_peers-1 at the same time; leaving the context ends all their processes."""
    started: list[RemotePeer] = []
    try:
        initial_peers: list[str] = []
        for peer_index in range(num_peers):
            started.append(RemotePeer(build, peer_index, initial_peers))
            if peer_index == 0:
                started[0].receive(START_S)
                initial_peers = started[0].call(BenchmarkPeer.multiaddrs)
        for peer in started[1:]:
            peer.receive(START_S)
    except BaseException:
        for peer in started:
            peer.close()
        raise
    return Peers(started)


def all_at_once(peers: Sequence[RemotePeer], function: Callable[..., Any], *arguments: Any, wait_s: float) -> list[Any]:
    """Run a function on all peers at the same time; each has `wait_s` seconds for its answer."""
    for peer in peers:
        peer.send(function, *arguments)
    return [peer.receive(wait_s) for peer in peers]


def new_mark() -> str:
    """What a run's processes get as MARK in their environment, so that they are found wherever they are."""
    return uuid.uuid4().hex


def living(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def left_of(mark: str) -> list[str]:
    """Processes of a run that have not ended a while after it."""
    deadline = time.monotonic() + LEFT_S
    while (found := list(living(mark))) and time.monotonic() < deadline:
        time.sleep(0.5)
    return [f"{process.pid} {process.name()}" for process in found if process.is_running()]


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as they need to be; floats with three digits that count."""
    cells = [[_cell(value) for value in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    print(f"\n{title}")
    for number, row in enumerate(cells):
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))
    print(end="", flush=True)


def conclude(figures: dict[str, Any], failures: Sequence[str]) -> int:
    """Say what does not hold, print the JSON line, and return the exit code."""
    for failure in failures:
        print(f"does not hold: {failure}")
    print(json.dumps(_rounded({**figures, "holds": not failures})))
    return 1 if failures else 0


def _rounded(value: Any) -> Any:
    """Floats with four digits that count."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
