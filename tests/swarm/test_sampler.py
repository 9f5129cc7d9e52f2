"""`peer.sampler` in real loops: who sees what while peers come, leave and are killed."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ray_gossip
from ray_gossip.testing import RemotePeer

NUM_SAMPLES, NUM_EPOCHS, STEP_S = 200, 4, 0.1  # longer than it takes until a dead peer counts no more
DEADLINE_S = 120.0
TOLD_S = 6.0  # by then others have heard of what a peer has begun, on busy cores too


class Loop:
    """A process that trains a sample at a time, and notes which and when."""

    def __init__(self, initial_peers: Sequence[str], founders: int, log: Path) -> None:
        model = nn.Linear(4, 1)
        config = {"gossip": {"steps": 20}, "swarm": {"start_s": 30, "final_s": 20}}
        with contextlib.redirect_stderr(io.StringIO()):
            self.peer = ray_gossip.join(model, initial_peers=initial_peers, founders=founders, config=config)
        self.num_seen, self._log = 0, log.open("w", buffering=1)  # what it was up to is there when it is killed
        self.is_done = self.is_to_leave = False
        threading.Thread(target=self._train, daemon=True).start()

    def _train(self) -> None:
        dataset = TensorDataset(torch.arange(NUM_SAMPLES))
        sampler = self.peer.sampler(dataset)
        loader = DataLoader(dataset, sampler=sampler, batch_size=None)
        for _ in sampler.epochs(NUM_EPOCHS):
            for (sample,) in loader:
                self._log.write(f"{time.monotonic()} {sample}\n")
                self.num_seen += 1
                time.sleep(STEP_S)
                self.peer.step()
                if self.is_to_leave:
                    return self._end()
        self._end()

    def _end(self) -> None:
        self.peer.leave(agree=False)
        self.is_done = True


Start = Callable[..., RemotePeer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    numbers = count()
    with ExitStack() as stack:

        def start(initial_peers: Sequence[str] = (), founders: int = 1) -> RemotePeer:
            loop = RemotePeer(Loop, initial_peers, founders, tmp_path / f"{next(numbers)}.log")
            stack.callback(loop.close)
            return loop

        yield start


def multiaddrs(loop: Loop) -> list[str]:
    return list(loop.peer.multiaddrs)


def leave(loop: Loop) -> None:
    loop.is_to_leave = True


def ends(loop: Loop) -> None:
    """Wait until it has."""
    deadline = time.monotonic() + DEADLINE_S
    while not loop.is_done:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def sees(loop: Loop, number: int) -> None:
    """Wait until it has seen so many samples."""
    deadline = time.monotonic() + DEADLINE_S
    while loop.num_seen < number:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def seen(folder: Path, number: int) -> list[tuple[float, int]]:
    """By the loop that was started as this one: when, and which sample."""
    lines = [line.split() for line in (folder / f"{number}.log").read_text().splitlines()]
    return [(float(when), int(sample)) for when, sample in lines]


def founded(start: Start, number: int) -> list[RemotePeer]:
    """So many loops that have begun together."""
    first = start(founders=1)
    first.receive()
    others = [start(first.call(multiaddrs)) for _ in range(number - 1)]
    for other in others:
        other.receive()
    return [first, *others]


def test_every_sample_is_seen_once_an_epoch_while_peers_come_and_leave(start: Start, tmp_path: Path) -> None:
    loops = founded(start, 3)
    for loop in loops:
        loop.call(sees, 20)
    loops[1].call(leave)
    loops[1].call(ends)
    late = start(loops[0].call(multiaddrs))
    late.receive()
    late.call(sees, 20)
    for loop in (loops[0], loops[2], late):
        loop.call(ends)
    counts = Counter(sample for number in range(4) for _, sample in seen(tmp_path, number))
    assert counts == dict.fromkeys(range(NUM_SAMPLES), NUM_EPOCHS)


def test_of_a_killed_peer_others_see_what_it_had_not_begun_and_the_last_seconds_again(
    start: Start, tmp_path: Path
) -> None:
    loops = founded(start, 3)
    for loop in loops:
        loop.call(sees, 20)
    victim = loops.pop()
    victim.process.kill()
    victim.process.join()
    killed = time.monotonic()
    for loop in loops:
        loop.call(ends)
    counts = Counter(sample for number in range(3) for _, sample in seen(tmp_path, number))
    assert sorted(counts) == list(range(NUM_SAMPLES))
    assert min(counts.values()) >= NUM_EPOCHS
    last_seconds = [sample for at, sample in seen(tmp_path, 2) if at > killed - TOLD_S]
    assert counts.total() - NUM_EPOCHS * NUM_SAMPLES <= len(last_seconds)
