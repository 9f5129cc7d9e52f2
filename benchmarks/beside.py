"""A swarm that trains while something else is tried on it, and what it says of itself meanwhile."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from harness import all_at_once

from ray_gossip.config import Config
from ray_gossip.gossip.admission import Secret
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.engine import GossipEngine
from ray_gossip.gossip.protocols import StateShape
from ray_gossip.gossip.seat import Listen, Place
from ray_gossip.sidecar.network import Network
from ray_gossip.testing import RemotePeer, VectorState

RUN_ID = "beside"
WAIT_S, TURN_S = 180.0, 5.0


@dataclass(frozen=True)
class Turn:
    """What a peer did in some seconds."""

    seconds: float
    steps: int
    outcomes: Counter[str]
    causes: tuple[str, ...]
    notices: tuple[str, ...]
    round_s: tuple[float, ...]  # of each averaged round, from its begin to its last part


class Member:
    """A peer of the swarm, whose model is one vector, and whose local step takes a fixed time and no processor."""

    def __init__(
        self,
        config: Config,
        index: int,
        initial_peers: Sequence[str],
        *,
        size: int,
        step_s: float,
        secret: Secret | None = None,
    ) -> None:
        torch.set_num_threads(1)
        self._founders, self._step_s = config.swarm.num_peers, step_s
        place = Place(Charter.of(config, run_id=RUN_ID, has_driver=False), index)
        self.network = Network(config, listen=Listen(secret=secret), initial_peers=initial_peers, place=place)
        self.network.open(StateShape(size=size, num_parameters=size), data="benchmark")
        self.engine = GossipEngine(config, self.network, self.network.seat, data="benchmark")
        self.engine.attach(VectorState(torch.randn(size, generator=torch.Generator().manual_seed(index))))
        self.local_step = 0

    def multiaddrs(self) -> tuple[str, ...]:
        return self.network.seat.multiaddrs

    def join(self) -> None:
        self.engine.join(founders=self._founders)

    def join_running(self) -> int:
        """As a newcomer. Returns the local step at which it begins."""
        self.local_step = self.engine.join_running()
        return self.local_step

    def turn(self, seconds: float) -> Turn:
        started, before, reports = time.monotonic(), self.local_step, []
        while time.monotonic() - started < seconds:
            time.sleep(self._step_s)
            self.local_step += 1
            reports += self.engine.after_step(self.local_step)
        notices, self.engine.notices[:] = tuple(self.engine.notices), []
        return Turn(
            time.monotonic() - started,
            self.local_step - before,
            Counter(report.outcome for report in reports),
            tuple(report.cause for report in reports if report.outcome != "averaged"),
            notices,
            tuple(r.matchmaking_s + r.allreduce_s for r in reports if r.outcome == "averaged"),
        )

    def close(self) -> None:
        self.engine.shutdown()


def start_member(
    config: Config,
    members: list[RemotePeer],
    initial_peers: Sequence[str],
    *,
    size: int,
    step_s: float,
    secret: Secret | None = None,
) -> str:
    """Start one more, which has not joined yet; returns its address."""
    build = partial(Member, size=size, step_s=step_s, secret=secret)
    members.append(RemotePeer(build, config, len(members), initial_peers))
    members[-1].receive(WAIT_S)
    return str(members[-1].call(Member.multiaddrs)[0])


def start_members(config: Config, members: list[RemotePeer], **of_each: Any) -> list[str]:
    """Start as many as the config says, into this list; returns their addresses, once all have joined."""
    addresses: list[str] = []
    for _ in range(config.swarm.num_peers):
        addresses.append(start_member(config, members, addresses[:1], **of_each))
    all_at_once(members, Member.join, wait_s=WAIT_S)
    turns(members, TURN_S)
    return addresses


def turns(members: Sequence[RemotePeer], seconds: float) -> list[Turn]:
    """All of them train for so long."""
    return [
        turn
        for _ in range(max(1, round(seconds / TURN_S)))
        for turn in all_at_once(members, Member.turn, TURN_S, wait_s=WAIT_S)
    ]


def while_they_train(members: Sequence[RemotePeer], what: Callable[[], Any]) -> tuple[Any, list[Turn]]:
    """Do something; returns its result, and what the members did meanwhile."""
    found: list[Turn] = []
    with ThreadPoolExecutor(1) as beside:
        doing = beside.submit(what)
        while not doing.done():
            found += turns(members, TURN_S)
        return doing.result(), found


@dataclass(frozen=True)
class Summed:
    steps_per_s: float  # of a peer
    averaged: float  # share of the rounds
    causes: tuple[str, ...]  # of the others
    round_s: float  # median

    @classmethod
    def of(cls, each: Sequence[Turn]) -> Summed:
        outcomes = sum((turn.outcomes for turn in each), Counter[str]())
        return cls(
            sum(turn.steps for turn in each) / sum(turn.seconds for turn in each),
            outcomes["averaged"] / max(1, outcomes.total()),
            tuple(cause for turn in each for cause in turn.causes),
            statistics.median([second for turn in each for second in turn.round_s] or [math.nan]),
        )
