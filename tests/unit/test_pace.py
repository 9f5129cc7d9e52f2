"""The pace of a swarm: intervals, and that nobody falls out of step, on simulated peers of any speed."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ray_gossip.config import GossipConfig
from ray_gossip.gossip.pace import MIN_WAIT_S, Pace, resumed
from tests.unit.simulated_swarm import Ended, Event, Network, longest_alone, run_swarm, share_averaged, wanted

SEARCH = settings(
    max_examples=int(os.environ.get("RAY_GOSSIP_EXAMPLES", "12")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def beginnings(gossip: GossipConfig, num_rounds: int) -> list[float]:
    pace, position, found = Pace(gossip, position=0.0), 0.0, []
    for _ in range(num_rounds):
        position += pace.interval(pace.round)
        assert pace.is_due(position)
        pace.end(pace.begin(position, called=-1), stretch=1, position=position)
        found.append(position)
    return found


def test_rounds_in_steps_are_due_every_h_steps() -> None:
    assert beginnings(GossipConfig(steps=20), 4) == [20, 40, 60, 80]


def test_rounds_in_seconds_are_due_every_t_seconds() -> None:
    assert beginnings(GossipConfig(seconds=1.5), 3) == [1.5, 3.0, 4.5]


def test_intervals_grow_linearly_during_the_warm_up() -> None:
    positions = beginnings(GossipConfig(steps=20, warmup_rounds=4), 7)
    intervals = [after - before for before, after in zip([0, *positions], positions, strict=False)]
    assert intervals == [4, 8, 12, 16, 20, 20, 20]


def test_a_warm_up_never_asks_for_two_rounds_in_one_step() -> None:
    positions = beginnings(GossipConfig(steps=2, warmup_rounds=10), 15)
    assert all(after - before >= 1 for before, after in zip([0, *positions], positions, strict=False))


def test_a_stretch_makes_intervals_longer_and_leaves_out_no_round_number() -> None:
    pace = Pace(GossipConfig(steps=10), position=0.0)
    pace.end(pace.begin(10, called=-1), stretch=4, position=10)
    assert not pace.is_due(49)
    assert pace.is_due(50)
    assert pace.begin(50, called=-1) == 1


@pytest.mark.parametrize(("steps", "warmup_rounds"), [(20, 0), (20, 3), (1, 0)])
def test_a_swarm_that_goes_on_counts_the_rounds_before_as_done(steps: int, warmup_rounds: int) -> None:
    gossip = GossipConfig(steps=steps, warmup_rounds=warmup_rounds)
    begun = beginnings(gossip, 130)
    for local_step in range(130):
        pace = resumed(gossip, local_step)
        assert pace.round == sum(position <= local_step for position in begun)
        assert not pace.is_due(begun[pace.round] - 1)
        assert pace.is_due(begun[pace.round])


def test_a_peer_waits_as_long_as_its_interval_and_not_much_less_than_a_call_takes() -> None:
    pace = Pace(GossipConfig(steps=10), position=0.0)
    for step_s in (0.5, 0.5, 9.0, 0.5):  # one evaluation does not count
        pace.took(step_s)
    assert pace.wait_s == 5.0
    for _ in range(16):
        pace.took(0.01)
    assert pace.wait_s == MIN_WAIT_S


def test_a_round_to_which_a_peer_is_called_counts_as_its_own() -> None:
    pace = Pace(GossipConfig(steps=10), position=0.0)
    assert pace.begin(4, called=7) == 7
    assert not pace.is_due(13)
    assert pace.is_due(14)
    assert pace.begin(14, called=7) == 8


def test_a_later_round_than_was_begun_began_meanwhile() -> None:
    pace = Pace(GossipConfig(steps=10), position=0.0)
    assert pace.begin(10, called=-1) == 0
    pace.end(5, stretch=1, position=17)
    assert not pace.is_due(26)
    assert pace.is_due(27)
    assert pace.begin(27, called=-1) == 6


def test_a_later_round_that_the_others_have_not_begun_begins_an_interval_later() -> None:
    pace = Pace(GossipConfig(steps=10), position=0.0)
    pace.begin(10, called=-1)
    pace.end(1, stretch=1, position=12, is_early=True)
    assert not pace.is_due(31)
    assert pace.is_due(32)


# ---- simulated swarms: which peers and what happens to them is searched for the case that breaks the pace ------------

SPEEDS = st.sampled_from([1.0, 1.05, 1.3, 2.0, 3.0, 5.0, 10.0])
SCHEDULES = st.sampled_from(["grid", "random", "ring", "all"])


@st.composite
def swarms(draw: st.DrawFn) -> tuple[GossipConfig, list[float]]:
    """Intervals of the fastest from 0.3 to 30 s, every speed from 1 to 10 times slower."""
    steps = draw(st.sampled_from([10, 30, 100]))
    fastest_s = draw(st.sampled_from([0.03, 0.1, 0.3]))
    step_s = [fastest_s * speed for speed in draw(st.lists(SPEEDS, min_size=2, max_size=8))]
    return (
        GossipConfig(steps=steps, group_size=draw(st.sampled_from([2, 4])), schedule=draw(SCHEDULES)),
        [fastest_s, *step_s[1:]],
    )


def seconds_for(gossip: GossipConfig, step_s: list[float], num_rounds: int) -> float:
    return num_rounds * (gossip.steps or 1) * min(step_s)


@SEARCH
@given(swarms())
def test_peers_of_any_speed_meet_in_the_rounds_of_the_fastest(swarm: tuple[GossipConfig, list[float]]) -> None:
    gossip, step_s = swarm
    until_s = seconds_for(gossip, step_s, 40)
    network = run_swarm(gossip, step_s, [], until_s=until_s)
    for peer, takes_s in zip(network.peers.values(), step_s, strict=True):
        rounds = wanted(peer.ended)
        slow_groupmates_s = max(step_s)
        if takes_s == slow_groupmates_s or slow_groupmates_s < (gossip.steps or 1) * min(step_s):
            assert share_averaged(rounds) >= 0.95, rounds
        assert longest_alone(rounds) <= 3, rounds
        assert len(peer.ended) >= 0.8 * min(until_s / (takes_s * (gossip.steps or 1)), 39) - 1
        assert peer.local_step >= int(until_s / takes_s) - 1  # nobody waits for anybody


@SEARCH
@given(
    swarms(),
    st.sampled_from(["stall", "stop", "die", "join"]),
    st.floats(0.3, 0.5),
    st.floats(0.5, 5.0),
)
def test_a_disturbance_puts_nobody_out_of_step(
    swarm: tuple[GossipConfig, list[float]], kind: str, when: float, intervals: float
) -> None:
    gossip, step_s = swarm
    interval_s = (gossip.steps or 1) * min(step_s)
    until_s = max(100.0, seconds_for(gossip, step_s, 40))
    lasts_s = {"stall": intervals * interval_s, "stop": 14.0}.get(kind, 0.0)
    victim = len(step_s) - 1
    event = Event(kind=kind, peer=victim, at_s=when * until_s, lasts_s=lasts_s)  # type: ignore[arg-type]
    network = run_swarm(gossip, step_s, [event], until_s=until_s)
    over_s = event.at_s + (15.0 if kind == "die" else lasts_s) + max(interval_s, *step_s) + 6.0
    for peer in network.peers.values():
        after = [ended for ended in wanted(peer.ended) if ended.at_s > over_s]
        if _can_average(network, kind):
            assert longest_alone(after) <= 3, after
            assert share_averaged(after) >= 0.6, after
        assert peer.is_dead or peer.local_step * step_s[peer.index] >= 0.9 * (until_s - _away(peer.index, event)) - 3.0


def _can_average(network: Network, kind: str) -> bool:
    return len(network.peers) > 2 or kind != "die"


def _away(index: int, event: Event) -> float:
    if index != event.peer:
        return 0.0
    return event.at_s if event.kind == "join" else event.lasts_s


@SEARCH
@example((GossipConfig(steps=10, group_size=2), [0.03, 0.03, 0.03]), 0)  # alone by schedule in every third round
@given(swarms(), st.integers(0, 7))
def test_a_peer_that_the_others_do_not_see_does_not_drive_them_on(
    swarm: tuple[GossipConfig, list[float]], hidden: int
) -> None:
    """It sees them, calls them to its rounds, and finds each of them over: they meet without it."""
    gossip, step_s = swarm
    interval_s = (gossip.steps or 1) * min(step_s)
    hide = Event(kind="hide", peer=hidden % len(step_s), at_s=10 * interval_s, lasts_s=30 * interval_s)
    network = run_swarm(gossip, step_s, [hide], until_s=40 * interval_s)
    for peer in network.peers.values():
        assert len(peer.ended) <= 1.1 * 40 + 2, (peer.index, [(ended.at_s, ended.round) for ended in peer.ended])


def test_an_interval_longer_than_any_deadline_survives_a_stall() -> None:
    """What once ended all averaging for good: two peers, 30 steps of 0.1 s, and one of them stands still for 2 s."""
    stall = Event(kind="stall", peer=1, at_s=20.0, lasts_s=2.0)
    network = run_swarm(GossipConfig(steps=30, group_size=2), [0.1, 0.105], [stall], until_s=120.0)
    for peer in network.peers.values():
        assert sum(ended.outcome != "averaged" for ended in peer.ended) <= 1, peer.ended  # in which one was busy
        assert len(peer.ended) >= 38


def test_fast_and_slow_groups_stay_one_swarm() -> None:
    """The fastest meets two of three others; the third, ten times slower, is called by those that hear of a round."""
    network = run_swarm(GossipConfig(steps=20, group_size=2), [0.1, 0.05, 0.5, 0.1], [], until_s=100.0)
    partners = {peer.index: {other for ended in peer.ended for other in ended.group} for peer in network.peers.values()}
    assert partners == {0: {0, 1, 2}, 1: {0, 1, 3}, 2: {0, 2, 3}, 3: {1, 2, 3}}
    assert all(len(peer.ended) > 60 for peer in network.peers.values())


def _outcomes(rounds: list[Ended]) -> list[str]:
    return [ended.outcome for ended in rounds]


def test_a_clock_in_seconds_needs_no_common_zero() -> None:
    join = Event(kind="join", peer=2, at_s=33.3)
    network = run_swarm(GossipConfig(seconds=3.0, group_size=4), [0.1, 0.17, 0.13], [join], until_s=100.0)
    for peer in network.peers.values():
        assert set(_outcomes(peer.ended)) == {"averaged"}
    assert len({peer.ended[-1].round for peer in network.peers.values()}) == 1
