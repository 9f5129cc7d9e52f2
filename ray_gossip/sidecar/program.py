"""What a sidecar does: it takes a seat in the swarm, runs the averager, and answers its training process."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ray_gossip.config import Config
from ray_gossip.errors import SwarmError
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.handover import Handover
from ray_gossip.gossip.members import Member
from ray_gossip.gossip.memory import Memory, num_kept
from ray_gossip.gossip.protocols import StateShape
from ray_gossip.gossip.seat import Listen, Place, Seat
from ray_gossip.hive import claim_index, guard_forks, quiet_hivemind, read_charter, start_dht, stop_dht
from ray_gossip.hive.averager import GossipAverager
from ray_gossip.hive.mixer import check_codec
from ray_gossip.hive.process import NetworkProcesses, go_to_background, keep_files_in, renew_locks
from ray_gossip.hive.signed_records import make_identity
from ray_gossip.sidecar.parcel import opened
from ray_gossip.sidecar.wire import Wire

_LOOK_S = 0.5
_DYING_S = 0.2


def serve(wire: Wire, *, folder: str | None = None) -> None:
    """Be the sidecar of the training process at the other end, until one of the two ends. In a process of its own, on
    its main thread: hivemind forks, and the kernel ties the death of those to the thread.

    Args:
        folder: for sockets and temporary files, which whoever has forked this process removes.
    """
    if folder is not None:
        keep_files_in(folder)
    (ppid_file, stderr) = wire.receive()
    del ppid_file
    if stderr is not None:
        os.dup2(stderr, 1)
        os.dup2(stderr, 2)
        os.close(stderr)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the training process answers, and ends this one in order
    sys.excepthook = _pass_over_deaths
    go_to_background()
    renew_locks()
    guard_forks()
    quiet_hivemind()
    wire.send(("ready", os.getpid(), folder))
    _Program(wire).run()


def _pass_over_deaths(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """multiprocessing prints a trace when a process dies to which it hands a file just then: `_watch` tells of it."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


class _Program:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._dht: Any = None
        self._network: NetworkProcesses | None = None
        self._averager: GossipAverager | None = None
        self._asked: dict[int, Future[Handover]] = {}
        self._numbers = itertools.count()

    def run(self) -> None:
        try:
            while True:
                (number, method, arguments), file = self._wire.receive()
                if method == "told":
                    self._told(number, arguments, file)
                elif method == "end":
                    self._end()
                    self._wire.send((number, None, None))
                    break
                elif file is not None:
                    self._prepare(number, method, file, arguments)
                else:
                    assert self._averager is not None
                    self._averager.call(number, method, arguments)
        except (EOFError, OSError):
            pass  # the training process is gone
        os._exit(0)  # the kernel ends what this process has forked

    def _prepare(self, number: int, method: str, file: int, arguments: dict[str, Any]) -> None:
        value, error = None, None
        try:
            value = getattr(self, method)(file, **arguments)
        except Exception as problem:
            error = problem
        self._wire.send((number, value, error))

    def take_seat(
        self,
        identity: int,
        *,
        config: Config,
        listen: Listen,
        initial_peers: Sequence[str],
        place: Place | None,
        shared: tuple[str, ...],
        start_s: float,
    ) -> Seat:
        """Join the DHT; a charter and an index of its own if none are given."""
        is_users = listen.identity_path is not None
        if not is_users:  # of this peer only, and of all its sidecars
            path = Path(f"/proc/{os.getpid()}/fd/{identity}")
            if os.fstat(identity).st_size == 0:
                make_identity(path)
            listen = replace(listen, identity_path=path)
        self._dht = start_dht(
            initial_peers=initial_peers,
            listen=listen,
            start_s=start_s,
            may_be_taken=is_users and place is None,
            signs=config.engine == "gossip",
        )
        self._network = NetworkProcesses(self._dht)
        threading.Thread(target=self._watch, args=[self._network], daemon=True).start()
        if place is None:
            charter = read_charter(self._dht, within_s=start_s)
            charter.check(config, only=shared)
            place = Place(charter, claim_index(self._dht, charter, within_s=start_s))
        return Seat(
            peer_id=self._dht.peer_id.to_base58(),
            place=place,
            secret=listen.secret,
            multiaddrs=tuple(str(address) for address in self._dht.get_visible_maddrs()),
        )

    def open(
        self,
        file: int,
        *,
        config: Config,
        shape: StateShape,
        charter: Charter,
        own: Member,
    ) -> None:
        """Start the averager."""
        check_codec(config.gossip.compression)
        self._averager = GossipAverager(
            Memory(shape.size, num_kept=num_kept(config.gossip, shape.num_parameters), file=file),
            self._dht,
            shape=shape,
            hand_over=self._ask_for_model,
            reply=self._reply,
            give_up=self._give_up,
            charter=charter,
            own=own,
            gossip=config.gossip,
            final_s=config.swarm.final_s,
            seed=config.seed,
        )
        self._averager.serve(config.swarm.start_s)

    def _reply(self, number: int, value: Any, error: Exception | None) -> None:
        with contextlib.suppress(OSError):  # nobody is there to read it: this process ends
            self._wire.send((number, value, error))

    def _ask_for_model(self) -> Future[Handover]:
        number, future = next(self._numbers), Future[Handover]()
        future.set_running_or_notify_cancel()  # a newcomer that gives up cancels nothing: the answer comes all the same
        self._asked[number] = future
        self._wire.send(("asked", number, None))
        return future

    def _told(self, number: int, error: str, file: int | None) -> None:
        future = self._asked.pop(number)
        if file is None:
            future.set_exception(SwarmError(error))
        else:
            future.set_result(opened(file))

    def _watch(self, network: NetworkProcesses) -> None:
        """Without DHT, daemon or training process this process is of no use."""
        # the other end of the wire may live on in what the training process has forked
        trainer = select.poll()
        try:
            trainer.register(os.pidfd_open(self._wire.other[0]), select.POLLIN)
        except ProcessLookupError:  # it has died before
            os._exit(0)
        while not (dead := network.dead):
            if trainer.poll(1000 * _LOOK_S):
                os._exit(0)
        self._leave(f"the {dead} of this peer died")

    def _give_up(self, why: str, trace: str) -> None:
        """For this reason, or the one behind it. A process that dies loses its sockets a moment before it is seen
        dead, and who just talked to it knows first."""
        deadline, dead = time.monotonic() + _DYING_S, ""
        while self._network is not None and time.monotonic() < deadline and not (dead := self._network.dead):
            time.sleep(0.01)
        if trace and not dead:
            print(trace, file=sys.stderr, flush=True)
        self._leave(f"the {dead} of this peer died" if dead else why)

    def _leave(self, why: str) -> None:
        self._reply(-1, None, SwarmError(why))
        os._exit(1)

    def _end(self) -> None:
        if self._averager is not None:
            self._averager.stop()
        if self._dht is not None:
            stop_dht(self._dht)
