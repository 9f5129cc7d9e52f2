"""Records of a run of four peers, and what was written of it as a person's tools read it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ray_gossip.config import Config, parse
from ray_gossip.records import (
    AveragedTensor,
    Evaluation,
    Outcome,
    PeerFinished,
    PeerLost,
    PeerStarted,
    Progress,
    Record,
    Reported,
    RoundReport,
    Usage,
)
from ray_gossip.telemetry import RunLog, SwarmRound, SwarmState

NUM_PEERS, TOTAL_STEPS, GB = 4, 40, 10**9
AVERAGED = (
    AveragedTensor(name="head.weight", shape=(100, 49), kind="parameter", num_bytes=19_600),
    AveragedTensor(name="norm.running_var", shape=(100,), kind="statistic", num_bytes=400),
)
Sketch = tuple[float, ...]


def started(peer: int, *, wall_time: float = 1000.0) -> PeerStarted:
    return PeerStarted(
        peer_index=peer,
        wall_time=wall_time,
        peer_id=f"Qm{peer}",
        multiaddrs=(f"/ip4/127.0.0.1/tcp/{4000 + peer}/p2p/Qm{peer}",),
        pid=100 + peer,
        node="node-a",
        device="cpu",
        num_parameters=9_000,
        averaged_bytes=20_000,
        averaged=AVERAGED if peer == 0 else (),
        num_samples=359,
    )


def progress(peer: int, step: int, *, loss: float = 1.0, wall_time: float = 1001.0) -> Progress:
    return Progress(
        peer_index=peer,
        wall_time=wall_time,
        local_step=step,
        samples=32 * step,
        data_epoch=step / 11,
        loss=loss,
        lr=0.05,
        samples_per_s=100.0,
    )


def evaluation(
    peer: int, step: int, accuracy: float | None, *, merged: bool = False, metrics: Mapping[str, float] | None = None
) -> Evaluation:
    return Evaluation(
        peer_index=peer,
        wall_time=1002.0,
        local_step=step,
        model="merged" if merged else "peer",
        accuracy=accuracy,
        loss=0.5,
        metrics=metrics or {},
    )


def reported(peer: int, step: int, accuracy: float) -> Reported:
    return Reported(peer_index=peer, wall_time=1002.0, local_step=step, metrics={"accuracy": accuracy})


def report(
    peer: int,
    number: int,
    *,
    before: Sketch = (),
    after: Sketch = (),
    outcome: Outcome = "averaged",
    local_step: int | None = None,
) -> RoundReport:
    return RoundReport(
        peer_index=peer,
        wall_time=1003.0,
        round=number,
        outcome=outcome,
        cause="" if outcome == "averaged" else "a groupmate died",
        group=(peer, peer ^ 1) if peer < peer ^ 1 else (peer ^ 1, peer),
        local_step=10 * number if local_step is None else local_step,
        staleness_steps=2,
        matchmaking_s=0.25,
        allreduce_s=0.5,
        blocked_s=0.125,
        bytes_sent=1_000_000,
        moved=0.75,
        sketch_before=before,
        sketch_after=after,
    )


def finished(peer: int, *, bytes_sent: int = 0, sketch: Sketch = (), outcome: Outcome = "averaged") -> PeerFinished:
    return PeerFinished(
        peer_index=peer,
        wall_time=1010.0,
        local_step=TOTAL_STEPS,
        samples=1280,
        train_s=4.0,
        bytes_sent=bytes_sent,
        final_outcome=outcome,
        final_cause="",
        sketch=sketch,
    )


def usage(peer: int, step: int = 1) -> Usage:
    """Of a machine that has enough of everything."""
    return Usage(
        peer_index=peer,
        wall_time=1002.0,
        local_step=step,
        trainer_bytes=GB,
        network_bytes=GB // 2,
        helper_bytes=GB // 10,
        open_files=50,
        most_open_files=1024,
        memory_free_bytes=10 * GB,
        memory_bytes=24 * GB,
        shared_free_bytes=12 * GB,
        disk_free_bytes=50 * GB,
    )


def lost(peer: int, cause: str = "its process died") -> PeerLost:
    return PeerLost(peer_index=peer, wall_time=1004.0, cause=cause)


def sketches(num: int, *, seed: int) -> list[Sketch]:
    rng = random.Random(seed)
    return [tuple(rng.gauss(0, 1) for _ in range(256)) for _ in range(num)]


def ends_of_four() -> list[Sketch]:
    """Where four peers end that agree, but for rounding."""
    mean, *errors = sketches(5, seed=12)
    return [tuple(m + 1e-6 * e for m, e in zip(mean, error, strict=True)) for error in errors]


def distance(*of: Sketch) -> float:
    """The definition, written out."""
    mean = [sum(column) / len(of) for column in zip(*of, strict=True)]
    squares = [sum((x - m) ** 2 for x, m in zip(sketch, mean, strict=True)) for sketch in of]
    return math.sqrt(sum(squares) / len(of))


def a_config(num_peers: int = NUM_PEERS) -> Config:
    return parse({"swarm": {"num_peers": num_peers}, "train": {"local_steps": TOTAL_STEPS}})


def a_swarm(num_peers: int = NUM_PEERS) -> SwarmState:
    """Everybody is up."""
    state = SwarmState(peers=range(num_peers), total_steps=TOTAL_STEPS)
    fold(state, map(started, range(num_peers)))
    return state


def fold(state: SwarmState, records: Iterable[Record]) -> list[SwarmRound]:
    return [complete for record in records for complete in state.fold(record)]


Write = Callable[[Iterable[Record]], RunLog]


def curve(log: RunLog, run: str, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in scalars(log, run, tag)]


def scalars(log: RunLog, run: str, tag: str) -> Any:
    accumulator = accumulated(log, run)
    return accumulator.Scalars(tag) if tag in accumulator.Tags()["scalars"] else []


def accumulated(log: RunLog, run: str) -> Any:
    accumulator = EventAccumulator(str(log.run_dir / run))
    accumulator.Reload()
    return accumulator


def events(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]
