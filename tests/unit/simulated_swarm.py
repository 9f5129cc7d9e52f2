"""Simulated peers for tests of the pace: the real `Pace`, `Rendezvous` and `Meeting`, a network of function calls, and
a clock that jumps to the next event, so that minutes of a swarm take a moment."""

from __future__ import annotations

import asyncio
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hivemind.proto.averaging_pb2 import JoinRequest, MessageFromLeader

from ray_gossip.config import GossipConfig
from ray_gossip.gossip.meeting import Arrival, settle
from ray_gossip.gossip.members import MOST_AHEAD
from ray_gossip.gossip.pace import Pace
from ray_gossip.gossip.round import Behind, NoRound, RoundSoFar, Stage
from ray_gossip.hive.rendezvous import NoMeeting, Rendezvous
from ray_gossip.mixing.schedule import group_of

LATENCY_S = 0.01
ALLREDUCE_S = 0.05
EXPIRES_S = 15.0  # a dead peer counts as a member for so long
BUSY_S = 2.0
MOVES = 3
SCHEDULED_ALONE = "scheduled alone"


class _Jumping(selectors.DefaultSelector):
    """Instead of waiting, moves its loop's clock on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits, and nothing will ever happen"
        self.now += timeout
        return super().select(0)


def simulate(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in simulated time, and end what it leaves behind."""
    selector = _Jumping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]

    async def whole() -> None:
        await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    try:
        loop.run_until_complete(whole())
    finally:
        loop.close()


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a round ended for one peer."""

    at_s: float
    round: int
    outcome: str
    group: tuple[int, ...]
    cause: str
    is_early: bool


@dataclass
class Network:
    """All peers, and those of them that count in a round: everybody sees the same, but for the unseen ones."""

    gossip: GossipConfig
    peers: dict[str, SimulatedPeer] = field(default_factory=dict)

    def members(self, round: int, *, seen_by: SimulatedPeer) -> list[SimulatedPeer]:
        now = asyncio.get_running_loop().time()
        counting = [
            peer
            for peer in self.peers.values()
            if peer.from_round <= round and now < peer.expires_at and (peer is seen_by or not peer.is_unseen)
        ]
        return sorted(counting, key=lambda peer: peer.index)


class _Stub:
    def __init__(self, network: Network, own: SimulatedPeer, other: SimulatedPeer) -> None:
        self._network, self._own, self._other = network, own, other

    async def _call(self, answer: Callable[[], Coroutine[Any, Any, MessageFromLeader]], timeout: float | None) -> Any:
        await asyncio.sleep(LATENCY_S)
        if self._other.is_dead:
            raise ConnectionError("refused")
        return await asyncio.wait_for(self._answered(answer), timeout)

    async def _answered(self, answer: Callable[[], Coroutine[Any, Any, MessageFromLeader]]) -> MessageFromLeader:
        await self._other.is_running.wait()
        message = await answer()
        await self._other.is_running.wait()
        await asyncio.sleep(LATENCY_S)
        return message

    async def rpc_meet(self, request: JoinRequest, timeout: float | None = None) -> MessageFromLeader:
        return await self._call(lambda: self._other.rendezvous.answer_meet(request, self._own.name), timeout)

    async def rpc_coming(self, request: JoinRequest, timeout: float | None = None) -> MessageFromLeader:
        async def answer() -> MessageFromLeader:
            return self._other.rendezvous.answer_coming(request, self._own.name, has_left=False)

        return await self._call(answer, timeout)


class SimulatedPeer:
    """Local steps of a given duration and rounds, as GossipEngine and GossipAverager have them.

    Args:
        step_s: how long a local step takes, by the time at which it begins.
    """

    def __init__(self, network: Network, index: int, step_s: Callable[[float], float], from_round: int = 0) -> None:
        self.network, self.index, self.step_s, self.from_round = network, index, step_s, from_round
        self.name = f"peer-{index:02d}"
        self.is_dead, self.expires_at = False, float("inf")
        self.is_unseen = False  # by the others: they do not get its declaration
        self.is_running = asyncio.Event()  # not set while the peer is stopped
        self.is_running.set()
        self.local_step, self.ended = 0, list[Ended]()
        self.called = -1
        self._now = asyncio.get_running_loop().time
        self._pace = Pace(network.gossip, position=0.0 if network.gossip.seconds is None else self._now())
        self._pace.round = from_round
        self._stepped_at = self._now()
        self._pending: asyncio.Task[Ended] | None = None
        self.rendezvous = Rendezvous(
            peer_id=self.name,
            schema_hash=b"",
            cap_s=lambda stage: 600.0,
            stub=lambda name: _Stub(network, self, network.peers[name]),
            others=lambda: [peer.name for peer in network.members(self.rendezvous.round, seen_by=self)],
            on_call=self._on_call,
            furthest=lambda: MOST_AHEAD,
        )
        network.peers[self.name] = self

    def die(self) -> None:
        self.is_dead, self.expires_at = True, self._now() + EXPIRES_S

    async def train(self, until_s: float) -> None:
        while self._now() < until_s and not self.is_dead:
            began = self._now()
            await asyncio.sleep(self.step_s(began))
            await self.is_running.wait()
            self.local_step += 1
            self._pace.took(self._now() - began)
            self._stepped_at = self._now()
            self._after_step()

    def _after_step(self) -> None:
        position = self._now() if self.network.gossip.seconds is not None else float(self.local_step)
        if self._pending is not None and self._pending.done():
            self.ended.append(self._pending.result())
            self._pace.end(self.ended[-1].round, stretch=1, position=position, is_early=self.ended[-1].is_early)
            self._pending = None
        if self._pending is None and (self._pace.is_due(position) or self.called >= self._pace.round):
            round = self._pace.begin(position, called=self.called)
            self._pending = asyncio.create_task(self._round(round, self._pace.wait_s, self._pace.interval_s))

    async def _round(self, round: int, wait_s: float, interval_s: float) -> Ended:
        run, outcome, cause = RoundSoFar(self.index, round=round, wait_s=wait_s), "averaged", ""
        group: tuple[int, ...] = (self.index,)
        try:
            for moves in range(MOVES + 1):
                try:
                    group = await self._meet(run)
                    break
                except Behind as behind:
                    if moves == MOVES:
                        raise NoRound("alone", str(behind)) from None
                    run.move_on(behind.round, interval_s=interval_s)
            await asyncio.sleep(ALLREDUCE_S)
            if any(not self.network.peers[f"peer-{i:02d}"].is_running.is_set() for i in group):
                await asyncio.sleep(5.0)  # the least deadline of an all-reduce
                raise NoRound("failed", "a groupmate has stopped")
        except NoRound as ended:
            outcome, cause = ended.outcome, str(ended)
        return Ended(
            at_s=self._now(), round=run.round, outcome=outcome, group=group, cause=cause, is_early=run.is_early
        )

    async def _meet(self, run: RoundSoFar) -> tuple[int, ...]:
        members, gossip = self.network.members(run.round, seen_by=self), self.network.gossip
        chosen = group_of(
            members.index(self),
            gossip.schedule,
            round=run.round,
            num_members=len(members),
            group_size=gossip.group_size,
        )
        first = run.round % len(chosen)
        group = [members[i].name for i in (*chosen[first:], *chosen[:first])]
        stage = Stage(is_final=False, round=run.round)
        self.rendezvous.go_to(stage, group)
        run.is_lone = len(group) == 1
        if run.is_lone:
            raise NoRound("alone", SCHEDULED_ALONE)
        try:
            arrival = Arrival(due_in_s=run.due_in_s, wait_s=run.wait_s)
            gathering = await self.rendezvous.attend(stage, group, arrival)
        except NoMeeting as error:
            raise NoRound("failed", str(error)) from None
        settle(gathering, stage, own=self.name, smallest=gossip.min_group_size, names={})
        return tuple(sorted(self.network.peers[name].index for name in gathering.present))

    def _on_call(self, stage: Stage) -> str:
        if stage.round == self.rendezvous.round:
            return ""
        self.called = max(self.called, stage.round)
        silent_s = self._now() - self._stepped_at
        return "is busy" if silent_s > max(BUSY_S, 4 * self._pace.usual_step_s) else ""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happens to a peer."""

    # stall: its local step takes so long; stop: all its processes; hide: the others do not see it
    kind: Literal["stall", "stop", "die", "join", "hide"]
    peer: int
    at_s: float
    lasts_s: float = 0.0


