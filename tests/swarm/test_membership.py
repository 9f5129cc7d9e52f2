"""Newcomers, leavers, clocks: a swarm that changes while it runs."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import pytest
import torch

from ray_gossip import config
from ray_gossip.config import Config
from ray_gossip.records import RoundReport
from ray_gossip.testing import START_S, GossipPeer, Peers, RemotePeer, start_swarm

SIZE = 2000
DEADLINE_S = 60.0


def paced_rounds(peer: GossipPeer, until_round: int, step_s: float) -> list[RoundReport]:
    """Local steps of fixed duration until the peer has done round `until_round`."""
    reports: list[RoundReport] = []
    deadline = time.monotonic() + DEADLINE_S
    while not reports or reports[-1].round < until_round:
        assert time.monotonic() < deadline, f"round {until_round} was not reached: {reports[-3:]}"
        time.sleep(step_s)
        peer.step += 1
        reports += peer.engine.after_step(peer.step)
    return reports


def join_running(peer: GossipPeer) -> torch.Tensor:
    """Enter the swarm that runs; returns the parameters with which this peer starts."""
    peer.engine.join_running()
    return peer.get()


def num_members(peer: GossipPeer) -> int:
    return len(peer.engine.averager.read_members().result(timeout=10.0).present)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def next_round(peer: GossipPeer) -> int:
    return peer.engine.pace.round


def spread(peers: Peers) -> float:
    values = torch.stack(peers.all(GossipPeer.get)).double()
    return float(((values - values.mean(dim=0)) ** 2).sum(dim=1).mean())


def settings(*overrides: str) -> Config:
    return config.load(None, ["gossip.group_size=2", *overrides])


@pytest.mark.parametrize("clock", ["gossip.steps=10", "gossip.seconds=0.5"])
def test_a_newcomer_starts_from_the_swarms_state_counts_from_a_later_round_and_leaves_again(clock: str) -> None:
    options = settings("swarm.num_peers=2", clock)
    with start_swarm(options, SIZE) as founders:
        state = torch.linspace(-1, 1, SIZE)
        founders.each(GossipPeer.set, [state, state])
        founders.all(paced_rounds, 3, 0.05)

        newcomer = RemotePeer(GossipPeer, options, 2, SIZE, founders[0].call(GossipPeer.multiaddrs))
        with Peers([newcomer]):
            newcomer.receive(START_S)
            for founder in founders:
                founder.send(paced_rounds, 40, 0.05)
            started_from = newcomer.call(join_running)
            torch.testing.assert_close(started_from, state)
            newcomer.send(paced_rounds, 40, 0.05)
            of_newcomer = newcomer.receive(DEADLINE_S)
            of_founders = [founder.receive(DEADLINE_S) for founder in founders]

            averaged = [report for report in of_newcomer if report.outcome == "averaged"]
            assert of_newcomer[0].round > 3
            assert len(averaged) >= len(of_newcomer) // 2, [(r.round, r.outcome, r.cause) for r in of_newcomer]
            assert any(2 in report.group for reports in of_founders for report in reports)
            assert founders[0].call(num_members) == 3
            newcomer.call(GossipPeer.shutdown)
        wait_until(lambda: founders[0].call(num_members) == 2)
        later = founders.all(paced_rounds, 44, 0.05)
        assert all(reports[-1].outcome == "averaged" for reports in later), later


def test_rounds_begin_every_h_local_steps_which_go_on_meanwhile() -> None:
    with start_swarm(settings("swarm.num_peers=2", "gossip.steps=10"), SIZE) as peers:
        for reports in peers.all(paced_rounds, 8, 0.02):
            begun = [0, *(report.local_step for report in reports)]
            intervals = [after - before for before, after in itertools.pairwise(begun)]
            assert statistics.median(intervals) == pytest.approx(10, abs=2), begun  # on busy cores a round may be late
            assert all(report.outcome == "averaged" for report in reports)
            assert all(report.staleness_steps >= 1 for report in reports)


def test_on_a_clock_in_seconds_fast_and_slow_peers_do_different_numbers_of_steps_and_all_average() -> None:
    with start_swarm(settings("swarm.num_peers=3", "gossip.group_size=3", "gossip.seconds=0.4"), SIZE) as peers:
        first_round = max(peers.all(next_round))  # a swarm that came up slowly has missed some
        for peer, step_s in zip(peers, (0.01, 0.02, 0.06), strict=True):
            peer.send(paced_rounds, first_round + 10, step_s)
        reports = [peer.receive(DEADLINE_S) for peer in peers]
        assert all(report.outcome == "averaged" for each in reports for report in each[1:]), reports
        fast, _, slow = (each[-1].local_step for each in reports)
        assert fast > 2 * slow


@pytest.mark.parametrize(
    "setting",
    ["gossip.compression=fp16", "gossip.compression=int8", "gossip.schedule=hivemind", "gossip.schedule=ring"],
)
def test_every_way_of_averaging_brings_peers_together_and_keeps_their_mean(setting: str) -> None:
    options = settings("swarm.num_peers=3", "gossip.group_size=3", "gossip.steps=1", "gossip.overlap=false", setting)
    with start_swarm(options, SIZE) as peers:
        generator = torch.Generator().manual_seed(0)
        start = [0.1 * torch.randn(SIZE, generator=generator) for _ in peers]
        peers.each(GossipPeer.set, start)
        before = spread(peers)
        reports = [report for _ in range(3) for report in peers.all(GossipPeer.round)]
        assert all(report.outcome == "averaged" for report in reports), reports
        assert spread(peers) < 0.01 * before
        mean = torch.stack(peers.all(GossipPeer.get)).mean(dim=0)
        torch.testing.assert_close(mean, torch.stack(start).mean(dim=0), atol=2e-2, rtol=0)


def test_an_exact_round_reaches_the_mean_of_the_whole_swarm_at_once() -> None:
    options = settings("swarm.num_peers=4", "gossip.overlap=false", "gossip.exact_every=2", "gossip.schedule=random")
    with start_swarm(options, SIZE) as peers:
        peers.each(GossipPeer.set, list(torch.randn(4, SIZE, generator=torch.Generator().manual_seed(0))))
        peers.all(GossipPeer.round)
        assert spread(peers) > 1.0
        peers.all(GossipPeer.round)
        assert spread(peers) < 1e-6
