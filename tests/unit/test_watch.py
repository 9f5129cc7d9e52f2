"""A run that is not what it looks like says so; one that is well says nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_gossip.causes import CUT_OFF, EXPIRED, NO_OTHERS
from ray_gossip.config import GossipConfig
from ray_gossip.gossip.members import Roster
from ray_gossip.gossip.round import RoundResult
from ray_gossip.records import Outcome, Record, RoundReport
from ray_gossip.telemetry import SwarmRound, SwarmState
from ray_gossip.telemetry.watch import Watch
from tests.unit.telemetry_records import finished, lost, progress, started

H, INTERVAL_S = 20, 2.0
BUSY = "no group of 2: peer-01 is busy: no local step for 5 s"
A_CAUSE = st.sampled_from([BUSY, "the all-reduce took longer than 5.0 s: ", "50% of the mean arrived"])


def rounds_of(
    peers: Iterable[int],
    number: int,
    *,
    outcome: Outcome = "averaged",
    cause: str = "",
    gap: int = H,
    interval_s: float = INTERVAL_S,
    blocked_s: float = 0.01,
) -> Iterator[RoundReport]:
    """One round of some peers, as each of them reports it."""
    for peer in peers:
        yield RoundReport(
            peer_index=peer,
            wall_time=1000.0 + interval_s * number + 0.01 * peer,
            round=number,
            outcome=outcome,
            cause=cause,
            group=(peer,),
            local_step=gap * number,
            staleness_steps=1,
            matchmaking_s=0.2,
            allreduce_s=0.3,
            blocked_s=blocked_s,
            bytes_sent=1,
            moved=0.1,
        )


class Watched:
    """A swarm in training, and what is told of it."""

    def __init__(self, num_peers: int = 2, **gossip: Any) -> None:
        self.state = SwarmState(peers=range(num_peers), total_steps=1000)
        self.watch = Watch(self.state, GossipConfig(**{"group_size": 2, "steps": H} | gossip))
        self.told: list[str] = []
        self.see([*map(started, range(num_peers)), *(progress(peer, 1) for peer in range(num_peers))])

    def see(self, records: Iterable[Record]) -> list[str]:
        """What is told because of these."""
        new: list[str] = []
        for record in records:
            for each in (record, *([] if isinstance(record, SwarmRound) else self.state.fold(record))):
                new += [notice.text for notice in self.watch.see(each)]
        self.told += new
        return new

    def round(self, number: int, **like: Any) -> list[str]:
        return self.see(rounds_of(range(len(self.state.peers)), number, **like))

    def present(self) -> list[str]:
        return [trouble.kind for trouble in self.state.present_troubles()]


class TestRoundsThatDoNotAverage:
    def test_are_told_in_the_fifth_round_with_the_cause_and_the_key_and_not_before(self) -> None:
        swarm = Watched()
        for number in range(4):
            assert swarm.round(number, outcome="alone", cause=BUSY) == []
        (text,) = swarm.round(4, outcome="alone", cause=BUSY)
        assert "rounds of peers 0, 1 did not average: no group of 2: peer-01 is busy" in text
        assert "swarm.cpus_per_peer" in text
        assert swarm.present() == ["rounds"]

    @pytest.mark.parametrize("outcome", ["alone", "partial", "failed"])
    def test_count_whatever_they_ended_as(self, outcome: Outcome) -> None:
        swarm = Watched(4)
        for number in range(5):
            swarm.round(number, outcome=outcome, cause="50% of the mean arrived: peer-03 was lost")
        assert len(swarm.told) == 1
        assert "gossip.compression" in swarm.told[0]

    def test_are_no_trouble_while_a_network_side_is_started_again_which_a_notice_tells(self) -> None:
        swarm = Watched()
        cause = RoundResult.interrupted(0, "the libp2p daemon of this peer died", roster=Roster()).cause
        for number in range(20):
            swarm.round(number, outcome="failed", cause=cause)
        assert swarm.told == []

    def test_name_the_smallest_group_where_that_is_the_cause(self) -> None:
        swarm = Watched(3, group_size=4, min_group_size=4)
        for number in range(5):
            swarm.round(number, outcome="alone", cause="no group of 4: peer-02 did not come within 1 s")
        assert "lower gossip.min_group_size=4" in swarm.told[0]

    def test_are_told_where_they_are_more_than_half_of_twenty(self) -> None:
        def of_twenty(num_bad: int) -> list[str]:
            swarm = Watched()
            for number in range(20):  # spread out, so that five running are never all bad
                is_bad = (number * num_bad) // 20 != ((number + 1) * num_bad) // 20
                swarm.round(number, **({"outcome": "alone", "cause": BUSY} if is_bad else {}))
            return swarm.told

        assert of_twenty(9) == []
        assert len(of_twenty(12)) == 1

    def test_are_told_once_and_taken_back_when_rounds_average_again(self) -> None:
        swarm = Watched()
        for number in range(30):
            swarm.round(number, outcome="alone", cause=BUSY)
        for number in range(30, 36):
            swarm.round(number)
        trouble = swarm.state.troubles["rounds"]
        assert (trouble.is_over, trouble.first_round, len(swarm.told)) == (True, 0, 1)
        assert trouble.count == 60
        for number in range(36, 42):
            swarm.round(number, outcome="alone", cause=BUSY)
        assert swarm.present() == ["rounds"], "it is back, and the table shows it"
        assert len(swarm.told) == 1, "but nobody is told twice"

    def test_that_are_over_are_not_counted_again_with_the_next_unlucky_one(self) -> None:
        swarm = Watched()
        for number in range(20):
            swarm.round(number, outcome="alone", cause=BUSY)
        for number in range(20, 25):
            swarm.round(number)
        swarm.round(25, outcome="alone", cause=BUSY)
        assert swarm.present() == []

    def test_of_one_peer_of_many_are_told_with_its_name(self) -> None:
        swarm = Watched(8)
        for number in range(8):
            assert swarm.told == []
            swarm.see(rounds_of({0, 1, 2, 4, 5, 6, 7}, number))
            swarm.see(rounds_of([3], number, outcome="alone", cause="no group of 2: peer-05 is busy: no local step"))
        assert "rounds of peer 3 did not average" in swarm.told[0]

    def test_of_one_peer_are_told_after_five_where_the_cause_does_not_pass(self) -> None:
        swarm = Watched(8)
        for number in range(5):
            assert swarm.told == []
            swarm.see(rounds_of({0, 1, 2, 4, 5, 6, 7}, number))
            cause = "nothing was sent: its parameters are not finite"
            swarm.see(rounds_of([3], number, outcome="failed", cause=cause))
        assert "rounds of peer 3 did not average: nothing was sent" in swarm.told[0]
        assert "lower optimizer.lr" in swarm.told[0]

    @pytest.mark.parametrize(
        "cause",
        [
            "scheduled alone",
            "no group of 2: peer-01 has done its local steps",
            "no group of 2: peer-01 has left",
        ],
    )
    def test_are_no_trouble_where_nobody_was_to_average(self, cause: str) -> None:
        swarm = Watched(3)
        for number in range(40):
            swarm.round(number, outcome="alone", cause=cause)
        assert swarm.told == []

    def test_are_no_trouble_where_the_groupmate_is_reported_lost_anyway(self) -> None:
        swarm = Watched(4)
        for number in range(3):  # the cluster tells of a death after up to two seconds
            swarm.round(number, interval_s=0.5, outcome="alone", cause="no group of 2: peer-03 could not be reached")
        swarm.see([replace(lost(3), wall_time=1001.5)])
        for number in range(3, 30):
            cause = "no group of 2: peer-03 could not be reached"
            swarm.see(rounds_of(range(3), number, interval_s=0.5, outcome="alone", cause=cause))
            swarm.see(rounds_of(range(3), number, interval_s=0.5, outcome="failed", cause="no groupmate was reached"))
        assert swarm.told == []

    def test_of_the_last_peer_that_lives_are_no_trouble(self) -> None:
        swarm = Watched(2)
        swarm.see([lost(1)])
        for number in range(40):
            swarm.see(rounds_of([0], 10 + number, outcome="alone", cause=NO_OTHERS))
        assert swarm.told == []

    def test_say_nothing_with_groups_of_one_and_in_a_swarm_of_one(self) -> None:
        for swarm in (Watched(4, group_size=1), Watched(1)):
            for number in range(40):
                swarm.round(number, outcome="alone", cause=NO_OTHERS)
            assert swarm.told == []

    def test_that_follow_each_other_in_a_moment_need_three_seconds(self) -> None:
        swarm = Watched()
        for number in range(25):
            swarm.round(number, interval_s=0.1, outcome="alone", cause=BUSY)
        assert swarm.told == [], "a death is known after two"
        for number in range(25, 35):
            swarm.round(number, interval_s=0.1, outcome="alone", cause=BUSY)
        assert len(swarm.told) == 1


class TestAPeerThatSeesNobody:
    def test_is_told_after_three_rounds_though_its_swarm_is_well(self) -> None:
        swarm = Watched(8)
        for number in range(10):
            swarm.round(number)
        for number in range(10, 13):
            assert swarm.told == []
            swarm.see(rounds_of(range(1, 8), number))
            swarm.see(rounds_of([0], number, outcome="alone", cause=NO_OTHERS))
        assert "peer 0 met nobody, though others train" in swarm.told[0]
        assert swarm.present() == ["hermit"]

    def test_is_no_trouble_when_the_others_are_done(self) -> None:
        for ends in ([progress(1, 1000)], [progress(1, 1000), finished(1)]):  # at its final round, or past it
            swarm = Watched(2)
            swarm.see(ends)
            for number in range(20):
                swarm.see(rounds_of([0], number, outcome="alone", cause=NO_OTHERS))
            assert swarm.told == []

    def test_that_was_cut_off_says_so_though_nobody_else_tells_it_anything(self) -> None:
        swarm = Watched(1)  # a peer outside Ray: it hears of its own rounds only
        for number in range(5):
            swarm.round(number)
        for number in range(5, 8):
            assert swarm.told == []
            swarm.round(number, outcome="alone", cause=CUT_OFF)
        assert "peer 0 met nobody, where several were: either they are gone, or its node of the DHT" in swarm.told[0]
        assert swarm.present() == ["hermit"]

    def test_is_told_when_it_is_the_others_that_do_not_see_it(self) -> None:
        swarm = Watched(2)
        for number in range(3):
            assert swarm.told == []
            swarm.see(rounds_of([1], number))
            swarm.see(rounds_of([0], number, outcome="alone", cause=EXPIRED))
        assert "peer 0 met nobody, though others train: its node of the DHT" in swarm.told[0]
        assert swarm.present() == ["hermit"]

    def test_is_over_when_it_meets_others_again(self) -> None:
        swarm = Watched(2)
        for number in range(5):
            swarm.round(number, outcome="alone", cause=NO_OTHERS)
        assert swarm.present() == ["hermit"]
        for number in range(5, 11):
            swarm.round(number)
        assert swarm.present() == []


class TestRoundsThatTakeTooLong:
    def test_are_told_when_they_begin_late(self) -> None:
        for gap, told in ((H, 0), (int(1.5 * H) + 1, 0), (int(1.5 * H) + 2, 1)):
            swarm = Watched()
            for number in range(6):
                swarm.round(number, gap=gap)
            assert len(swarm.told) == told
        assert "later than every gossip.steps=20: a round takes 0.2 s to meet and 0.3 s to average" in swarm.told[0]
        assert "raise gossip.steps" in swarm.told[0]

    def test_are_told_on_a_clock_in_seconds_too(self) -> None:
        for seconds, told in ((INTERVAL_S, 0), (INTERVAL_S / 2, 1)):
            swarm = Watched(steps=None, seconds=seconds)
            for number in range(6):
                swarm.round(number)
            assert len(swarm.told) == told
        assert "raise gossip.seconds" in swarm.told[0]

    def test_are_no_trouble_when_consensus_control_leaves_rounds_out(self) -> None:
        swarm = Watched(consensus_target=0.01)
        for number in range(20):
            swarm.round(number, gap=8 * H)
        assert swarm.told == []

    def test_are_told_when_local_steps_stand_still_for_them(self) -> None:
        for blocked_s, told in ((0.5 * INTERVAL_S, 0), (0.52 * INTERVAL_S, 1)):
            swarm = Watched(overlap=False)
            for number in range(6):
                swarm.round(number, blocked_s=blocked_s)
            assert len(swarm.told) == told
        assert "held up local steps for more than half of the time" in swarm.told[0]
        assert "gossip.overlap=true" in swarm.told[0]


class TestTheConsensusDistance:
    def told(self, distances: Iterable[float], **gossip: Any) -> Watched:
        swarm = Watched(**gossip)
        for number, distance in enumerate(distances):
            swarm.see([swarm_round(number, distance)])
        return swarm

    def test_that_grows_over_many_rounds_is_told_once(self) -> None:
        swarm = self.told((1.05**number for number in range(60)), outer="heavy_ball")
        (text,) = swarm.told
        assert "the peers drift apart: the consensus distance rose from" in text
        assert "gossip.outer_lr" in text
        assert swarm.present() == ["distance"]

    def test_of_a_healthy_run_rises_and_falls_without_a_word(self) -> None:
        rng = np.random.default_rng(0)
        rise_and_fall = (min(1.0, n / 10) * math.cos(n / 200 * math.pi / 2) for n in range(190))
        assert self.told(value * rng.uniform(0.5, 1.5) for value in rise_and_fall).told == []

    def test_may_grow_far_below_where_it_began(self) -> None:
        assert self.told([1.0] * 15 + [1e-10 * 1.1**number for number in range(60)]).told == []

    def test_of_a_walk_that_nothing_holds_back_is_no_growth(self) -> None:
        assert self.told(math.sqrt(number) for number in range(100)).told == []

    def test_that_is_not_a_number_is_left_to_the_rounds(self) -> None:
        assert self.told([math.nan] * 60).told == []

    def test_is_over_when_it_falls(self) -> None:
        swarm = self.told([1.05**number for number in range(50)] + [1.0] * 10)
        assert (len(swarm.told), swarm.present()) == (1, [])


class TestLuck:
    """One round in five may go wrong; a sick swarm is found in five."""

    @settings(max_examples=60, deadline=None)
    @given(
        num_pairs=st.integers(1, 6),
        first=st.integers(0, 4),
        every=st.integers(5, 9),
        cause=A_CAUSE,
    )
    def test_up_to_a_fifth_of_the_rounds_may_go_wrong(self, num_pairs: int, first: int, every: int, cause: str) -> None:
        swarm = Watched(2 * num_pairs)
        for number in range(60):
            is_bad = number % every == first
            swarm.round(number, **({"outcome": "failed", "cause": cause, "gap": H} if is_bad else {}))
        assert swarm.told == []

    def test_and_by_chance_in_a_swarm_of_pairs(self) -> None:
        rng = np.random.default_rng(1)
        swarm = Watched(8)
        for number in range(1000):
            order = rng.permutation(8)
            for pair in order.reshape(4, 2).tolist():
                is_bad = bool(rng.uniform() < 0.2)
                swarm.see(rounds_of(pair, number, outcome="alone" if is_bad else "averaged", cause=BUSY * is_bad))
        assert swarm.told == []

    @settings(max_examples=60, deadline=None)
    @given(
        num_peers=st.integers(2, 12),
        healthy=st.integers(0, 40),
        interval_s=st.floats(1.0, 100.0),
        symptom=st.sampled_from(
            [
                {"outcome": "failed", "cause": "the all-reduce took longer than 5.0 s: "},
                {"outcome": "alone", "cause": NO_OTHERS},
                {"gap": 3 * H},
                {"blocked_s": 90.0},
            ]
        ),
    )
    def test_a_sick_swarm_is_told_within_five_rounds(
        self, num_peers: int, healthy: int, interval_s: float, symptom: dict[str, Any]
    ) -> None:
        swarm = Watched(num_peers)
        for number in range(healthy):
            swarm.round(number, interval_s=interval_s)
        assert swarm.told == []
        steps = H * healthy
        gap = symptom.get("gap", H)
        for number in range(healthy, healthy + 6):  # of durations, the first is seen in the second round
            steps += gap
            like = {key: value for key, value in symptom.items() if key not in ("gap", "blocked_s")}
            blocked_s = symptom.get("blocked_s", 0.01) * interval_s / 100.0
            reports = rounds_of(range(num_peers), number, interval_s=interval_s, blocked_s=blocked_s, **like)
            swarm.see([replace(report, local_step=steps) for report in reports])
        assert len(swarm.told) == 1


def swarm_round(number: int, distance: float) -> SwarmRound:
    return SwarmRound(
        peer_index=-1,
        wall_time=1000.0 + number,
        round=number,
        local_step=H * number,
        num_peers=4,
        consensus_distance_before=distance,
        consensus_distance=distance / 2,
        contraction=0.25,
    )
