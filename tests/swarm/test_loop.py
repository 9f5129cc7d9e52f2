"""`join`, `step`, `leave`: real peers whose loop is the test's."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from torch import nn

import ray_gossip
from ray_gossip.causes import NO_OTHERS
from ray_gossip.testing import RemotePeer, processes_of

GOSSIP = {"steps": 1, "overlap": False, "matchmaking_s": 2}
SWARM = {"start_s": 30}
GONE_S = 5.0
EXPIRED_S = 60.0  # within which a dead peer counts no more, on busy cores too


class Loop:
    """A process with a loop of its own; its model is one row of weights."""

    def __init__(
        self,
        value: float,
        initial_peers: Sequence[str],
        founders: int,
        size: int,
        steps: int,
        identity_path: Path | None,
        final_s: float,
        freezes: bool,
    ) -> None:
        config = {"gossip": {**GOSSIP, "steps": steps}, "swarm": {**SWARM, "final_s": final_s}}
        self.model = nn.Linear(size, 1, bias=False)
        nn.init.constant_(self.model.weight, value)
        whole: nn.Module = self.model
        if freezes:
            body = nn.Linear(size, size, bias=False).requires_grad_(False)
            nn.init.constant_(body.weight, value)
            whole = nn.Sequential(body, self.model)
        # a shell that starts tests in the background has them ignore it
        self.handler = signal.default_int_handler
        signal.signal(signal.SIGINT, self.handler)
        with contextlib.redirect_stderr(io.StringIO()) as written:
            self.peer = ray_gossip.join(
                whole, initial_peers=initial_peers, founders=founders, config=config, identity_path=identity_path
            )
        _, *self.told = written.getvalue().splitlines()  # after its address

    def weights(self) -> list[float]:
        return self.model.weight.flatten().tolist()

    def set(self, value: float) -> None:
        nn.init.constant_(self.model.weight, value)

    def steps(self, number: int) -> list[tuple[str, int]]:
        """Local steps that change nothing; returns outcome and group size of the rounds that they brought about."""
        reports = [report for _ in range(number) for report in self.peer.step()]
        assert all(report.sketch_before == report.sketch_after == () for report in reports)
        return [(report.outcome, len(report.group)) for report in reports]

    def steps_in_background(self) -> None:
        self._going, self.causes = True, ["no round yet"]

        def run() -> None:
            while self._going:
                self.causes = [report.cause for report in self.peer.step()] or self.causes
                time.sleep(0.02)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def stop(self) -> None:
        self._going = False
        self._thread.join()

    def steps_and_tell(self, number: int) -> str:
        """What a person reads meanwhile."""
        with contextlib.redirect_stderr(io.StringIO()) as written:
            self.steps(number)
        return written.getvalue()

    def leave(self, agree: bool) -> str | None:
        return self.peer.leave(agree=agree)

    def leave_and_tell(self) -> tuple[str | None, str]:
        """What came of it, and what a person reads."""
        with contextlib.redirect_stderr(io.StringIO()) as written:
            return self.peer.leave(), written.getvalue()


Start = Callable[..., RemotePeer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process with a loop; all of them are ended."""
    with ExitStack() as stack:

        def start(
            value: float,
            initial_peers: Sequence[str] = (),
            founders: int = 1,
            size: int = 4,
            steps: int = 1,
            identity_path: Path | None = None,
            final_s: float = 20.0,
            freezes: bool = False,
        ) -> RemotePeer:
            peer = RemotePeer(Loop, value, initial_peers, founders, size, steps, identity_path, final_s, freezes)
            stack.callback(peer.close)
            return peer

        yield start


def multiaddrs(loop: Loop) -> list[str]:
    return list(loop.peer.multiaddrs)


def peer_index(loop: Loop) -> int:
    return loop.peer.peer_index


