"""Who is lost, stopped or broken in the middle of an all-reduce: outcome, cause, parameters, and the next round."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from ray_gossip.testing import Peers, start_swarm
from tests.swarm.faults import Fault, FaultyPeer, Moment, Part
from tests.swarm.swarms import SIZE, Ended, blocking, distance_from_mean, fill, gossip

VICTIM = 2
SOON_S = 10.0  # far below gossip.allreduce_s = 60: nobody waits for a time-out, on busy cores too
TOLERANCE = 1e-5


def survivors_of(peers: Peers) -> Peers:
    return Peers([peer for index, peer in enumerate(peers) if index != VICTIM])


def assert_honest(ended: Ended, *, distance: float) -> None:
    """A round counts as averaged only if every part was received, and else changes nothing."""
    if ended.report.outcome == "averaged":
        assert distance < TOLERANCE  # from the mean of all four: nothing and nobody is missing
    else:
        assert ended.report.outcome in ("partial", "failed")
        assert ended.unchanged
        assert ended.report.moved == 0.0
        assert ended.report.sketch_after == ended.report.sketch_before


def assert_average(peers: Peers, seeds: list[int], cause: str) -> None:
    """The next round works."""
    peers.each(fill, seeds)
    for ended in peers.all(gossip):
        assert (ended.report.outcome, ended.report.cause) == ("averaged", cause)
    assert max(peers.all(distance_from_mean, seeds)) < TOLERANCE


@pytest.mark.parametrize("part", Part)
@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize("fault", [Fault.KILL_PEER, Fault.KILL_AVERAGER])
def test_a_groupmate_killed_in_the_all_reduce_voids_the_round_at_once_and_the_next_works(
    fault: Fault, moment: Moment, part: Part
) -> None:
    with start_swarm(blocking(4, "gossip.group_size=4"), SIZE, build=FaultyPeer) as peers:
        peers.each(fill, [0, 1, 2, 3])
        peers[VICTIM].call(FaultyPeer.fail_at, fault, moment, part)
        peers[VICTIM].send(gossip)
        survivors = survivors_of(peers)
        rounds: list[Ended] = survivors.all(gossip)
        distances = survivors.all(distance_from_mean, [0, 1, 2, 3])
        for ended, distance in zip(rounds, distances, strict=True):
            assert_honest(ended, distance=distance)
            assert ended.seconds < SOON_S
            if ended.report.outcome != "averaged":
                assert ended.report.cause.endswith("of the mean arrived: peer-02 was lost in the all-reduce")
        assert any(ended.report.outcome != "averaged" for ended in rounds)
        if moment == Moment.SENDING:  # then nobody can have its part of the mean
            assert all(ended.report.outcome != "averaged" for ended in rounds)
        assert_average(survivors, [4, 5, 6], cause="peer-02 could not be reached")


@pytest.fixture(scope="module")
def swarm() -> Iterator[Peers]:
    """Four peers that outlive their faults, in one group; a stopped one costs at most two seconds."""
    config = blocking(4, "gossip.group_size=4", "gossip.allreduce_s=2", "gossip.matchmaking_s=3")
    with start_swarm(config, SIZE, build=FaultyPeer) as peers:
        yield peers


@pytest.mark.parametrize("part", Part)
def test_a_decoder_that_raises_fails_the_round_and_the_next_works(swarm: Peers, part: Part) -> None:
    swarm.each(fill, [0, 1, 2, 3])
    swarm[VICTIM].call(FaultyPeer.fail_at, Fault.DECODER_RAISES, Moment.SENDING, part)
    rounds: list[Ended] = swarm.all(gossip)
    for index, ended in enumerate(rounds):
        assert ended.report.outcome in ("partial", "failed")
        assert ended.unchanged
        assert ended.seconds < SOON_S
        if index == VICTIM:
            assert "peer-02 could not decode what it received (TypeError: " in ended.report.cause
        else:
            assert ended.report.cause.endswith("of the mean arrived: peer-02 could not average and said so")
    swarm[VICTIM].call(FaultyPeer.recover)
    assert_average(swarm, [4, 5, 6, 7], cause="")


def test_a_groupmate_stopped_in_the_all_reduce_costs_no_more_than_the_deadline(swarm: Peers) -> None:
    swarm.each(fill, [0, 1, 2, 3])
    pid = swarm[VICTIM].call(FaultyPeer.averager_pid)
    swarm[VICTIM].call(FaultyPeer.fail_at, Fault.STOP_AVERAGER, Moment.SENDING, Part.MIDDLE)
    swarm[VICTIM].send(gossip)
    survivors = survivors_of(swarm)
    for ended in survivors.all(gossip):
        assert ended.report.outcome == "failed"
        assert ended.report.cause == "the all-reduce took longer than 2.0 s: peer-02 did not answer in time"
        assert ended.unchanged
        assert 2.0 <= ended.report.allreduce_s < 3.0
    assert_average(survivors, [4, 5, 6], cause="peer-02 could not be reached")
    os.kill(pid, signal.SIGCONT)
    late: Ended = swarm[VICTIM].receive()
    assert late.unchanged
    assert late.report.outcome in ("partial", "failed")
    skipped: Ended = swarm[VICTIM].call(gossip)
    assert (skipped.report.outcome, skipped.report.cause) == ("alone", "came after its group had begun")
    assert_average(swarm, [4, 5, 6, 7], cause="")


def test_the_deadline_of_an_all_reduce_is_learned_from_rounds_before() -> None:
    config = blocking(3, "gossip.group_size=4", "gossip.allreduce_s=60")
    with start_swarm(config, SIZE // 16, build=FaultyPeer) as peers:
        for _ in range(4):
            assert {ended.report.outcome for ended in peers.all(gossip)} == {"averaged"}
        pid = peers[VICTIM].call(FaultyPeer.averager_pid)
        peers[VICTIM].call(FaultyPeer.fail_at, Fault.STOP_AVERAGER)
        peers[VICTIM].send(gossip)
        started = time.monotonic()
        for ended in survivors_of(peers).all(gossip):
            assert ended.report.outcome == "failed"
            assert "peer-02 did not answer in time" in ended.report.cause
        assert time.monotonic() - started < SOON_S
        os.kill(pid, signal.SIGCONT)
        peers[VICTIM].receive()