def run_swarm(gossip: GossipConfig, step_s: Sequence[float], events: Sequence[Event], *, until_s: float) -> Network:
    """Peers that take step_s[i] seconds a local step, for so many seconds of simulated time."""
    networks: list[Network] = []

    async def main() -> None:
        network = Network(gossip)
        networks.append(network)
        late = {event.peer: event.at_s for event in events if event.kind == "join"}

        def duration(peer: int) -> Callable[[float], float]:
            stalls = [event for event in events if event.kind == "stall" and event.peer == peer]

            def of_step(began: float) -> float:
                begun = (event.lasts_s for event in stalls if event.at_s <= began < event.at_s + step_s[peer])
                return step_s[peer] + sum(begun)

            return of_step

        async def live(index: int) -> None:
            await asyncio.sleep(late.get(index, 0.0))
            from_round = 0
            if index in late:
                others = network.peers.values()
                from_round = 3 + max((peer.rendezvous.round for peer in others if not peer.is_dead), default=-3)
            await SimulatedPeer(network, index, duration(index), from_round).train(until_s)

        async def happen(event: Event) -> None:
            await asyncio.sleep(event.at_s)
            peer = network.peers[f"peer-{event.peer:02d}"]
            if event.kind == "die":
                peer.die()
            if event.kind == "hide":
                peer.is_unseen = True
                await asyncio.sleep(event.lasts_s)
                peer.is_unseen = False
            if event.kind == "stop":
                peer.is_running.clear()
                await asyncio.sleep(event.lasts_s)
                peer.is_running.set()

        happening = [asyncio.create_task(happen(event)) for event in events if event.kind in ("die", "stop", "hide")]
        await asyncio.gather(*(live(index) for index in range(len(step_s))), *happening)

    simulate(main())
    return networks[0]


def wanted(rounds: Sequence[Ended]) -> list[Ended]:
    """Without those in which a peer was scheduled alone: an odd number in pairs leaves one over."""
    return [ended for ended in rounds if ended.cause != SCHEDULED_ALONE]


def share_averaged(rounds: Sequence[Ended]) -> float:
    """Of these rounds, those that averaged."""
    return Counter(ended.outcome for ended in rounds)["averaged"] / len(rounds) if rounds else 1.0


def longest_alone(rounds: Sequence[Ended]) -> int:
    """The most rounds in a row that did not average."""
    longest = current = 0
    for ended in rounds:
        current = 0 if ended.outcome == "averaged" else current + 1
        longest = max(longest, current)
    return longest