def wait_until_alone(loop: RemotePeer) -> None:
    """Until no process is left of its network side."""
    assert loop.process.pid is not None
    deadline = time.monotonic() + GONE_S
    while left := [process for process in processes_of(loop.process.pid) if process.pid != loop.process.pid]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def test_a_newcomer_starts_from_the_swarms_parameters_and_leaves_without_holding_up_anybody(start: Start) -> None:
    first = start(1.0)
    first.receive()
    assert first.call(Loop.steps, 2) == [("alone", 1)] * 2
    first.call(Loop.steps_in_background)
    newcomer = start(5.0, first.call(multiaddrs))
    newcomer.receive()
    assert newcomer.call(Loop.weights) == [1.0] * 4
    newcomer.call(Loop.set, 3.0)
    assert ("averaged", 2) in newcomer.call(Loop.steps, 5)
    first.call(Loop.stop)
    assert 1.0 < first.call(Loop.weights)[0] < 3.0
    assert newcomer.call(Loop.leave, False) is None
    wait_until_alone(newcomer)
    started = time.monotonic()
    assert first.call(Loop.steps, 2)[-1] == ("alone", 1)
    assert time.monotonic() - started < 5.0


def test_a_peer_that_joins_before_the_first_round_starts_from_the_founders_parameters_and_all_agree(
    start: Start,
) -> None:
    first = start(1.0)
    first.receive()
    second = start(5.0, first.call(multiaddrs), founders=2)
    second.receive()
    assert second.call(Loop.weights) == [1.0] * 4
    second.call(Loop.set, 2.0)
    for loop in (first, second):
        loop.send(Loop.leave, True)
    assert [loop.receive() for loop in (first, second)] == ["averaged"] * 2
    assert first.call(Loop.weights) == second.call(Loop.weights) == [1.5] * 4
    wait_until_alone(first)
    wait_until_alone(second)


def test_a_peer_that_agrees_with_some_of_the_swarm_only_names_those_missing(start: Start) -> None:
    first = start(1.0, final_s=2)
    first.receive()
    others = [start(1.0, first.call(multiaddrs), final_s=2) for _ in range(2)]
    for loop in others:
        loop.receive()
    others[1].call(Loop.steps_in_background)
    for loop in (first, others[0]):
        loop.send(Loop.leave_and_tell)
    missing = max(loop.call(peer_index) for loop in others[1:])
    for loop in (first, others[0]):
        outcome, told = loop.receive()
        assert outcome == "averaged"
        assert f"ray_gossip: the final average lacks some of the swarm: peer-{missing:02d} did not come" in told
    others[1].call(Loop.stop)


def test_a_peer_that_joins_between_two_rounds_starts_from_the_parameters_and_the_step_of_now(start: Start) -> None:
    first = start(1.0, steps=100_000)
    first.receive()
    first.call(Loop.steps_in_background)
    time.sleep(0.3)
    first.call(Loop.set, 4.0)  # no round has seen it
    newcomer = start(5.0, first.call(multiaddrs), steps=100_000)
    newcomer.receive()
    assert newcomer.call(Loop.weights) == [4.0] * 4
    assert newcomer.call(local_step) >= 5
    first.call(Loop.stop)


def test_a_peer_that_joins_takes_the_model_of_one_that_trains_not_of_one_that_stands_still(start: Start) -> None:
    first = start(1.0, steps=100_000)  # no round tells how far anybody is
    first.receive()
    first.call(Loop.steps_in_background)
    addresses = first.call(multiaddrs)
    still = start(5.0, addresses, steps=100_000)
    still.receive()
    first.call(Loop.set, 4.0)
    for _ in range(3):
        newcomer = start(5.0, addresses, steps=100_000)
        newcomer.receive()
        assert newcomer.call(Loop.weights) == [4.0] * 4
        assert newcomer.call(Loop.leave, False) is None
    first.call(Loop.stop)
    still.call(Loop.set, 7.0)  # now all stand still: an old model is better than none
    newcomer = start(5.0, addresses, steps=100_000)
    newcomer.receive()
    assert newcomer.call(Loop.weights) in ([1.0] * 4, [4.0] * 4)


def local_step(loop: Loop) -> int:
    return loop.peer.local_step


def test_a_peer_that_was_killed_comes_back_with_its_identity_as_the_same_peer_and_averages(
    start: Start, tmp_path: Path
) -> None:
    """Its old declaration still holds when the new one is made: that must not be taken for the later one."""
    first = start(1.0)
    first.receive()
    first.call(Loop.steps_in_background)
    addresses, identity = first.call(multiaddrs), tmp_path / "identity"
    indices = []
    for _ in range(2):
        comes = start(1.0, addresses, identity_path=identity)
        comes.receive()
        indices.append(comes.call(peer_index))
        assert ("averaged", 2) in comes.call(Loop.steps, 10)
        comes.process.kill()
    other = start(1.0, addresses)
    other.receive()
    assert indices == [1, 1]
    assert other.call(peer_index) == 2
    first.call(Loop.stop)


