"""What the benchmarks share: real peers whose engine can be replaced, tables, and the last line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ray_gossip.config import Config
from ray_gossip.hive import Engine, TrainingState, build_engine, guard_forks, quiet_hivemind, start_dht
from ray_gossip.testing import Peers, RemotePeer

START_S = 120.0


class BenchmarkPeer:
    """One real peer: a DHT node that stays, and engines that come and go, each with a swarm of its own.

    Starting a process and its DHT node is the slow part of a peer; a new engine is a fork.
    """

    engine: Engine
    config: Config

    def __init__(self, peer_index: int, initial_peers: Sequence[str]) -> None:
        guard_forks()
        quiet_hivemind()
        torch.set_num_threads(1)  # as Ray does for an actor that has one CPU or less
        self.peer_index = peer_index
        self.dht = start_dht(initial_peers=initial_peers, host="127.0.0.1", start_s=START_S)

    def multiaddrs(self) -> list[str]:
        return [str(address) for address in self.dht.get_visible_maddrs()]

    def open_engine(self, config: Config, run_id: str, state: TrainingState, state_size: int) -> None:
        """Build the engine that the config names, and join the swarm `run_id`."""
        self.config = config
        self.engine = build_engine(
            config, dht=self.dht, run_id=run_id, peer_index=self.peer_index, state_size=state_size
        )
        self.engine.attach(state)
        self.engine.join(founders=config.swarm.num_peers)

    def close_engine(self) -> None:
        self.engine.shutdown()


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
    print(json.dumps({**figures, "holds": not failures}))
    return 1 if failures else 0


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
