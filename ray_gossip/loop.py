"""A peer in a training loop that is not ours: join, `step()` after every optimizer step, leave. With or without Ray.

The loop keeps its model, data, optimizer and device. What it adds is an engine, the same as under `ray-gossip train`:
rounds run in another process while local steps go on, and each changes the model's parameters in place.
"""

from __future__ import annotations

import atexit
import os
import secrets
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from ray_gossip import models
from ray_gossip.addresses import check_multiaddr
from ray_gossip.causes import NO_OTHERS, lacking
from ray_gossip.config import Config, read
from ray_gossip.errors import UserError
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.engine import GossipEngine
from ray_gossip.gossip.protocols import FinalResult, StateShape
from ray_gossip.gossip.seat import Listen, Seat
from ray_gossip.records import Notice, Outcome, RoundReport
from ray_gossip.resources import machine_id
from ray_gossip.sidecar.network import Network
from ray_gossip.telemetry import Observer, peers_named
from ray_gossip.training.averaged import ModelState

_LONE_ROUNDS = 5
_HOW_TO_MEET = "give all but the first one initial_peers, the address that it prints"


def join(
    model: nn.Module,
    *,
    initial_peers: Sequence[str] = (),
    founders: int = 1,
    config: Config | Mapping[str, Any] | Path | str | None = None,
    host_maddrs: Sequence[str] = Listen.host_maddrs,
    announce_maddrs: Sequence[str] = (),
    identity_path: Path | None = None,
) -> LoopPeer:
    """Found a swarm or join one, and say on standard error how others join this peer.

    In any thread, at any time, with the model on any device: the network side is a program of its own.

    Args:
        model: its parameters that train (float32) and the running statistics of its layers in training mode are
            averaged, see `ray_gossip/training/averaged.py`: freeze what is to be frozen before. A newcomer starts from
            the swarm's.
        initial_peers: multiaddrs of peers that are there already, under Ray or not, one is enough; none: found a swarm.
        founders: peers that begin together, this one included: waits for them, at most `swarm.start_s`. A peer that
            comes when the swarm runs waits for nobody. 1: begin at once.
        config: its sections `gossip`, `swarm` (only start_s and final_s) and `seed` count, and peers must have the
            same. A Config, a mapping such as {"gossip": {"steps": 10}}, or a YAML file.
        host_maddrs: where to listen, such as /ip4/0.0.0.0/tcp/4011 for peers on other machines. Default: a free port
            of 127.0.0.1.
        announce_maddrs: what others are told instead, behind a NAT or in a container.
        identity_path: file with the key of its peer id, made if missing: its address stays the same.

    Raises:
        UserError: the model, the config or an address is none that will do.
        SwarmError: it cannot listen, or finds no swarm, or one that trains another model.
    """
    settings = read(config)
    _check(model, settings)
    if founders < 1:
        raise UserError(f"founders={founders}: it counts this peer, so give 1 or more")
    averaged = ModelState(model)
    for option, addresses in (
        ("host_maddrs", host_maddrs),
        ("announce_maddrs", announce_maddrs),
        ("initial_peers", initial_peers),
    ):
        if isinstance(addresses, str):
            raise UserError(f"{option}={addresses}: give a list of addresses, {option}=[...]")
        for address in addresses:
            check_multiaddr(option, address, names_peer=option == "initial_peers")
    listen = Listen(tuple(host_maddrs), tuple(announce_maddrs), identity_path)
    network = Network(
        settings,
        listen=listen,
        initial_peers=initial_peers,
        place=None if initial_peers else (_founded(settings), 0),
        shared=("engine", "seed", "gossip."),  # data, model and steps are each loop's own
    )
    try:
        network.open(StateShape.of(averaged), node=machine_id())
        peer = LoopPeer(averaged, GossipEngine(settings, network, network.seat), network.seat, settings)
    except BaseException:
        network.end()
        raise
    try:
        waits = founders > 1 and not initial_peers
        awaited = f"waits for {founders - 1} more, at most swarm.start_s={settings.swarm.start_s:g} s; "
        how = f"others join with its address as initial_peers: {' '.join(peer.multiaddrs)}"
        who = f"this is peer {peer.peer_index}"
        print(f"ray_gossip: {who}; {awaited if waits else ''}{how}", file=sys.stderr, flush=True)
        if initial_peers:
            peer.local_step = peer._engine.enter(founders=founders)
        else:
            peer._engine.join(founders=founders)
        peer._tell_of_others()
    except BaseException:
        peer.leave(agree=False)
        raise
    return peer


