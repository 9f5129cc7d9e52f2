"""Faults on purpose: when which peer is hit, and what the report says of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_gossip.config import Config, parse
from ray_gossip.errors import ConfigError
from ray_gossip.lines import headline
from ray_gossip.records import RESTARTED, Fault, Notice, Record
from ray_gossip.swarm import Storm
from ray_gossip.telemetry.observer import Observer
from tests.unit.telemetry_records import lost, progress, report, started

HOUR_S = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def a_storm(clock: Clock, *, seed: int = 0, num_peers: int = 4, **faults: Any) -> Storm:
    config = parse({"faults": faults, "swarm": {"num_peers": num_peers}})
    return Storm(config.faults, num_peers=num_peers, seed=seed, clock=clock)


def happened(storm: Storm, clock: Clock, *, seconds: float, peers: int = 4) -> list[tuple[str, int]]:
    """What happens while all peers take part; those that fall are away for one look."""
    found, away = [], set[int]()
    for _ in range(round(seconds)):
        faults = storm.due({index: -1 for index in range(peers) if index not in away})
        away = {fault.peer_index for fault in faults if fault.kind in ("kill", "stop")}
        found += [(fault.kind, fault.peer_index) for fault in faults]
        clock.now += 1.0
    return found


class TestThePlan:
    def test_hits_each_peer_at_its_moment_and_once(self) -> None:
        clock = Clock()
        plan = [{"kind": "drop", "peer": 1, "at_s": 5, "for_s": 2}, {"kind": "slow", "peer": 3, "at_round": 7}]
        storm = a_storm(clock, plan=plan)
        assert storm.due({1: 0, 3: 6}) == []
        clock.now += 4.9
        assert storm.due({1: 0, 3: 6}) == []
        clock.now += 0.1
        (dropped,) = storm.due({1: 0, 3: 6})
        assert (dropped.kind, dropped.peer_index, dropped.for_s) == ("drop", 1, 2)
        (slowed,) = storm.due({1: 0, 3: 7})
        assert (slowed.kind, slowed.peer_index, slowed.for_s) == ("slow", 3, 10), "faults.for_s"
        clock.now += HOUR_S
        assert storm.due({1: 99, 3: 99}) == []

    def test_waits_for_a_peer_that_is_away(self) -> None:
        clock = Clock()
        storm = a_storm(clock, plan=[{"kind": "kill", "peer": 2, "at_s": 1}, {"kind": "p2pd", "peer": 2, "at_s": 1}])
        storm.due({2: 0})
        clock.now += 1.0
        (killed,) = storm.due({2: 0})
        assert killed.kind == "kill"
        assert killed.for_s == 0
        assert storm.due({2: 0}) == [], "it is about to be lost"
        assert storm.due({0: 0}) == []
        assert [fault.kind for fault in storm.due({0: 0, 2: 0})] == ["p2pd"]

    @pytest.mark.parametrize(
        ("faults", "says"),
        [
            ({"plan": [{"kind": "kill"}]}, "at_s or at_round"),
            ({"plan": [{"kind": "kill", "at_s": 1, "at_round": 1}]}, "at_s or at_round"),
            ({"plan": [{"kind": "kill", "at_s": 1, "peer": 4}]}, "swarm.num_peers=4"),
            ({"plan": [{"kind": "explode", "at_s": 1}]}, "'kill', 'stop'"),
            ({"kinds": []}, "faults.kinds"),
            ({"per_peer_hour": -1}, "faults.per_peer_hour"),
        ],
    )
    def test_that_makes_no_sense_is_refused(self, faults: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            parse({"faults": faults})

    def test_of_the_network_side_needs_one_that_is_a_process(self) -> None:
        killing = {"plan": [{"kind": "kill", "at_s": 1}]}
        assert parse({"engine": "hivemind", "faults": killing}).faults.are_asked_for
        for faults in ({"plan": [{"kind": "drop", "at_s": 1}]}, {"per_peer_hour": 1}):
            with pytest.raises(ConfigError, match="engine=gossip"):
                parse({"engine": "hivemind", "faults": faults})


class TestChance:
    @given(seed=st.integers(0, 1000), rate=st.sampled_from([2.0, 10.0, 60.0]), num_peers=st.integers(1, 16))
    def test_hits_as_often_as_asked_and_the_same_with_the_same_seed(
        self, seed: int, rate: float, num_peers: int
    ) -> None:
        clocks = Clock(), Clock()
        storms = [a_storm(clock, seed=seed, num_peers=num_peers, per_peer_hour=rate) for clock in clocks]
        first, second = (
            happened(storm, clock, seconds=HOUR_S / 4, peers=num_peers)
            for storm, clock in zip(storms, clocks, strict=True)
        )
        assert first == second
        expected = rate * num_peers / 4
        assert abs(len(first) - expected) <= 5 * expected**0.5 + 3
        assert {kind for kind, _ in first} <= set(Config().faults.kinds)

    def test_takes_every_kind_and_every_peer(self) -> None:
        clock = Clock()
        found = happened(a_storm(clock, per_peer_hour=60), clock, seconds=HOUR_S)
        kinds, peers = Counter(kind for kind, _ in found), Counter(peer for _, peer in found)
        assert min(kinds.values()) > 25
        assert len(kinds) == 5
        assert min(peers.values()) > 35
        assert len(peers) == 4

    def test_ends_when_it_is_to(self) -> None:
        clock = Clock()
        storm = a_storm(clock, per_peer_hour=3600, plan=[{"kind": "kill", "at_s": 5}])
        assert happened(storm, clock, seconds=4)
        storm.end()
        assert happened(storm, clock, seconds=100) == []


def fault(kind: str, at: float, *, peer: int = 2, for_s: float = 0.0) -> Fault:
    return Fault(peer_index=peer, wall_time=at, kind=kind, for_s=for_s)


def recovery(*records: Record) -> dict[str, Any]:
    observer = Observer(parse({"faults": {"per_peer_hour": 1}}))
    for record in sorted(records, key=lambda record: record.wall_time):
        observer.see(record)
    found = observer.recovery()
    assert found is not None
    return found


def training(peer: int, *, until: float, away: tuple[float, float] = (0.0, 0.0)) -> list[Record]:
    """A local step of 32 samples each second from 1000 on, told of at once; none while it is away."""
    steps, found = 0, list[Record]()
    for second in range(round(until - 1000) + 1):
        if not away[0] <= 1000 + second < away[1]:
            found.append(progress(peer, steps, wall_time=1000.0 + second))
            steps += 1
    return found


class TestTheReport:
    def test_of_one_that_was_killed(self) -> None:
        back = replace(started(2, wall_time=1018.0), incarnation=1)
        found = recovery(
            *(each for peer in range(4) for each in training(peer, until=1040) if peer != 2),
            *training(2, until=1040, away=(1010.0, 1019.0)),
            fault("kill", 1009.5),
            replace(lost(2), wall_time=1010.0),
            back,
            replace(report(1, 5, outcome="failed"), cause="peer-02 was lost in the all-reduce", wall_time=1010.5),
            replace(report(3, 5, outcome="alone"), cause="scheduled alone", wall_time=1010.5),
            replace(report(0, 5), wall_time=1010.5),
        )
        assert (found["faults"], found["back"]) == (1, 1)
        assert found["noticed_median_s"] == pytest.approx(0.5)
        assert found["back_median_s"] == found["back_p90_s"] == pytest.approx(8.5)
        assert found["mended_median_s"] == pytest.approx(8.0)
        assert found["samples_lost"] == 9 * 32
        assert (found["rounds_lost"], found["most_disturbed"], found["most_rounds_lost"]) == (1, 1, 1)
        assert found["participation"] == pytest.approx(1 / 2), "who was scheduled alone could not average"
        assert found["throughput"] == pytest.approx(1 - 9 / 160)
        assert found["by_kind"] == {"kill": {name: found[name] for name in found["by_kind"]["kill"]}}

    def test_of_a_network_side(self) -> None:
        text = f"the network process of this peer died; {RESTARTED} 0.4 s"
        found = recovery(
            *training(2, until=1040), fault("sidecar", 1010.0), Notice(peer_index=2, wall_time=1011.0, text=text)
        )
        assert found["noticed_median_s"] == pytest.approx(0.6)
        assert found["back_median_s"] == pytest.approx(1.0)
        assert found["samples_lost"] == 0
        assert found["throughput"] == pytest.approx(1.0)

    def test_of_what_passes_by_itself(self) -> None:
        rounds = [replace(report(2, n), wall_time=at) for n, at in enumerate((1009.0, 1012.0, 1016.0))]
        found = recovery(*training(2, until=1040), fault("slow", 1010.0, for_s=5.0), *rounds)
        assert found["noticed_median_s"] is None
        assert found["back_median_s"] == pytest.approx(6.0), "the first round that averaged after it"

    def test_of_one_that_never_came_back(self) -> None:
        found = recovery(*training(2, until=1020), *training(1, until=1040), fault("stop", 1020.0))
        assert (found["faults"], found["back"]) == (1, 0)
        assert found["back_median_s"] is None
        assert found["throughput"] == pytest.approx(1 - 20 / 80)

    def test_of_several_at_once_counts_what_is_lost_once(self) -> None:
        marks = training(2, until=1040, away=(1010.0, 1019.0))
        back = replace(started(2, wall_time=1018.0), incarnation=1)
        found = recovery(*marks, fault("p2pd", 1009.2), fault("kill", 1009.5), replace(lost(2), wall_time=1010.0), back)
        assert found["samples_lost"] == 9 * 32
        assert found["back"] == 2

    def test_is_there_only_where_faults_are_asked_for(self) -> None:
        observer = Observer(Config())
        observer.see(fault("kill", 1000.0))
        assert observer.recovery() is None
        assert observer.is_whole


@pytest.mark.parametrize("kind", ["kill", "stop", "slow", "sidecar", "p2pd", "drop"])
def test_each_is_told_as_what_it_is(kind: str) -> None:
    assert headline(fault(kind, 0.0, for_s=5.0 if kind in ("slow", "drop") else 0.0)).startswith("peer 2: on purpose, ")
