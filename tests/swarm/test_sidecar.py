"""A sidecar is disposable: whatever of it dies or is hung is replaced, and its trainer loses one round."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hivemind.p2p import P2P, PeerID
from hivemind.proto import averaging_pb2

import ray_gossip.hive.averager
import ray_gossip.sidecar.network
from ray_gossip import config
from ray_gossip.config import Config
from ray_gossip.hive.averager import GossipAverager
from ray_gossip.records import RoundReport
from ray_gossip.secret_file import TEXT
from ray_gossip.testing import START_S, GossipPeer, Peers, RemotePeer, start_swarm
from tests.swarm.changed import die, fail_in, fork_sidecars
from tests.swarm.swarms import blocking, fill, let_in, network_processes, sidecar

SIZE = 2000
TURN_S = 1.5  # three intervals
HEALED_S = 15.0  # on a machine that is busy; else 10, as `benchmarks/endurance.py --kills` shows
PORTS = (21000, 21999)
KINDS = {"sidecar": 0, "DHT process": 1, "libp2p daemon": 2}


def settings(*overrides: str) -> Config:
    words = ("gossip.group_size=2", "gossip.steps=10", "swarm.num_peers=2", f"swarm.port_range={[*PORTS]}")
    return config.load(None, [*words, *overrides])


def paced(peer: GossipPeer, seconds: float, step_s: float) -> tuple[list[RoundReport], float]:
    """Local steps, one after the other; the rounds that ended, and the longest pause between two steps."""
    reports: list[RoundReport] = []
    ends_at, longest = time.monotonic() + seconds, 0.0
    while (now := time.monotonic()) < ends_at:
        time.sleep(step_s)
        peer.step += 1
        reports += peer.engine.after_step(peer.step)
        longest = max(longest, time.monotonic() - now)
    return reports, longest


def ports(peer: GossipPeer) -> list[int]:
    return [int(address.split("/")[4]) for address in peer.network.seat.multiaddrs]


def notices(peer: GossipPeer) -> list[str]:
    return list(peer.engine.notices)


class ImpatientPeer(GossipPeer):
    """To this one a process is hung after three seconds without a sign of life, not after fifteen."""

    def __init__(self, config: Config, peer_index: int, size: int, initial_peers: Sequence[str]) -> None:
        ray_gossip.sidecar.network._HUNG_S = 3.0

        def impatient() -> None:
            ray_gossip.hive.averager.SILENT_S = 3.0

        fork_sidecars(impatient)
        super().__init__(config, peer_index, size, initial_peers)


def until_healed(
    peers: Peers,
    disturb: Callable[[], None],
    *,
    told: Mapping[RemotePeer, int],
    step_s: float = 0.05,
    outcome: str = "averaged",
) -> None:
    """Disturb some peers in the middle of a training. Wanted: a round of all together with this outcome, after the
    disturbed ones have told so many notices."""
    of_each: list[list[RoundReport]] = [[] for _ in peers]
    is_healed, deadline = False, math.inf
    while not is_healed:
        assert time.monotonic() < deadline, of_each
        for peer in peers:
            peer.send(paced, TURN_S, step_s)
        if deadline == math.inf:
            time.sleep(TURN_S / 2)
            disturb()
            deadline = time.monotonic() + HEALED_S
        answers = [peer.receive() for peer in peers]
        assert all(longest < 1.0 for _, longest in answers)
        for reports, (ended, _) in zip(of_each, answers, strict=True):
            reports += ended
        last = [ended[-1] for ended, _ in answers if ended]
        ends = [(outcome, len(peers))] * len(peers)
        has_told = all(len(peer.call(notices)) >= count for peer, count in told.items())
        is_healed = has_told and [(each.outcome, len(each.group)) for each in last] == ends


def disturb(peers: Peers, victim: RemotePeer, kind: str, number: signal.Signals, *, step_s: float = 0.05) -> None:
    """Signal one process of a peer."""
    pid = network_processes(victim)[KINDS[kind]].pid
    until_healed(peers, lambda: os.kill(pid, number), told={victim: 1}, step_s=step_s)


@pytest.mark.parametrize("is_founder", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_one_that_is_killed_is_replaced_and_only_the_round_in_flight_is_lost(kind: str, is_founder: bool) -> None:
    with start_swarm(settings(), SIZE) as peers:
        state = torch.linspace(-1, 1, SIZE)
        peers.each(GossipPeer.set, [state, state])
        victim = peers[0 if is_founder else 1]
        before = peers.all(ports)
        assert all(PORTS[0] <= port <= PORTS[1] for each in before for port in each)
        disturb(peers, victim, kind, signal.SIGKILL)
        assert peers.all(ports) == before, "where the others know it"
        (told,) = victim.call(notices)
        assert "of this peer died; another one took its place after" in told
        assert ("network process" if kind == "sidecar" else kind) in told
        for found in peers.all(GossipPeer.get):
            assert torch.equal(found, state)  # identical peers that average stay so, bit for bit


def test_one_that_is_killed_while_local_steps_wait_for_its_round_costs_that_round_only() -> None:
    with start_swarm(settings("gossip.steps=1"), SIZE) as peers:
        disturb(peers, peers[1], "sidecar", signal.SIGKILL, step_s=0.001)
        (told,) = peers[1].call(notices)
        assert "the network process of this peer died; another one took its place after" in told


class Impatient:
    """A member that asks for a model and does not wait for it."""

    def __init__(self, address: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._p2p = self._loop.run_until_complete(P2P.create(initial_peers=[address]))
        let_in(self._p2p, os.environ[TEXT])
        self._stub = GossipAverager.get_stub(
            self._p2p, PeerID.from_base58(address.rpartition("/")[2]), namespace="test"
        )

    def ask(self, wait_s: float) -> int:
        """Returns how many messages have come."""
        return self._loop.run_until_complete(self._ask(wait_s))

    async def _ask(self, wait_s: float) -> int:
        messages = await self._stub.rpc_download_state(averaging_pb2.DownloadRequest())
        count = 0
        with contextlib.suppress(asyncio.TimeoutError, StopAsyncIteration):
            while True:
                await asyncio.wait_for(anext(messages), wait_s)
                count += 1
        await messages.aclose()
        return count


def test_one_whose_guest_does_not_wait_for_the_model_goes_on() -> None:
    with start_swarm(settings(), SIZE) as peers:
        sidecars = [network_processes(peer)[0].pid for peer in peers]
        guest = RemotePeer(Impatient, peers[0].call(GossipPeer.multiaddrs)[0])
        try:
            guest.receive(START_S)
            assert guest.call(Impatient.ask, 0.05) == 0, "nobody trains: the model comes later"
            assert guest.call(Impatient.ask, START_S) >= 3, "what was asked first has been answered by then"
        finally:
            guest.close()
        for peer in peers:
            peer.send(paced, TURN_S, 0.05)
        assert all(reports[-1].outcome == "averaged" for reports, _ in (peer.receive() for peer in peers))
        assert peers.all(notices) == [[], []]
        assert [network_processes(peer)[0].pid for peer in peers] == sidecars


class CuriousPeer(GossipPeer):
    """Asks without a pause where the others can be dialled, as any does every few seconds."""

    def __init__(self, config: Config, peer_index: int, size: int, initial_peers: Sequence[str]) -> None:
        ray_gossip.sidecar.network._LOOK_S = 0.0
        super().__init__(config, peer_index, size, initial_peers)


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_is_killed_while_it_is_asked_for_addresses_is_replaced_too(kind: str) -> None:
    with start_swarm(settings(), SIZE, build=CuriousPeer) as peers:
        disturb(peers, peers[1], kind, signal.SIGKILL, step_s=0.01)
        (told,) = peers[1].call(notices)
        assert "of this peer died; another one took its place after" in told


def until_averaged(peer: GossipPeer, count: int) -> None:
    """Blocking rounds until so many have averaged."""
    deadline = time.monotonic() + 60.0
    while count:
        assert time.monotonic() < deadline
        count -= peer.round().outcome == "averaged"


@pytest.mark.parametrize(("words", "atol"), [("gossip.outer=nesterov", 0.0), ("gossip.compression=int8", 0.03)])
def test_one_that_takes_the_place_of_a_dead_one_knows_its_anchor_and_momentum(words: str, atol: float) -> None:
    """Both swarms begin alike and average four times. Nothing else changes their parameters: they end alike, but for
    int8, which rounds at random, and which does not average with a peer that has another anchor."""
    ends = []
    for is_disturbed in (False, True):
        with start_swarm(blocking(2, "gossip.group_size=2", words), SIZE) as peers:
            peers.each(fill, [1, 2])
            peers.all(until_averaged, 2)
            if is_disturbed:
                os.kill(peers[1].call(sidecar), signal.SIGKILL)
            peers.all(until_averaged, 2)
            assert len(peers[1].call(notices)) == is_disturbed
            ends.append(peers.all(GossipPeer.get))
    for undisturbed, disturbed in zip(*ends, strict=True):
        torch.testing.assert_close(undisturbed, disturbed, atol=atol, rtol=0.0)


@pytest.mark.parametrize("kind", ["sidecar", "libp2p daemon"])
def test_those_of_all_peers_that_die_at_once_are_replaced_and_find_each_other(kind: str) -> None:
    with start_swarm(settings("swarm.num_peers=3", "gossip.group_size=4"), SIZE) as peers:
        pids = [network_processes(peer)[KINDS[kind]].pid for peer in peers]

        def kill_all() -> None:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)

        until_healed(peers, kill_all, told=dict.fromkeys(peers, 1))
        for peer in peers:
            (told,) = peer.call(notices)
            assert f"{'network process' if kind == 'sidecar' else kind} of this peer died; another one took" in told


def test_that_of_the_last_peer_of_a_swarm_is_replaced_too() -> None:
    with start_swarm(settings(), SIZE) as peers:
        peers.all(paced, 2.0, 0.05)
        peers[0].call(GossipPeer.shutdown)
        last, pid = peers[1], peers[1].call(sidecar)
        until_healed(Peers([last]), lambda: os.kill(pid, signal.SIGKILL), told={last: 1}, outcome="alone")
        (told,) = peers[1].call(notices)
        assert "the network process of this peer died; another one took its place after" in told


class MistakenPeer(GossipPeer):
    """Its first three sidecars fail in a round, in a way that nobody has foreseen."""

    def __init__(self, config: Config, peer_index: int, size: int, initial_peers: Sequence[str]) -> None:
        if peer_index == 1:
            fail_in(*["_gossip_round"] * 3, by=mistaken)
        super().__init__(config, peer_index, size, initial_peers)


def mistaken() -> None:
    raise ZeroDivisionError("of a test")


def test_one_that_fails_for_an_unforeseen_reason_is_replaced_and_says_so() -> None:
    with start_swarm(settings(), SIZE, build=MistakenPeer) as peers:
        until_healed(peers, lambda: None, told={peers[1]: 3})
        told = peers[1].call(notices)
        assert len(told) == 3
        assert all(
            "network process of this peer failed: ZeroDivisionError: of a test; another" in each for each in told
        )


class FrailPeer(GossipPeer):
    """Its sidecars die as it comes in: each at another command."""

    def __init__(self, config: Config, peer_index: int, size: int, initial_peers: Sequence[str]) -> None:
        if peer_index == 1:
            fail_in("take_seat", "open", "_share_state", "_join", "_read_members", by=die)
        elif peer_index == 2:
            fail_in("take_seat", "open", "_read_members", "_download", "_share_state", "_join", by=die)
        super().__init__(config, peer_index, size, initial_peers)


def paced_until(peer: GossipPeer, enough: Path) -> list[RoundReport]:
    """Local steps until this file is there."""
    reports: list[RoundReport] = []
    while not enough.exists():
        reports += paced(peer, TURN_S, 0.05)[0]
    return reports


def enter(peer: GossipPeer) -> torch.Tensor:
    peer.engine.join_running()
    return peer.get()


def test_one_that_dies_while_its_peer_comes_in_is_replaced_at_any_moment(tmp_path: Path) -> None:
    options, state = settings(), torch.linspace(-1, 1, SIZE)
    with start_swarm(options, SIZE, build=FrailPeer) as founders:
        assert len(founders[1].call(notices)) == 3  # another one died as it took the place of one that had died
        founders.each(GossipPeer.set, [state, state])
        newcomer = RemotePeer(FrailPeer, options, 2, SIZE, founders[0].call(GossipPeer.multiaddrs))
        with Peers([newcomer]):
            newcomer.receive(START_S)
            for founder in founders:
                founder.send(paced_until, tmp_path / "enough")
            torch.testing.assert_close(newcomer.call(enter), state)
            of_newcomer, _ = newcomer.call(paced, 5.0, 0.05)
            (tmp_path / "enough").touch()
            of_founders = [founder.receive() for founder in founders]
            assert {each.outcome for each in of_newcomer[-5:]} <= {"averaged", "alone"}, of_newcomer  # pairs of three
            assert any(2 in each.group and len(each.group) == 2 for reports in of_founders for each in reports)


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_stands_still_is_replaced(kind: str) -> None:
    with start_swarm(settings(), SIZE, build=ImpatientPeer) as peers:
        disturb(peers, peers[1], kind, signal.SIGSTOP)
        (told,) = peers[1].call(notices)
        name = "network process" if kind == "sidecar" else kind
        assert f"the {name} of this peer has been hung for 3 s; another one took its place" in told
