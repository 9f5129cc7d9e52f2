"""The training process's end of its sidecar. Works in any thread, after CUDA, under every start method: it never forks
this process, and imports no hivemind."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

from ray_gossip.config import Config
from ray_gossip.errors import SwarmError
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.commands import Commands
from ray_gossip.gossip.handover import Handover
from ray_gossip.gossip.members import Member
from ray_gossip.gossip.memory import Memory
from ray_gossip.gossip.protocols import StateShape
from ray_gossip.gossip.seat import Listen, Seat
from ray_gossip.gossip.signals import Pulse, Signals
from ray_gossip.sidecar.nursery import READY, TAKEN, address
from ray_gossip.sidecar.parcel import opened, packed
from ray_gossip.sidecar.wire import Wire, own_user

_DIED = "the network process of this peer died"
_HUNG_S = 30.0
_START_S = 60.0  # for imports, on busy cores
_END_S = 5.0


class Sidecar(Commands):
    """One sidecar, from its start to its end."""

    def __init__(self) -> None:
        self._numbers, self._futures = itertools.count(), dict[int, Future[Any]]()
        self._lock = threading.Lock()  # of what follows
        self._why_dead = ""
        self._hand_over: Callable[[], Handover] | None = None
        self._pulse: Pulse | None = None
        self._wire, self.pid = _connect()
        threading.Thread(target=self._receive, name="sidecar", daemon=True).start()

    def take_seat(
        self,
        config: Config,
        *,
        listen: Listen,
        initial_peers: Sequence[str],
        place: tuple[Charter, int] | None = None,
        shared: tuple[str, ...] = ("",),
    ) -> Seat:
        """Join the DHT, or found one.

        Args:
            place: charter and peer index of a founder; None: what the swarm has, and a free index.
            shared: beginnings of the keys in which this config must be as the swarm's.

        Raises:
            ConfigError: it does not fit into the swarm.
            SwarmError: it cannot listen there, or finds no swarm.
        """
        start_s = config.swarm.start_s
        answer = self._call(
            "take_seat",
            config=config,
            listen=listen.absolute(),
            initial_peers=tuple(initial_peers),
            place=place,
            shared=shared,
        )
        seat: Seat = answer.result(timeout=3 * start_s + _START_S)
        return seat

    def open(self, config: Config, seat: Seat, *, shape: StateShape, node: str = "", data: str = "") -> None:
        """Start the averager.

        Args:
            shape: of the state that is averaged.
            node: peers with the same node share a machine.
            data: a digest of the swarm's samples, as this peer has them; empty: it has its own, and the swarm's are
                dealt to the others.
        """
        memory = Memory(shape.size)
        self.snapshot, self.delta, self.signals = memory.snapshot, memory.delta, Signals(memory.signals)
        self.signals.begin()
        own = Member(peer_id=seat.peer_id, peer_index=seat.peer_index, node=node, has_own_data=not data, data=data)
        answer = self._send(
            "open",
            memory.file,
            config=config,
            shape=shape,
            charter=seat.charter,
            own=own,
        )
        memory.close_file()
        answer.result(timeout=config.swarm.start_s + _START_S)
        self._pulse = Pulse()

    def hand_over_by(self, hand_over: Callable[[], Handover]) -> None:
        """What gives this peer's model to a newcomer; called in a thread of its own."""
        self._hand_over = hand_over

    def check(self) -> None:
        if self._why_dead:
            raise SwarmError(self._why_dead)
        if self._pulse is not None and self._pulse.feel(self.signals.ticked_ns) > _HUNG_S:
            raise SwarmError(f"the network process of this peer has been hung for {_HUNG_S:g} s")

    def end(self) -> None:
        with contextlib.suppress(FutureTimeoutError, TimeoutError, SwarmError):
            self._call("end").result(timeout=_END_S)
        self._wire.close()

    def _call(self, method: str, **arguments: Any) -> Future[Any]:
        return self._send(method, None, **arguments)

    def _send(self, method: str, file: int | None, **arguments: Any) -> Future[Any]:
        number, future = next(self._numbers), Future[Any]()
        with self._lock:
            if self._why_dead:
                raise SwarmError(self._why_dead)
            self._futures[number] = future
        try:
            self._wire.send((number, method, arguments), file=file)
        except OSError:
            raise SwarmError(self._why_dead or _DIED) from None
        return future

    def _receive(self) -> None:
        why = _DIED
        try:
            while True:
                (number, value, error), file = self._wire.receive()
                if number == "asked":
                    threading.Thread(target=self._give_model, args=[value], daemon=True).start()
                elif number == -1:
                    why = str(error)
                else:
                    with self._lock:
                        future = self._futures.pop(number)
                    if error is not None:
                        future.set_exception(error)
                    else:
                        future.set_result(value if file is None else opened(file))
        except EOFError:
            pass
        finally:  # an answer that cannot be read ends this thread too, and then nobody may wait for one
            with self._lock:
                self._why_dead = why
                left, self._futures = self._futures, {}
            for future in left.values():
                future.set_exception(SwarmError(why))

    def _give_model(self, number: int) -> None:
        assert self._hand_over is not None
        with contextlib.suppress(OSError):  # it may end meanwhile
            try:
                file = packed(self._hand_over())
            except Exception as error:
                self._wire.send((number, "told", str(error)))
                raise
            try:
                self._wire.send((number, "told", ""), file=file)
            finally:
                os.close(file)


def _connect() -> tuple[Wire, int]:
    """A new sidecar."""
    name, why = address(), "its nursery did not start"
    for _ in range(5):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(name)
        except OSError:
            connection.close()
            why = _start_nursery(name)
            continue
        wire = Wire(connection)
        if wire.other[1] != own_user():
            raise SwarmError("another user of this machine listens where the network processes of this one should")
        connection.settimeout(_START_S)
        try:
            wire.send("hello", file=2)
            (_, pid, _), _ = wire.receive()
        except (EOFError, OSError):  # it ended just now, because nobody had needed it
            wire.close()
            continue
        connection.settimeout(None)
        return wire, pid
    raise SwarmError(f"the network process of this peer did not start: {why}")


def _start_nursery(name: str) -> str:
    """Returns why it did not start, if it did not."""
    reader, writer = os.pipe()
    package = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, *sys.path]), "CUDA_VISIBLE_DEVICES": ""}
    try:
        subprocess.run(
            [sys.executable, "-m", "ray_gossip.sidecar.nursery", name.replace("\0", "@"), str(writer)],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[writer],
            check=False,
        )
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            told = stream.read()
    except OSError as error:
        return str(error)
    return "" if told in (READY, TAKEN) else told.decode(errors="replace").strip()
