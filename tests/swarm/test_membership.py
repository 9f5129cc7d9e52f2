"""Newcomers, leavers, clocks: a swarm that changes while it runs."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hivemind import DHT
from hivemind.dht import DHTNode
from hivemind.utils import get_dht_time

from ray_gossip import config
from ray_gossip.causes import EXPIRED
from ray_gossip.config import Config
from ray_gossip.hive import membership
from ray_gossip.hive.averager import GossipAverager
from ray_gossip.records import PeerStarted, RoundReport
from ray_gossip.testing import START_S, GossipPeer, Peers, RemotePeer, start_swarm
from tests.swarm.changed import fork_sidecars
from tests.swarm.swarms import gossip, network_processes, stopped

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


async def forget_all(dht: DHT, node: DHTNode) -> None:
    for node_id in list(node.protocol.routing_table.uid_to_peer_id):
        del node.protocol.routing_table[node_id]


async def num_known(dht: DHT, node: DHTNode) -> int:
    return len(node.protocol.routing_table.uid_to_peer_id)


async def _forget_all(averager: GossipAverager) -> None:
    await averager.dht.run_coroutine(forget_all, return_future=True)


async def _num_known(averager: GossipAverager) -> int:
    found: int = await averager.dht.run_coroutine(num_known, return_future=True)
    return found


def command(peer: GossipPeer, name: str) -> Any:
    """One that the sidecar of `SoonForgotten` has learned."""
    return peer.network._call(name).result(timeout=10.0)


class SoonForgotten(GossipPeer):
    """A declaration holds three seconds here, not fifteen."""

    def __init__(self, config: Config, peer_index: int, size: int, initial_peers: Sequence[str]) -> None:
        def change() -> None:
            membership.MEMBER_TTL_S, membership.REDECLARE_S = 3.0, 0.5
            for command in (_forget_all, _num_known):
                setattr(GossipAverager, command.__name__, command)

        fork_sidecars(change)
        super().__init__(config, peer_index, size, initial_peers)


def paced_for(peer: GossipPeer, seconds: float, step_s: float) -> list[RoundReport]:
    """Local steps of fixed duration for so many seconds."""
    reports: list[RoundReport] = []
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        time.sleep(step_s)
        peer.step += 1
        reports += peer.engine.after_step(peer.step)
    return reports


def test_a_peer_whose_dht_process_stands_still_says_so_calls_nobody_meanwhile_and_comes_back() -> None:
    """Its declaration expires, but it still sees the others, and they would hear its calls."""
    options = settings("swarm.num_peers=3", "gossip.group_size=3", "gossip.steps=10")
    with start_swarm(options, SIZE, build=SoonForgotten) as peers:
        pid = network_processes(peers[2])[1].pid
        with stopped([pid]):
            peers.all(paced_for, 8.0, 0.05)
            *others, unseen = peers.all(paced_for, 6.0, 0.05)
        assert {report.cause for report in unseen} == {EXPIRED}
        for reports in others:
            assert {report.outcome for report in reports} == {"averaged"}, reports
            begun = [report.local_step for report in reports]
            intervals = [after - before for before, after in itertools.pairwise(begun)]
            assert statistics.median(intervals) >= 9, begun
        peers.all(paced_for, 3.0, 0.05)
        assert any(report.group == (0, 1, 2) for report in peers.all(paced_for, 4.0, 0.05)[2])


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


@pytest.mark.parametrize(
    ("num_peers", "others"),
    [
        (4, ("gossip.group_size=2", "gossip.schedule=random")),
        (4, ("gossip.group_size=16", "gossip.alpha=0.5", "gossip.compression=fp16")),  # one group, one stage
        (3, ("gossip.group_size=2", "gossip.alpha=0.5")),  # no grid
        (4, ("gossip.group_size=2", "gossip.alpha=0.5", "gossip.compression=fp16")),  # two stages
        (4, ("gossip.group_size=2", "gossip.weight_by_samples=true")),
        (4, ("gossip.group_size=2", "gossip.outer=nesterov")),
    ],
)
def test_an_exact_round_reaches_the_mean_of_the_whole_swarm_at_once(num_peers: int, others: tuple[str, ...]) -> None:
    fixed = (f"swarm.num_peers={num_peers}", "gossip.steps=1", "gossip.overlap=false", "gossip.exact_every=2")
    with start_swarm(config.load(None, [*fixed, *others]), SIZE) as peers:
        peers.each(GossipPeer.set, list(torch.randn(num_peers, SIZE, generator=torch.Generator().manual_seed(0))))
        peers.all(GossipPeer.round)
        assert spread(peers) > 1.0
        peers.each(see_samples, list(range(1, num_peers + 1)))
        peers.all(GossipPeer.round)
        assert spread(peers) < 1e-6


def test_an_exact_round_that_lacks_a_member_changes_nobody() -> None:
    """The mean of two out of three is not the swarm's."""
    options = ("swarm.num_peers=3", "gossip.group_size=3", "gossip.steps=1", "gossip.exact_every=1")
    with start_swarm(config.load(None, [*options, "gossip.overlap=false", "gossip.matchmaking_s=1"]), SIZE) as peers:
        present = Peers(peers[:2])
        for ended in present.all(gossip):
            assert ended.report.outcome == "alone"
            assert ended.report.cause.startswith("no group of 3: peer-02 ")
            assert ended.unchanged


def see_samples(peer: GossipPeer, number: int) -> None:
    peer.state.samples += number


