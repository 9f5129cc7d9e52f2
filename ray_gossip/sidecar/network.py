"""The network side of a peer, seen from its training process: a sidecar, and another one when it dies or is hung."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from ray_gossip.addresses import Ports
from ray_gossip.config import Config
from ray_gossip.errors import SwarmError
from ray_gossip.gossip.commands import Commands, Interrupted, interrupted
from ray_gossip.gossip.handover import Handover
from ray_gossip.gossip.members import Member, Neighbours, View
from ray_gossip.gossip.memory import Memory, num_kept
from ray_gossip.gossip.protocols import StateShape
from ray_gossip.gossip.round import RoundResult
from ray_gossip.gossip.seat import Listen, Place, Seat
from ray_gossip.gossip.signals import Pulse, Signals
from ray_gossip.records import RESTARTED
from ray_gossip.sidecar.client import Sidecar

_HUNG_S = 15.0  # a sidecar that has given no sign of life for so long is hung
_PAUSES_S = (0.0, 1.0, 2.0, 4.0, 8.0)  # before each try to start another
_FIRST_TRIES = 3  # to come in
_RESTART_S = 30.0  # for another one to take its seat; the first one has swarm.start_s
_TELL_S = 5.0  # after so long it is told that there is none yet
_DIALS_S = 8.0  # for that of them that dials the others: one that is cut off answers never
_BUDGET, _BUDGET_S = 10, 300.0  # restarts in so many seconds; more, and something is wrong that no restart mends
_LOOK_S = 5.0  # how often to ask who the others are
_DIAL_S = 2.0  # how often to dial them, where nobody is connected


class Network(Commands):
    """Takes a seat in a swarm, and keeps it.

    Args:
        initial_peers: multiaddrs to dial; empty: found a swarm.
        place: as a driver gives it, or a founder takes it; None: what the swarm has, and a free index.
        shared: beginnings of the keys in which this config must be as the swarm's.

    Raises:
        ConfigError: the config does not fit into the swarm.
        SwarmError: it cannot listen there, or finds no swarm.
    """

    def __init__(
        self,
        config: Config,
        *,
        listen: Listen,
        initial_peers: Sequence[str],
        place: Place | None = None,
        shared: tuple[str, ...] = ("",),
    ) -> None:
        self._config, self._listen, self._others = config, listen.absolute(), tuple(initial_peers)
        self._identity, self._ports = os.memfd_create("ray_gossip identity"), Ports(config.swarm.port_range)
        self._given_up, self._refused = "", ""  # the second: who was, at the doors of this peer or of others
        self._is_restarting, self._is_ending = threading.Event(), False
        self._taking_over = threading.Lock()  # of `_sidecar` and `_is_ending`
        self._restarts: deque[float] = deque(maxlen=_BUDGET)
        self._hand_over: Callable[[], Handover] | None = None
        self._began_as: str | None = None  # once declared
        self._shares, self._kept_in = False, 0  # the second: after the last round whose end this process has heard of
        self._members: tuple[Member, ...] = ()  # the others, as the sidecar saw them lately
        self._asked_at = time.monotonic()  # for what follows
        self._asked: Future[Neighbours] | None = None
        self._is_connected = True
        self.first_round = -1
        self.notices: list[str] = []
        self._sidecar, self.seat = self._first(place=place, shared=shared)

    @property
    def pid(self) -> int:
        """Of the present sidecar."""
        return self._sidecar.pid

    def open(self, shape: StateShape, *, node: str = "", data: str = "") -> None:
        """Start averaging states of this shape.

        Args:
            node: peers with the same node share a machine.
            data: a digest of the swarm's samples, as this peer has them; empty: it has its own, and the swarm's are
                dealt to the others.
        """
        self._memory = Memory(shape.size, num_kept=num_kept(self._config.gossip, shape.num_parameters))
        self._shape = shape
        self.snapshot, self.delta, self.kept = self._memory.snapshot, self._memory.delta, self._memory.kept[0]
        self.signals = Signals(self._memory.signals)
        self.signals.begin()
        _, index, incarnation = self.seat.place
        own = Member(peer_id=self.seat.peer_id, peer_index=index, incarnation=incarnation, node=node)
        self._own = replace(own, has_own_data=not data, data=data)
        self._pulse = Pulse()
        try:
            self._open(self._sidecar)
        except Interrupted as died:
            self._start_another(str(died))
            self.check()

    def hand_over_by(self, hand_over: Callable[[], Handover]) -> None:
        self._hand_over = self._sidecar.hand_over = hand_over

    def check(self) -> None:
        if self._given_up:
            raise SwarmError(self._given_up)
        if self._is_restarting.is_set() or self._is_ending:
            return
        if why := self._sidecar.why_dead:
            self._replace(why)
        elif self._pulse.feel(self.signals.ticked_ns) > _HUNG_S:
            self._replace(f"the network process of this peer has been hung for {_HUNG_S:g} s")
        else:
            self._look_for_others()

    def declare(self, from_round: int, *, began_as: str = "", **options: Any) -> Future[View]:
        self._began_as = began_as
        return self._noted(super().declare(from_round, began_as=began_as, **options))

    def read_members(self) -> Future[View]:
        return self._noted(super().read_members())

    def tell_members(self, note: bytes) -> Future[View]:
        self._own = replace(self._own, note=note)
        return self._noted(super().tell_members(note))

    def _noted(self, future: Future[View]) -> Future[View]:
        future.add_done_callback(self._note_members)
        return future

    def _note_members(self, future: Future[View]) -> None:
        if future.exception() is None:
            own = self.seat.peer_id
            self._members = tuple(member for member in future.result().present if member.peer_id != own)

    def gossip_round(self, round: int, **arguments: Any) -> Future[RoundResult]:
        future = super().gossip_round(round, **arguments)
        future.add_done_callback(self._note_kept)
        return future

    def _note_kept(self, future: Future[RoundResult]) -> None:
        if future.exception() is None:
            self._kept_in = future.result().kept_in
            self.kept = self._memory.kept[self._kept_in]

    def share_state(self) -> Future[None]:
        self._shares = True
        return super().share_state()

    def wait_until_back(self, within_s: float) -> None:
        """Return when a sidecar that has died is replaced, or it takes longer."""
        deadline = time.monotonic() + within_s
        self.check()
        while self._is_restarting.is_set() and time.monotonic() < deadline:
            time.sleep(0.05)

    def end(self) -> None:
        with self._taking_over:
            self._is_ending = True
        self._sidecar.end()
        self._ports.release()
        with contextlib.suppress(OSError):
            os.close(self._identity)

    def _call(self, method: str, **arguments: Any) -> Future[Any]:
        if self._is_restarting.is_set():
            return interrupted("the network process of this peer is being started again")
        return self._sidecar.call(method, **arguments)

    def _first(self, *, place: Place | None, shared: tuple[str, ...]) -> tuple[Sidecar, Seat]:
        """A sidecar that has a seat. Where one dies over it, or does not get one, others try, for `swarm.start_s`."""
        start_s = self._config.swarm.start_s
        deadline = time.monotonic() + start_s
        for pause_s in _PAUSES_S[:_FIRST_TRIES]:
            time.sleep(pause_s)
            sidecar = Sidecar()
            try:
                seat = self._take_seat(sidecar, self._others, place=place, shared=shared, start_s=start_s)
            except SwarmError as error:  # also when DHT or daemon die over it
                sidecar.kill()
                latest = error
                if time.monotonic() > deadline:
                    break
            except BaseException:
                sidecar.end()
                raise
            else:
                return sidecar, seat
        raise latest

    def _take_seat(self, sidecar: Sidecar, initial_peers: Sequence[str], *, start_s: float, **arguments: Any) -> Seat:
        seat: Seat = sidecar.ask(
            "take_seat",
            within_s=4 * start_s,
            file=self._identity,
            config=self._config,
            listen=self._listen.within(self._ports),
            initial_peers=initial_peers,
            start_s=start_s,
            **arguments,
        )
        return seat

    def _open(self, sidecar: Sidecar) -> None:
        sidecar.ask(
            "open",
            within_s=2 * self._config.swarm.start_s,
            file=self._memory.file,
            config=self._config,
            shape=self._shape,
            charter=self.seat.charter,
            own=self._own,
        )

    def _look_for_others(self) -> None:
        """Who and where they are, for the next sidecar: those that this peer came by may be gone by then. One that is
        connected to nobody dials those that this peer knows."""
        if self._asked is not None and self._asked.done():
            with contextlib.suppress(SwarmError):
                found = self._asked.result()
                self._is_connected, self._members = bool(found.addresses), found.members
                self._others = found.addresses or self._others
                if found.refused and not self._refused:  # told once: they may try a thousand times
                    self._refused = found.refused[0]
                    self.notices.append(f"{self._refused}; whoever else is refused is not told")
            self._asked = None
        every_s = 0.5 if not self._others else _LOOK_S if self._is_connected else _DIAL_S
        if self._asked is None and time.monotonic() - self._asked_at > every_s:
            self._asked_at = time.monotonic()
            self._asked = self._call("_neighbours", known=self._others)

    def _replace(self, why: str) -> None:
        now = time.monotonic()
        if len(self._restarts) == _BUDGET and now - self._restarts[0] < _BUDGET_S:
            self._given_up = f"{why}, for the {_BUDGET + 1}th time in {_BUDGET_S:g} s"
            raise SwarmError(self._given_up)
        self._restarts.append(now)
        self._is_restarting.set()
        threading.Thread(target=self._start_another, args=[why], name="sidecar restart", daemon=True).start()

    def _start_another(self, why: str) -> None:
        started, latest, is_told = time.monotonic(), why, False
        self._sidecar.kill()
        # The first dials the others. Where they are gone, or are being started again as well, the next stands alone and
        # goes on dialling them (`_look_for_others`).
        for attempt, pause_s in enumerate(_PAUSES_S):
            initial_peers, start_s = (self._others, _DIALS_S) if attempt == 0 and self._others else ((), _RESTART_S)
            if not is_told and time.monotonic() - started > _TELL_S:
                is_told = True
                self.notices.append(f"{why}; no other one could take its place so far: {latest}")
            time.sleep(pause_s)
            if self._is_ending:
                return
            sidecar: Sidecar | None = None
            try:
                sidecar = Sidecar()
                sidecar.hand_over = self._hand_over
                self._listen = self._listen.at_port_of(self.seat.multiaddrs)
                seat = self._take_seat(sidecar, initial_peers, place=self.seat.place, shared=(), start_s=start_s)
                self._own = replace(self._own, peer_id=seat.peer_id)
                self._open(sidecar)
                self._declare_again(sidecar)
            except Exception as error:  # whatever it is, it must not end this thread: the trainer would be told nothing
                latest = str(error) or type(error).__name__
                if sidecar is not None:
                    sidecar.kill()
                continue
            with self._taking_over:
                if self._is_ending:
                    sidecar.kill()
                    return
                self._sidecar = sidecar
            self.seat = replace(self.seat, peer_id=seat.peer_id, multiaddrs=seat.multiaddrs)
            self._pulse, self._is_connected = Pulse(), False
            self.notices.append(f"{why}; {RESTARTED} {time.monotonic() - started:.1f} s")
            self._is_restarting.clear()
            return
        self._given_up = f"{why}, and no other one could take its place" + (f": {latest}" if latest != why else "")
        self._is_restarting.clear()

    def _declare_again(self, sidecar: Sidecar) -> None:
        within_s = self._config.swarm.start_s
        if self._shares:
            sidecar.ask("_share_state", within_s=within_s)
        if self._began_as is None:
            return
        self.first_round = sidecar.ask(
            "_join_again",
            within_s=within_s,
            called=self.signals.called,
            began_as=self._began_as,
            kept_in=self._kept_in,
            before=self._members,
        )
