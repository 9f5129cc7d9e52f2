"""A sampler deals an epoch to peers that come and go, without a coordinator: simulated ones, which hear late of each
other, in many drawn courses of events."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import count, islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from ray_gossip.data.dealing import Dealing, Deck, packed
from ray_gossip.errors import SwarmError, UserError
from ray_gossip.gossip.members import MOST_NOTE_BYTES, Member, View
from ray_gossip.loop import shares
from ray_gossip.loop.sampler import PeerSampler, PeerStream
from ray_gossip.loop.shares import Shares

EXPIRES_S = 15.0  # after its last declaration, a dead peer is nobody's neighbour any more


class Peer:
    """One that trains, a sample at a time."""

    def __init__(self, world: World, index: int, *, step_s: float, num_epochs: int, founders: int) -> None:
        self.world, self.index, self.step_s = world, index, step_s
        self.declared = world.declared.setdefault(index, [])
        self.heard: dict[int, int] = {}  # of how many declarations of each other one it knows
        self.seen: list[tuple[float, int]] = []
        self.is_killed = self.has_left = False
        self._declare(Member(peer_id=str(index), peer_index=index))
        world.sleep(world.lag_s)  # entering takes longer
        present = {member.peer_index for member in self._view().present}
        self.shares = Shares(self._tell, own=index, present=present)
        self.sampler = PeerSampler(Deck(world.num_samples, founders, seed=world.seed), self.shares)
        self._samples = (sample for _ in self.sampler.epochs(num_epochs) for sample in self.sampler)

    def step(self) -> bool:
        """Whether there was something to do."""
        sample = next(self._samples, None)
        if sample is None:
            self.leave()
            return False
        self.seen.append((self.world.now, sample))
        self.shares.exchange()
        return True

    def leave(self) -> None:
        self.has_left = True
        self.shares.tell_last()
        self._declare(replace(self.declared[-1][1], left=True))

    def _declare(self, member: Member) -> None:
        self.declared.append((self.world.now, member))

    def _tell(self, note: bytes) -> Future[View]:
        if self.world.random.random() < 0.02:  # the network side has died
            return failed()
        self._declare(replace(self.declared[-1][1], note=note))
        return done(self._view())

    def _view(self) -> View:
        """The others as they were a moment ago, and never as they were before what was heard already."""
        found = [self.declared[-1][1]]
        for other, declared in self.world.declared.items():
            if other == self.index:
                continue
            until = self.world.now - self.world.random.uniform(0, self.world.lag_s)
            known = max(self.heard.get(other, 0), sum(at <= until for at, _ in declared))
            self.heard[other] = known
            is_renewed = not any(peer.is_killed or peer.has_left for peer in self.world.peers if peer.index == other)
            if known and (is_renewed or self.world.now - declared[known - 1][0] < EXPIRES_S):
                found.append(declared[known - 1][1])
        return View(tuple(sorted(found, key=lambda member: member.peer_index)))


class World:
    """Peers, a clock, and what happens to them. A peer is a thread, and one of them runs at a time: until it sleeps."""

    def __init__(self, seed: int, *, num_samples: int) -> None:
        self.random, self.seed, self.num_samples = random.Random(seed), seed, num_samples
        self.now, self.lag_s = 0.0, self.random.choice([0.0, 0.5, 1.5])
        self.peers: list[Peer] = []
        self.declared: dict[int, list[tuple[float, Member]]] = {}  # by peer index: when and what
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._turns: dict[int, threading.Semaphore] = {}
        self._has_slept = threading.Semaphore(0)
        self._errors: list[BaseException] = []

    def at(self, when: float, what: Callable[[], None]) -> None:
        """By a thread of its own."""
        self._events.append(
            (when, next(self._number), lambda: self._resume(threading.Thread(target=self._do, args=[what])))
        )

    def run(self) -> None:
        while self._events:
            event = min(self._events)
            self._events.remove(event)
            self.now = max(self.now, event[0])
            event[2]()
        if self._errors:
            raise self._errors[0]

    def sleep(self, seconds: float) -> None:
        """Of the peer whose turn it is: the others go on."""
        turn = self._turns.setdefault(threading.get_ident(), threading.Semaphore(0))
        self._events.append((self.now + seconds, next(self._number), lambda: self._resume(turn)))
        self._has_slept.release()
        turn.acquire()

    def start(self, index: int, **arguments: Any) -> None:
        peer = Peer(self, index, **arguments)
        self.peers.append(peer)
        while not peer.is_killed and not peer.has_left and peer.step():
            self.sleep(peer.step_s * self.random.uniform(0.5, 1.5))

    def _resume(self, what: threading.Thread | threading.Semaphore) -> None:
        what.start() if isinstance(what, threading.Thread) else what.release()
        self._has_slept.acquire()

    def _do(self, what: Callable[[], None]) -> None:
        try:
            what()
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._turns.pop(threading.get_ident(), None)
            self._has_slept.release()


def done(view: View) -> Future[View]:
    future = Future[View]()
    future.set_result(view)
    return future


def failed() -> Future[View]:
    future = Future[View]()
    future.set_exception(SwarmError("gone"))
    return future


@pytest.fixture
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    seed: int = request.param
    drawn = random.Random(seed)
    world = World(seed, num_samples=drawn.randint(20, 150))
    clock = SimpleNamespace(monotonic=lambda: world.now, sleep=world.sleep)
    monkeypatch.setattr(shares, "time", clock)
    return world


def start(world: World, *, num_epochs: int) -> int:
    """Some founders of other speeds, which take a minute or so for each epoch. Returns how many."""
    founders = world.random.randint(1, 5)
    step_s = 40 * founders / world.num_samples
    for index in range(founders):
        world.declared[index] = [
            (-10.0, Member(peer_id=str(index), peer_index=index))
        ]  # all are there before one deals
        arguments = {"step_s": step_s * world.random.uniform(0.7, 1.5), "num_epochs": num_epochs, "founders": founders}
        world.at(world.random.uniform(0, 3), partial(world.start, index, **arguments))
    return founders


SEEDS = range(30)


def leave(world: World, index: int) -> None:
    for peer in world.peers:
        if peer.index == index and not peer.has_left:
            peer.leave()


@pytest.mark.parametrize("world", SEEDS, indirect=True)
def test_every_sample_is_seen_once_an_epoch_while_peers_leave_and_come(world: World) -> None:
    num_epochs = 5
    founders = start(world, num_epochs=num_epochs)
    for index in world.random.sample(range(founders), world.random.randint(0, founders - 1)):
        world.at(world.random.uniform(5, 100), partial(leave, world, index))
    arguments = {"step_s": 40 * founders / world.num_samples, "num_epochs": num_epochs, "founders": founders}
    for number in range(world.random.randint(0, 3)):
        world.at(world.random.uniform(5, 100), partial(world.start, founders + number, **arguments))
    world.run()
    seen = Counter(sample for peer in world.peers for _, sample in peer.seen)
    assert seen == dict.fromkeys(range(world.num_samples), num_epochs)


@pytest.mark.parametrize("world", SEEDS, indirect=True)
def test_of_a_peer_that_is_killed_only_its_last_seconds_are_seen_again(world: World) -> None:
    num_epochs, again = 5, 0
    founders = start(world, num_epochs=num_epochs)

    def kill(index: int) -> None:
        nonlocal again
        peer = next(peer for peer in world.peers if peer.index == index)
        peer.is_killed = True
        heard_s = 2 * shares._EVERY_S + world.lag_s + 2 * peer.step_s  # one telling may fail
        again += sum(at >= world.now - heard_s for at, _ in peer.seen)

    most = min(founders - 1, max(1, founders - 2))  # who sees nobody where several were takes itself for cut off
    for index in world.random.sample(range(founders), world.random.randint(0, most)):
        world.at(world.random.uniform(5, 60), partial(kill, index))
    world.run()
    seen = Counter(sample for peer in world.peers for _, sample in peer.seen)
    assert all(seen[sample] >= num_epochs for sample in range(world.num_samples))
    assert seen.total() - num_epochs * world.num_samples <= again


def alone(num_samples: int, *, seed: int = 0, shuffle: bool = True) -> PeerSampler:
    own = Member(peer_id="0", peer_index=0)
    deck = Deck(num_samples, founders=1, seed=seed, shuffle=shuffle)
    return PeerSampler(deck, Shares(lambda note: done(View((replace(own, note=note),))), own=0, present=[0]))


@pytest.mark.parametrize("num_samples", [1, 7, 5000, 9001])
def test_alone_a_peer_sees_everything_once_an_epoch_in_another_order_each_time(num_samples: int) -> None:
    sampler = alone(num_samples)
    assert len(sampler) == num_samples
    epochs = [list(sampler) for _ in range(3)]
    assert all(sorted(epoch) == list(range(num_samples)) for epoch in epochs)
    assert num_samples == 1 or epochs[0] != epochs[1]
    assert list(alone(num_samples, shuffle=False)) == list(range(num_samples))
    assert list(alone(num_samples, seed=1)) != epochs[0] or num_samples == 1


def test_founders_have_equal_parts_and_no_block_changes_hands_but_that_of_a_peer_that_came_or_went() -> None:
    deck = Deck(4096, founders=4, seed=0)
    for epoch in range(3):
        four = deck.owners(epoch, [0, 1, 2, 3])
        assert [(four == index).sum() for index in range(4)] == [1024] * 4
        three, five = deck.owners(epoch, [0, 1, 3]), deck.owners(epoch, [0, 1, 2, 3, 4])
        assert ((three == four) | (four == 2)).all()
        assert ((five == four) | (five == 4)).all()
        assert [abs((three == index).sum() - 4096 / 3) < 100 for index in (0, 1, 3)] == [True] * 3
        assert [abs((five == index).sum() - 4096 / 5) < 100 for index in range(5)] == [True] * 5


@pytest.mark.parametrize("num_samples", [50, 10_000])  # of blocks of one sample, and of several
@pytest.mark.parametrize("cut", [0, 1, 31, 49, 50, 75])
def test_a_saved_position_goes_on_with_the_next_sample(num_samples: int, cut: int) -> None:
    def taken(sampler: PeerSampler, num: int) -> list[int]:
        endless = (index for _ in iter(int, 1) for index in sampler)
        return list(islice(endless, num))

    straight, first, second = alone(num_samples), alone(num_samples), alone(num_samples)
    everything = taken(straight, 130)
    before = taken(first, cut)
    state = json.loads(json.dumps(first.state_dict()))
    second.load_state_dict(state)
    assert before + taken(second, 130 - cut) == everything
    ahead = alone(num_samples)
    assert taken(ahead, cut + 20)[:cut] == before
    third = alone(num_samples)
    third.load_state_dict(ahead.state_dict(seen=cut))
    assert before + taken(third, 130 - cut) == everything


def test_what_a_saved_state_does_not_fit() -> None:
    sampler = alone(10)
    with pytest.raises(ValueError, match="seen=3"):
        sampler.state_dict(seen=3)
    with pytest.raises(UserError, match=r"num_samples=10.*num_samples=11.*the same data"):
        alone(11).load_state_dict(sampler.state_dict())


@pytest.mark.parametrize(
    "damage",
    [
        {"deck": None},
        {"begun": []},
        {"begun": {"0": "xyz"}},
        {"first": -5},
        {"members": "zz"},
        {"offsets": [[1]]},
        {"offsets": [["a", 1, 2]]},
        {"offsets": [[0, 4, 99]]},
        {"offsets": [[0, 11, 0]]},
        {"offsets": [[-1, 0, 0]]},
    ],
)
def test_a_damaged_state_is_refused(damage: dict[str, Any]) -> None:
    sampler = alone(10)
    for state in ({**sampler.state_dict(), **damage}, {}, None):
        with pytest.raises(UserError, match="the saved sampler is damaged"):
            sampler.load_state_dict(state)  # type: ignore[arg-type]


@pytest.mark.parametrize("epoch", [-1, "1", 0.5])
def test_a_number_that_is_no_epoch_is_refused(epoch: Any) -> None:
    with pytest.raises(UserError, match="give the number of an epoch"):
        alone(10).set_epoch(epoch)


def test_peers_with_data_of_other_sizes_are_told() -> None:
    own, note = Member(peer_id="0", peer_index=0), Dealing(Deck(60, founders=2, seed=0), own=1).note()
    other = Member(peer_id="1", peer_index=1, note=packed([note], most_bytes=MOST_NOTE_BYTES))
    shared = Shares(lambda told: done(View((replace(own, note=told), other))), own=0, present=[0, 1])
    sampler = PeerSampler(Deck(100, founders=2, seed=0), shared)
    with pytest.raises(UserError, match=r"peer-01 samples .*num_samples=60.*num_samples=100.*the same data"):
        list(sampler)


def test_where_all_go_on_from_saved_positions_each_waits_until_it_has_heard_of_the_others() -> None:
    """What another had begun before the interruption, nobody but that one has read."""
    own = Member(peer_id="0", peer_index=0)
    before = Dealing(Deck(100, founders=2, seed=0), own=1, members=[0, 1])
    for number in range(0, 100, 3):
        before.begin((0, number))
    views = [
        Member(peer_id="1", peer_index=1, note=note)
        for note in (b"", packed([before.note()], most_bytes=MOST_NOTE_BYTES))
    ]

    def tell(told: bytes) -> Future[View]:
        return done(View((replace(own, note=told), views.pop(0) if len(views) > 1 else views[0])))

    sampler = PeerSampler(before.deck, Shares(tell, own=0, present=[0, 1], goes_on=True))
    sampler.set_epoch(0)
    begun = {sample for number in range(0, 100, 3) for sample in before.samples((0, number)).tolist()}
    assert not begun & set(sampler)
    assert len(views) == 1


def test_a_peer_that_has_left_is_dealt_nothing() -> None:
    own = Member(peer_id="0", peer_index=0)
    shared = Shares(lambda note: done(View((replace(own, note=note),))), own=0, present=[0])
    sampler = PeerSampler(Deck(10, founders=1, seed=0), shared)
    shared.tell_last()
    with pytest.raises(UserError, match="this peer has left"):
        list(sampler)


def test_an_epoch_that_is_left_in_the_middle_goes_on_and_epochs_begin_where_the_others_are() -> None:
    sampler = alone(10)
    first = [index for _, index in zip(range(4), sampler, strict=False)]
    assert sampler.epoch == 0
    assert sorted([*first, *sampler]) == list(range(10))
    assert list(sampler.epochs(1)) == []
    assert [(epoch, len(list(sampler))) for epoch in sampler.epochs(3)] == [(1, 10), (2, 10)]
    with pytest.raises(UserError, match="as the sampler is iterated"):
        list(alone(10).epochs(2))


def test_an_epoch_can_be_set_as_with_a_distributed_sampler() -> None:
    sampler, other = alone(10), alone(10)
    sampler.set_epoch(0)
    assert list(sampler) == list(other)
    sampler.set_epoch(0)
    assert list(sampler) == []  # seen already


def test_a_data_loader_takes_it() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(10.0))
    loader = DataLoader(data, sampler=alone(10), batch_size=4)
    assert len(loader) == 3
    assert sorted(torch.cat([batch for (batch,) in loader]).tolist()) == list(range(10))


class Numbers(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(20))


def test_a_stream_is_dealt_to_peers_and_to_the_workers_of_their_loaders() -> None:
    streams = [PeerStream(Numbers(), own=index, members=lambda: (0, 1, 4)) for index in (0, 1, 4)]
    assert [list(stream) for stream in streams] == [list(range(start, 20, 3)) for start in range(3)]
    loaded = [DataLoader(stream, batch_size=None, num_workers=2) for stream in streams]
    assert sorted(int(item) for loader in loaded for item in loader) == list(range(20))
