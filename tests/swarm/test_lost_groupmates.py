"""A peer is lost, stopped or broken in the middle of an all-reduce: outcome, cause, parameters, and the next round."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest

from ray_gossip.hive.membership import MEMBER_TTL_S, REDECLARE_S
from ray_gossip.testing import Peers, RemotePeer, start_swarm
from tests.swarm.faults import Fault, FaultyPeer, Moment, Part
from tests.swarm.swarms import Ended, blocking, distance_from_mean, fill, gossip

VICTIM = 2
SOON_S = 10.0  # far below gossip.allreduce_s = 60: nobody waits for a time-out, on busy cores too
SIZE = 2**21  # elements: 8 MB, so that each reducer has several parts
TOLERANCE = 1e-5
SLACK_S = 2.0


def without(peers: Sequence[RemotePeer], index: int) -> Peers:
    return Peers([peer for position, peer in enumerate(peers) if position != index])


def assert_average(peers: Peers, seeds: list[int], causes: Iterable[str] = ("",)) -> None:
    """The next round works; `causes`, looked at when it has ended, are what it may say."""
    peers.each(fill, seeds)
    rounds = peers.all(gossip)
    allowed = list(causes)
    for ended in rounds:
        assert ended.report.outcome == "averaged", ended.report
        assert ended.report.cause in allowed
    assert max(peers.all(distance_from_mean, seeds)) < TOLERANCE


def still_named(dead: dict[str, float]) -> Iterator[str]:
    """The causes that a round may give: all the dead, but for those, the first ones first, that may have expired
    when it ends. Then nobody looks for them any more."""
    yield "; ".join(sorted(dead))
    for gone, died in enumerate(dead.values(), start=1):
        if time.monotonic() - died > MEMBER_TTL_S - REDECLARE_S:  # its last declaration may have been as old as this
            yield "; ".join(sorted(list(dead)[gone:]))


@pytest.mark.parametrize("moment", Moment, ids=lambda moment: moment.name)
@pytest.mark.parametrize("fault", [Fault.KILL_PEER, Fault.KILL_AVERAGER], ids=lambda fault: fault.name)
def test_a_groupmate_killed_in_the_all_reduce_voids_the_round_at_once_and_the_next_works(
    fault: Fault, moment: Moment
) -> None:
    """A round counts as averaged only if every part was received, and otherwise leaves the parameters as they were.

    Five peers in one group; one dies at the first part, one of the others at a middle one, another at the last.
    """
    with start_swarm(blocking(5, "gossip.group_size=5"), SIZE, build=FaultyPeer) as living:
        dead: dict[str, float] = {}  # what is said of it -> when it died, at the earliest
        for victim, part in zip((4, 2, 1), Part, strict=True):
            seeds = list(range(len(living)))
            living.each(fill, seeds)
            living[victim].call(FaultyPeer.fail_at, fault, moment, part)
            dead[f"peer-{victim:02d} could not be reached"] = time.monotonic()
            living[victim].send(gossip)
            survivors = without(living, victim)
            rounds: list[Ended] = survivors.all(gossip)
            for ended, distance in zip(rounds, survivors.all(distance_from_mean, seeds), strict=True):
                assert ended.seconds < SOON_S
                if ended.report.outcome == "averaged":  # it had all that it needed before the others lost theirs
                    assert moment == Moment.ANSWERING
                    assert part == Part.LAST
                    assert distance < TOLERANCE  # nothing and nobody is missing in its mean
                    continue
                assert ended.report.outcome in ("partial", "failed")
                assert f"of the mean arrived: peer-{victim:02d} was lost in the all-reduce" in ended.report.cause
                assert ended.report.cause.count("was lost in the all-reduce") == 1  # nobody else is blamed
                assert ended.unchanged
                assert ended.report.moved == 0.0
                assert ended.report.sketch_after == ended.report.sketch_before
            assert any(ended.report.outcome != "averaged" for ended in rounds)
            living = survivors
            assert_average(living, seeds[:-1], still_named(dead))


@pytest.fixture(scope="module")
def swarm() -> Iterator[Peers]:
    """Four peers that outlive their faults, in one group; a stopped one costs at most three seconds."""
    config = blocking(4, "gossip.group_size=4", "gossip.allreduce_s=3", "gossip.matchmaking_s=3")
    with start_swarm(config, SIZE, build=FaultyPeer) as peers:
        yield peers


@pytest.mark.parametrize("part", Part, ids=lambda part: part.name)
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
    assert_average(swarm, [4, 5, 6, 7])


@pytest.mark.parametrize("fault", [Fault.SENDS_ONE_NUMBER, Fault.COUNTS_DOUBLE], ids=lambda fault: fault.name)
def test_a_part_that_nobody_can_average_fails_the_round_and_names_its_sender(swarm: Peers, fault: Fault) -> None:
    swarm.each(fill, [0, 1, 2, 3])
    swarm[VICTIM].call(FaultyPeer.fail_at, fault, Moment.SENDING, Part.MIDDLE)
    swarm[VICTIM].send(gossip)
    rounds: list[Ended] = without(swarm, VICTIM).all(gossip)
    assert any("peer-02 sent a part that nobody can average" in ended.report.cause for ended in rounds)
    for ended in rounds:
        assert ended.report.outcome in ("partial", "failed")
        assert re.findall(r"peer-\d\d", ended.report.cause) == ["peer-02"], ended.report.cause
        assert ended.unchanged
        assert ended.seconds < SOON_S
    swarm[VICTIM].receive()
    swarm[VICTIM].call(FaultyPeer.recover)
    assert_average(swarm, [4, 5, 6, 7])


def test_a_groupmate_stopped_in_the_all_reduce_costs_no_more_than_the_deadline(swarm: Peers) -> None:
    swarm.each(fill, [0, 1, 2, 3])
    pid = swarm[VICTIM].call(FaultyPeer.averager_pid)
    swarm[VICTIM].call(FaultyPeer.fail_at, Fault.STOP_AVERAGER, Moment.SENDING, Part.MIDDLE)
    swarm[VICTIM].send(gossip)
    survivors = without(swarm, VICTIM)
    for ended in survivors.all(gossip):
        assert ended.report.outcome == "failed"
        assert re.fullmatch(
            r"the all-reduce took longer than [23]\.\d s: peer-02 did not answer in time", ended.report.cause
        )
        assert ended.unchanged
        assert ended.report.allreduce_s < 3.0 + SLACK_S
    assert_average(survivors, [4, 5, 6], ["peer-02 does not answer"])
    os.kill(pid, signal.SIGCONT)
    late: Ended = swarm[VICTIM].receive()
    assert late.unchanged
    assert late.report.outcome in ("partial", "failed")
    assert_average(swarm, [4, 5, 6, 7])


def test_a_peer_reports_the_bytes_of_all_its_attempts_at_a_final_round() -> None:
    with start_swarm(blocking(2), SIZE, build=FaultyPeer) as peers:
        peers[0].call(FaultyPeer.fail_at, Fault.DECODER_RAISES)
        for attempts, reported in peers.all(finish_and_count):
            assert len(attempts) == 3
            assert min(attempts) > 0
            assert reported == sum(attempts)


def finish_and_count(peer: FaultyPeer) -> tuple[list[int], int]:
    """What each attempt sent, and what is reported in the end."""
    attempts: list[int] = []
    gossip_round = peer.engine.averager.gossip_round

    def count(*args: Any, **kwargs: Any) -> Any:
        future = gossip_round(*args, **kwargs)
        attempts.append(future.result(timeout=SOON_S).bytes_sent)
        return future

    peer.engine.averager.gossip_round = count  # type: ignore[method-assign]
    return attempts, peer.engine.finish(peer.step).bytes_sent


def test_the_deadline_of_an_all_reduce_is_learned_from_rounds_before() -> None:
    config = blocking(3, "gossip.group_size=4", "gossip.allreduce_s=60")
    with start_swarm(config, SIZE // 8, build=FaultyPeer) as peers:
        for _ in range(4):
            assert {ended.report.outcome for ended in peers.all(gossip)} == {"averaged"}
        pid = peers[VICTIM].call(FaultyPeer.averager_pid)
        peers[VICTIM].call(FaultyPeer.fail_at, Fault.STOP_AVERAGER)
        peers[VICTIM].send(gossip)
        started = time.monotonic()
        for ended in without(peers, VICTIM).all(gossip):
            assert ended.report.outcome == "failed"
            assert "peer-02 did not answer in time" in ended.report.cause
        assert time.monotonic() - started < SOON_S
        os.kill(pid, signal.SIGCONT)
        peers[VICTIM].receive()