def test_a_peer_that_is_alone_says_so_and_leaves_at_once_and_only_once(start: Start) -> None:
    loop = start(1.0)
    loop.receive()
    assert loop.call(Loop.steps_and_tell, 20).count("5 rounds, and no other peer is here") == 1
    outcome, told = loop.call(Loop.leave_and_tell)
    assert outcome == "alone"
    assert "no other peer was ever here, so that nothing was averaged; give all but the first one initial_peers" in told
    assert loop.call(Loop.leave, True) is None
    assert loop.call(Loop.steps_and_tell, 3).count("it trains on after leave(): nobody averages with it any more") == 1
    wait_until_alone(loop)


def test_of_two_peers_that_lose_each_other_both_say_so_in_the_end(start: Start) -> None:
    first = start(1.0, final_s=2)
    first.receive()
    second = start(1.0, first.call(multiaddrs), final_s=2)
    second.receive()
    for loop in (first, second):
        loop.call(Loop.steps_in_background)
    wait_for_cause(first, "")  # of a round that has averaged
    second.process.kill()
    wait_for_cause(first, NO_OTHERS)  # its declaration has expired
    first.call(Loop.stop)
    outcome, told = first.call(Loop.leave_and_tell)
    assert outcome == "alone"
    assert "no agreement in the end: the final round was alone (no other member in the swarm)" in told
    assert "the final average lacks peer-01, lately there and gone without a goodbye" in told


def test_a_newcomer_is_told_which_of_its_frozen_parameters_were_others(start: Start) -> None:
    first = start(1.0, freezes=True)
    first.receive()
    first.call(Loop.steps, 1)
    same, other = (start(value, first.call(multiaddrs), freezes=True) for value in (1.0, 5.0))
    for newcomer in (same, other):
        newcomer.receive()
    assert any(re.fullmatch(r"ray_gossip: peers? 0(, \d)? (is|are) here", line) for line in same.call(told_at_start))
    assert same.call(mistakes_at_start) == []
    assert other.call(mistakes_at_start) == [
        "ray_gossip: frozen parameters were others here than in the swarm, and are the swarm's now: 0.weight"
    ]


def test_a_newcomer_to_a_swarm_that_has_trained_and_not_averaged_did_not_begin_with_another_model(start: Start) -> None:
    first = start(1.0, steps=100_000)
    first.receive()
    first.call(Loop.set, 4.0)
    first.call(Loop.steps_in_background)
    newcomer = start(1.0, first.call(multiaddrs), steps=100_000)
    newcomer.receive()
    first.call(Loop.stop)
    assert newcomer.call(Loop.weights) == [4.0] * 4
    assert newcomer.call(mistakes_at_start) == []


def wait_for_cause(loop: RemotePeer, cause: str) -> None:
    """Of its last round."""
    deadline = time.monotonic() + EXPIRED_S
    while loop.call(last_causes)[-1] != cause:
        assert time.monotonic() < deadline, loop.call(last_causes)
        time.sleep(0.1)


def last_causes(loop: Loop) -> list[str]:
    return loop.causes


def told_at_start(loop: Loop) -> list[str]:
    return loop.told


def mistakes_at_start(loop: Loop) -> list[str]:
    return [line for line in loop.told if not line.endswith(("is here", "are here"))]


def test_another_model_is_refused(start: Start) -> None:
    first = start(1.0)
    first.receive()
    with pytest.raises(AssertionError, match=r"SwarmError: the swarm averages 4 elements, this peer has 6") as refused:
        start(1.0, first.call(multiaddrs), size=6).receive()
    assert "RuntimeError" not in str(refused.value)


def test_another_schedule_is_refused(start: Start) -> None:
    first = start(1.0)
    first.receive()
    with pytest.raises(
        AssertionError, match=r"ConfigError: this peer has gossip\.steps=7, but the swarm .* give gossip\.s"
    ):
        start(1.0, first.call(multiaddrs), steps=7).receive()


def test_ctrl_c_still_ends_the_loop(start: Start) -> None:
    loop = start(1.0)
    loop.receive()
    assert loop.call(keeps_its_handler)


def keeps_its_handler(loop: Loop) -> bool:
    return signal.getsignal(signal.SIGINT) is loop.handler is signal.default_int_handler
