"""Consensus control of real peers, held against their true distance."""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray

from ray_gossip.mixing import consensus_distance
from ray_gossip.records import RoundReport
from ray_gossip.testing import GossipPeer, start_swarm
from tests.swarm.swarms import blocking

NUM_PEERS, SIZE = 4, 500
NUM_STEPS, STEP_S = 160, 0.005
EARLY = 20  # local steps after which the learning rate falls to a twentieth

Trained = tuple[list[RoundReport], NDArray[np.float32]]


def train(peer: GossipPeer) -> Trained:
    """Local steps that draw each peer to where no other is drawn: its rounds, and its state after each step."""
    generator = torch.Generator().manual_seed(peer.engine.peer_index)
    own, reports, states = torch.randn(SIZE, generator=generator), [], [torch.ones(SIZE)]
    peer.set(states[0])
    for step in range(1, NUM_STEPS + 1):
        time.sleep(STEP_S)
        rate = 0.01 if step <= EARLY else 0.0005
        peer.state.add_to_state(rate * (own + torch.randn(SIZE, generator=generator)))
        states.append(peer.get())
        reports += peer.engine.after_step(step)
    return reports, torch.stack(states).numpy()


class Course:
    """What became of a swarm on a ring, where each peer meets but one other in a round."""

    def __init__(self, *settings: str) -> None:
        fixed = ("gossip.steps=2", "gossip.group_size=2", "gossip.schedule=ring")
        with start_swarm(blocking(NUM_PEERS, *fixed, *settings), SIZE) as peers:
            self.trained: list[Trained] = peers.all(train)
        self.bytes_sent = sum(report.bytes_sent for reports, _ in self.trained for report in reports)

    def distances(self) -> list[float]:
        """The true ones over the parameters' norm, before each round that all have begun."""
        begun: dict[int, list[NDArray[np.float32]]] = defaultdict(list)
        for reports, states in self.trained:
            for report in reports:
                begun[report.round].append(states[report.local_step])
        whole = [np.array(states) for states in begun.values() if len(states) == NUM_PEERS]
        return [consensus_distance(states) / float(np.linalg.norm(states.mean(axis=0))) for states in whole]


def test_real_peers_send_fewer_bytes_and_their_true_distance_stays_below_the_target() -> None:
    usual = Course()
    target = 2 * max(usual.distances())
    controlled = Course(f"gossip.consensus_target={target}")
    assert max(controlled.distances()) < target
    assert controlled.bytes_sent < 0.75 * usual.bytes_sent
    assert len(controlled.distances()) > 10