class LoopPeer:
    """This process as a member of a swarm. Made by `join`; as a context manager, it leaves in the end."""

    def __init__(self, averaged: ModelState, engine: GossipEngine, seat: Seat, config: Config) -> None:
        self._engine, self.multiaddrs = engine, seat.multiaddrs  # where others can dial this peer
        self._observer = Observer(config, peers=[engine.peer_index])
        self.peer_index = engine.peer_index
        self._process = os.getpid()  # a child that is forked from it inherits this object, and is no peer
        self._has_left = self._is_told_left = False
        self.local_step = 0  # optimizer steps so far; a peer that joins a running swarm begins where the others are
        self.rounds: Counter[Outcome] = Counter()  # that have ended, by outcome
        self._has_met = self._is_told_alone = False  # another member; that there has been none
        self._is_with_others = False
        self._present: tuple[int, ...] = ()  # peer indices, as they were told
        self._state = _State(averaged)
        engine.attach(self._state)
        atexit.register(self.leave, agree=False)  # a loop that fails: else others wait for this peer now and then

    def step(self, *, samples: int = 1) -> list[RoundReport]:
        """Tell the swarm that an optimizer step is done; call it after each.

        Mostly it returns at once. When a round is due, it copies the parameters out; when one has ended, it adds what
        came of it; when one is due while the one before is still in flight, it waits for that.

        Args:
            samples: in this step's batch; only `gossip.weight_by_samples` asks for it.

        Returns:
            The rounds that have ended. Parameters have changed where `outcome` is "averaged".

        Raises:
            SwarmError: the network side of this peer died again and again.
            UserError: another process has joined, from which this one was forked.
        """
        if os.getpid() != self._process:
            raise UserError(f"process {self._process} has joined, not this one, which was forked from it: join here")
        if self._has_left:
            if not self._is_told_left:
                self._is_told_left = True
                self._engine.notices.append("it trains on after leave(): nobody averages with it any more")
                self._tell_notices()
            return []
        self.local_step += 1
        self._state.samples += samples
        return self._told(self._engine.after_step(self.local_step))

    def leave(self, *, agree: bool = True) -> Outcome | None:
        """End this peer's part; the model stays as it is then. Once it has left, it does nothing.

        Args:
            agree: first average with all peers that come to the same end, so that all hold the same model; waits for
                them at most `swarm.final_s`. False: leave at once, while others go on.

        Returns:
            "averaged": all that came within `swarm.final_s` of the first of them agree; those that did not come are
            named on standard error. "alone" when nobody else came; None where that was not asked.
        """
        if self._has_left or os.getpid() != self._process:
            return None
        self._has_left = True
        atexit.unregister(self.leave)
        outcome: Outcome | None = None
        try:
            if agree:
                final = self._engine.finish(self.local_step)
                self._told(final.reports)
                outcome = final.outcome
                self._engine.notices += self._wrong_with(final)
                self._tell_notices()
                if outcome == "averaged":
                    self._engine.say_goodbye()
        finally:
            self._engine.shutdown()
        return outcome

    def __enter__(self) -> LoopPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave(agree=error is None)

    def _wrong_with(self, final: FinalResult) -> list[str]:
        """What is to be said of the end; mostly nothing."""
        silent = [lacking(final.silent)] if final.silent else []
        if final.outcome == "averaged":
            return [*([f"the final average lacks some of the swarm: {final.cause}"] if final.cause else []), *silent]
        if not (self._has_met or final.silent or final.cause != NO_OTHERS):
            return [f"no other peer was ever here, so that nothing was averaged; {_HOW_TO_MEET}"]
        cause = f" ({final.cause})" if final.cause else ""
        return [
            f"no agreement in the end: the final round was {final.outcome}{cause}; the model is this peer's own",
            *silent,
        ]

    def _told(self, reports: Sequence[RoundReport]) -> list[RoundReport]:
        """Without the sketches, which are for a driver: a list of reports would keep 16 KB of each."""
        self.rounds.update(report.outcome for report in reports)
        for report in reports:
            self._engine.notices += [each.text for each in self._observer.see(report) if isinstance(each, Notice)]
            is_with_others = report.outcome != "alone" or report.cause != NO_OTHERS
            if self._is_with_others and not is_with_others:
                self._engine.notices.append("no other peer is in the swarm any more: this one trains on alone")
            self._is_with_others = is_with_others
            self._has_met |= is_with_others
        if not self._has_met and not self._is_told_alone and self.rounds.total() >= _LONE_ROUNDS:
            self._is_told_alone = True
            self._engine.notices.append(f"{_LONE_ROUNDS} rounds, and no other peer is here yet; {_HOW_TO_MEET}")
        self._tell_of_others()
        return [replace(report, sketch_before=(), sketch_after=()) for report in reports]

    def _tell_of_others(self) -> None:
        """Who has come, and who is gone; then what else there is to tell."""
        if (roster := self._engine.roster) is not None and roster.present != self._present:
            before, now = ({*present} - {self.peer_index} for present in (self._present, roster.present))
            for peers, what in ((now - before, "here"), (before - now, "gone")):
                if peers and now:  # that all are gone is said elsewhere
                    self._engine.notices.append(f"{peers_named(peers)} {'is' if len(peers) == 1 else 'are'} {what}")
            self._present = roster.present
        self._tell_notices()

    def _tell_notices(self) -> None:
        while self._engine.notices:
            print(f"ray_gossip: {self._engine.notices.pop(0)}", file=sys.stderr, flush=True)


class _State:
    """What the engine averages."""

    optimizer: Any = None  # of the loop's own; the engine has no need of it

    def __init__(self, state: ModelState) -> None:
        self._state = state
        self.samples = 0

    def read_state(self, out: Tensor) -> None:
        self._state.read(out)

    def add_to_state(self, delta: Tensor) -> None:
        self._state.add(delta)

    def write_state(self, flat: Tensor) -> None:
        self._state.write(flat)

    def rest(self) -> dict[str, Tensor]:
        return self._state.rest()

    def take_rest(self, rest: Mapping[str, Tensor]) -> list[str]:
        return self._state.take_rest(rest)

    def drifting(self) -> list[str]:
        return self._state.drifting()

    def digest(self) -> str:
        return self._state.digest()


def _founded(config: Config) -> Charter:
    """What a swarm of loops agrees on that begins with this one."""
    return replace(Charter.of(config, run_id=f"loop-{secrets.token_hex(4)}", has_driver=False), num_peers=1)


def _check(model: nn.Module, config: Config) -> None:
    if config.engine != "gossip" or config.gossip.average_momentum:
        key = "gossip.average_momentum" if config.engine == "gossip" else "engine=hivemind"
        raise UserError(f"{key} needs the optimizer, which a loop of your own keeps to itself: leave it out")
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is {type(model).__name__}, not a torch.nn.Module: give the model itself")
    models.check(model, called="the model")