@pytest.mark.parametrize("size", [1, 2])
def test_a_model_of_one_element_averages_too(size: int) -> None:
    options = config.load(None, ["swarm.num_peers=3", "gossip.group_size=3", "gossip.steps=1", "gossip.overlap=false"])
    with start_swarm(options, size) as peers:
        peers.each(GossipPeer.set, [torch.full((size,), float(value)) for value in (1, 2, 6)])
        assert [report.outcome for report in peers.all(GossipPeer.round)] == ["averaged"] * 3
        for values in peers.all(GossipPeer.get):
            torch.testing.assert_close(values, torch.full((size,), 3.0))


def test_founders_that_began_apart_take_over_the_model_of_the_first() -> None:
    with start_swarm(settings("swarm.num_peers=3"), SIZE, build=OddBeginner) as peers:
        for values in peers.all(GossipPeer.get):
            assert torch.equal(values, torch.zeros(SIZE))
        notices = peers.all(notices_of)
        assert notices[0] == notices[1] == []
        assert "began with another model than peer-00, and has taken over that one's" in notices[2][0]


def test_founders_that_began_apart_move_no_more_by_an_outer_step() -> None:
    options = settings("swarm.num_peers=3", "gossip.steps=1", "gossip.overlap=false", "gossip.outer=nesterov")
    with start_swarm(options, SIZE, build=OddBeginner) as peers:
        for _ in range(3):
            peers.all(GossipPeer.round)
        for values in peers.all(GossipPeer.get):
            assert torch.equal(values, torch.zeros(SIZE))


class OddBeginner(GossipPeer):
    """The last of three begins with other values."""

    def __init__(self, config: Config, peer_index: int, size: int, initial_peers: Sequence[str]) -> None:
        super().__init__(config, peer_index, size, initial_peers)
        if peer_index == 2:
            self.state.values.fill_(7.0)


def notices_of(peer: GossipPeer) -> list[str]:
    return peer.engine.notices


def test_a_guest_s_record_of_any_length_reaches_the_driver_s_peers() -> None:
    options = settings("swarm.num_peers=1", "gossip.steps=5")
    with start_swarm(options, SIZE) as founders:
        founders[0].call(paced_rounds, 1, 0.02)
        guest = RemotePeer(GossipPeer, options, 1, SIZE, founders[0].call(GossipPeer.multiaddrs))
        with Peers([guest]):
            guest.receive(START_S)
            guest.call(join_running)
            guest.call(tell_of_many_classes)
            wait_until(lambda: founders[0].call(heard_of_classes) == 8000)
            assert guest.call(num_members) == 2  # its averager lives


def tell_of_many_classes(peer: GossipPeer) -> None:
    started = PeerStarted(
        peer_index=1,
        wall_time=0.0,
        peer_id="",
        multiaddrs=(),
        pid=1,
        node="",
        device="cpu",
        num_parameters=1,
        num_samples=1,
        class_counts=tuple(range(100_000, 108_000)),
    )
    peer.engine.tell_driver([started], wait_s=10.0)


def heard_of_classes(peer: GossipPeer) -> int:
    return sum(len(record.class_counts) for record in peer.engine.guest_records() if isinstance(record, PeerStarted))


class OddReader(GossipPeer):
    """Each has read other samples."""

    def data_of(self, peer_index: int) -> str:
        return f"read by {peer_index}"


def test_peers_that_have_read_other_samples_are_told_so() -> None:
    with pytest.raises(AssertionError, match=r"ConfigError: data: peer-0[01] has other samples, or in another order"):
        start_swarm(settings("swarm.num_peers=2"), SIZE, build=OddReader)


def test_a_final_round_that_meets_nobody_although_others_are_there_is_no_agreement() -> None:
    with start_swarm(settings("swarm.num_peers=2", "swarm.final_s=1"), SIZE) as peers:
        assert peers[0].call(finish) == ("alone", False)
        peers[1].call(GossipPeer.shutdown)
        assert peers[0].call(finish) == ("alone", True)  # the other has said goodbye


def finish(peer: GossipPeer) -> tuple[str, bool]:
    final = peer.engine.finish(peer.step)
    return final.outcome, final.agreed


def test_nodes_of_the_dht_that_have_forgotten_each_other_find_each_other_again() -> None:
    """As when one of them stands still so long that requests to it time out, and its own with them."""
    with start_swarm(settings("swarm.num_peers=3"), SIZE, build=SoonForgotten) as peers:
        for _ in range(3):  # a request that was under way makes them known again
            peers.all(command, "_forget_all")
        wait_until(lambda: peers.all(num_members) == [3] * 3 and peers.all(command, "_num_known") == [2] * 3)


class SlowClock(GossipPeer):
    """To the first of them, declarations expire three seconds later than to the others."""

    def __init__(self, config: Config, peer_index: int, size: int, initial_peers: Sequence[str]) -> None:
        def change() -> None:
            membership.MEMBER_TTL_S, membership.REDECLARE_S = 8.0, 0.5
            if peer_index == 0:
                real = get_dht_time
                membership.get_dht_time = lambda: real() - 3.0  # type: ignore[attr-defined]

        fork_sidecars(change)
        super().__init__(config, peer_index, size, initial_peers)


def test_peers_that_count_a_dead_one_differently_agree_in_the_end_all_the_same() -> None:
    """It expires for one a moment before the other, and the final round falls between."""
    with start_swarm(settings("swarm.num_peers=3", "swarm.final_s=20"), SIZE, build=SlowClock) as peers:
        peers[2].process.kill()
        living = Peers(peers[:2])
        living.each(GossipPeer.set, [torch.zeros(SIZE), torch.ones(SIZE)])
        wait_until(lambda: peers[1].call(num_members) == 2)
        assert peers[0].call(num_members) == 3
        assert living.all(finish) == [("averaged", True)] * 2
        for found in living.all(GossipPeer.get):
            torch.testing.assert_close(found, torch.full((SIZE,), 0.5))
