"""Groupmates that do not come, are dead, stopped, or must not take part: what a round does before its all-reduce."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence

import pytest
import torch

from ray_gossip.config import Config
from ray_gossip.testing import GossipPeer, Peers, RemotePeer, start_swarm
from tests.swarm.swarms import blocking, distance_from_mean, fill, gossip, network_processes, sidecar, stopped

MATCHMAKING_S = 2.5
SLACK_S = 2.0  # busy cores
SIZE = 10_000
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def started() -> Iterator[Peers]:
    config = blocking(4, "gossip.group_size=4", "gossip.min_group_size=3", f"gossip.matchmaking_s={MATCHMAKING_S}")
    with start_swarm(config, SIZE) as peers:
        yield peers


@pytest.fixture
def swarm(started: Peers) -> Peers:
    """Four peers that stand before the same round, whatever the test before has left."""
    started.all(go_on_at, max(started.all(next_round)))
    return started


def go_on_at(peer: GossipPeer, round: int) -> None:
    peer.engine.pace.end(round - 1, stretch=1, position=float(peer.step))


class OddPeer(GossipPeer):
    """The last of four has a larger model than the others."""

    def __init__(self, config: Config, peer_index: int, size: int, initial_peers: Sequence[str]) -> None:
        super().__init__(config, peer_index, size + 1 if peer_index == 3 else size, initial_peers)


def without(peers: Peers, *absent: int) -> Peers:
    return Peers([peer for index, peer in enumerate(peers) if index not in absent])


def next_round(peer: GossipPeer) -> int:
    return peer.engine.pace.round


def host_of_next_round(peers: Peers) -> int:
    """The peer at which a group of all peers meets first."""
    (round,) = set(peers.all(next_round))
    return round % len(peers)


def as_is_meant(cause: str) -> str:
    """A cause with the time that was to be waited for: what it names was waited for, a little more on busy cores."""
    for waited in re.findall(r"did not come within ([\d.]+) s", cause):
        assert MATCHMAKING_S <= float(waited) < MATCHMAKING_S + SLACK_S
    return re.sub(r"within [\d.]+ s", f"within {MATCHMAKING_S} s", cause)


def assert_average(peers: Peers, seeds: Sequence[int], cause: str = "") -> float:
    """All of them average, with this cause. Returns the longest matchmaking in seconds."""
    peers.each(fill, seeds)
    rounds = peers.all(gossip)
    for ended in rounds:
        assert (ended.report.outcome, as_is_meant(ended.report.cause)) == ("averaged", cause)
    assert max(peers.all(distance_from_mean, list(seeds))) < TOLERANCE
    return max(ended.report.matchmaking_s for ended in rounds)


@pytest.mark.parametrize("is_host", [False, True])
def test_a_partner_that_never_comes_is_waited_for_once_and_the_rest_go_on(swarm: Peers, is_host: bool) -> None:
    absent = host_of_next_round(swarm) if is_host else (host_of_next_round(swarm) + 1) % 4
    waited_s = assert_average(
        without(swarm, absent), [4, 5, 6], cause=f"peer-{absent:02d} did not come within {MATCHMAKING_S} s"
    )
    assert MATCHMAKING_S <= waited_s < MATCHMAKING_S + SLACK_S
    # a peer that comes late finds its round over, and waits for the others in the next one
    assert assert_average(swarm, [0, 1, 2, 3]) < MATCHMAKING_S
    assert len(set(swarm.all(next_round))) == 1


def test_a_rest_below_min_group_size_is_alone_and_keeps_its_parameters(swarm: Peers) -> None:
    rounds = without(swarm, 1, 3).all(gossip)
    assert max(ended.report.matchmaking_s for ended in rounds) >= MATCHMAKING_S  # the second to come waits a bit less
    for ended in rounds:
        assert ended.report.outcome == "alone"
        assert as_is_meant(ended.report.cause) == (
            f"no group of 3: peer-01 did not come within {MATCHMAKING_S} s; "
            f"peer-03 did not come within {MATCHMAKING_S} s"
        )
        assert ended.unchanged
        assert ended.report.bytes_sent == 0
        assert ended.report.matchmaking_s < MATCHMAKING_S + SLACK_S
    assert_average(swarm, [0, 1, 2, 3])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("is_host", [False, True])
def test_no_non_finite_parameter_is_ever_offered_to_a_group(swarm: Peers, value: float, is_host: bool) -> None:
    broken = host_of_next_round(swarm) if is_host else (host_of_next_round(swarm) + 1) % 4
    parameters = torch.zeros(SIZE)
    parameters[SIZE // 2] = value
    swarm[broken].call(GossipPeer.set, parameters)
    swarm[broken].send(gossip)
    assert_average(without(swarm, broken), [4, 5, 6], cause=f"peer-{broken:02d} its parameters are not finite")
    ended = swarm[broken].receive()
    assert (ended.report.outcome, ended.report.bytes_sent) == ("failed", 0)
    assert ended.report.cause == "nothing was sent: its parameters are not finite"
    assert swarm[broken].call(GossipPeer.get).isfinite().all(), "it goes on with another's"
    assert_average(swarm, [0, 1, 2, 3])


@pytest.mark.parametrize("is_host", [False, True])
@pytest.mark.parametrize("is_whole", [False, True])
def test_a_stopped_peer_costs_its_groupmates_a_few_seconds_and_no_round(
    swarm: Peers, is_host: bool, is_whole: bool
) -> None:
    """Its averager alone, or its DHT and its libp2p daemon too, so that nothing of it answers any more."""
    victim = host_of_next_round(swarm) if is_host else (host_of_next_round(swarm) + 1) % 4
    pids = [swarm[victim].call(sidecar)]
    if is_whole:
        pids = [process.pid for process in network_processes(swarm[victim])]
    with stopped(pids):
        for _ in range(2):  # the second time the members are read afresh, from a DHT of which a node hangs
            started = time.monotonic()
            assert_average(without(swarm, victim), [4, 5, 6], cause=f"peer-{victim:02d} does not answer")
            assert time.monotonic() - started < MATCHMAKING_S + 3.0 + SLACK_S
    assert_average(swarm, [0, 1, 2, 3])


def test_dead_partners_and_dead_hosts_cost_well_under_a_second() -> None:
    with start_swarm(blocking(4, "gossip.group_size=4"), SIZE) as peers:
        assert_average(peers, [0, 1, 2, 3])
        partner = (host_of_next_round(peers) + 1) % 4
        kill(peers[partner])
        dead = [f"peer-{partner:02d} could not be reached"]
        assert assert_average(without(peers, partner), [4, 5, 6], cause=dead[0]) < 1.0
        host = (partner + 1) % 4  # of the next round the dead partner would be the first host, and this the second
        kill(peers[host])
        dead.append(f"peer-{host:02d} could not be reached")
        assert assert_average(without(peers, partner, host), [7, 8], cause="; ".join(sorted(dead))) < 1.0


def kill(peer: RemotePeer) -> None:
    peer.process.kill()
    peer.process.join(10.0)


def test_a_peer_with_another_model_is_left_out_and_nobody_waits_for_it() -> None:
    config = blocking(4, "gossip.group_size=4")
    with start_swarm(config, SIZE, build=OddPeer) as peers:
        for round in range(4):  # each is host once
            rounds = peers.all(gossip)
            for index, ended in enumerate(rounds):
                if index == 3:
                    assert ended.report.outcome == "alone"
                    assert "peer-00 averages tensors of another size: not the same model" in ended.report.cause
                else:
                    cause = "peer-03 averages tensors of another size: not the same model"
                    assert (ended.report.outcome, as_is_meant(ended.report.cause)) == ("averaged", cause)
                assert ended.seconds < 1.0 + SLACK_S, round
