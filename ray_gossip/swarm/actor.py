"""The actor that hosts one peer."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.util import get_node_ip_address

from ray_gossip.config import Config
from ray_gossip.errors import SwarmError, UserError
from ray_gossip.factory import Factories
from ray_gossip.forking.workers import use_threads
from ray_gossip.records import PeerStarted, Record
from ray_gossip.resources import machine_id
from ray_gossip.swarm.failure import Failure

_GRACE_S = 10.0  # after SIGTERM, for the driver to fetch what this process holds


# A call of the group "control" may wait for the final rounds; nothing but a process that is stuck holds up "pulse".
@ray.remote(concurrency_groups={"control": 2, "pulse": 1}, max_restarts=0, max_task_retries=0)
class PeerActor:
    """One peer in a Ray actor. `__init__` is on the main thread, as hivemind's forks need for `engine=hivemind`.

    Args:
        founder: what a `peer.Founder` holds of its place.
        initial_peers: multiaddrs to dial; or a reference to those of the first peer, nested in a list, so that Ray does
            not wait for it before this peer has done its imports.
        luggage: the user's own functions, as `pack` makes it.
        start: a snapshot to go on from, if any.
        saves: where it saves itself, and from what it goes on, if it does: arguments of a `Peer`.
        loopback: listen on 127.0.0.1 only: all peers are on one machine.
        secret: of the run; None: it is open to all.
    """

    _index = -1  # Ray asks for its name also when its arguments did not arrive

    def __init__(
        self,
        config: Config,
        *,
        founder: Mapping[str, Any],
        initial_peers: list[Any],
        loopback: bool,
        luggage: bytes,
        start: bytes | None,
        saves: Mapping[str, Any],
        secret: Any,
    ) -> None:
        self._index = founder["peer_index"]
        self._has_snapshot = config.train.loop is None
        self._failure: Failure | None = None
        try:
            use_threads()
            factories = _unpack(luggage)
            from ray_gossip.checkpoints.saving import Resumed
            from ray_gossip.gossip.seat import Founder, Listen
            from ray_gossip.loop.worker import LoopWorker
            from ray_gossip.peer import Peer

            place: dict[str, Any] = {
                "listen": Listen.at("127.0.0.1" if loopback else get_node_ip_address(), secret=secret),
                "founder": Founder(**founder, has_driver=True),
                "initial_peers": lambda: _addresses(initial_peers),
                "node": machine_id(),
                "factories": factories,
                "checkpoints": saves.get("place"),
                "resumed": Resumed(**saves["resumed"]) if "resumed" in saves else None,
            }
            self._peer: Peer | LoopWorker
            if config.train.loop is None:
                self._peer = Peer(config, **place, start=start)
            else:
                self._peer = LoopWorker(config, **place)
            signal.signal(signal.SIGTERM, self._leave_and_end)
        except Exception as error:
            self._failure = Failure.of(error)

    def __repr__(self) -> str:
        return f"peer-{self._index:02d}"

    @ray.method(concurrency_group="control")
    def multiaddrs(self) -> tuple[str, ...]:
        """Empty where this peer could not start."""
        return () if self._failure else self._peer.multiaddrs()

    @ray.method(concurrency_group="control")
    def started(self) -> PeerStarted | Failure:
        return self._failure or self._peer.started()

    @ray.method(concurrency_group="pulse")
    def ping(self) -> None:
        """Its answer says that this process runs."""

    @ray.method(concurrency_group="pulse")
    def strike(self, kind: str, for_s: float) -> None:
        """Hit this peer on purpose."""
        from ray_gossip.swarm.strikes import strike

        strike(kind, for_s=for_s)

    @ray.method(num_returns="streaming")
    def run(self, *, founders: int) -> Iterator[list[Record] | Failure]:
        try:
            yield from self._peer.run(founders=founders)
        except Exception as error:
            yield Failure.of(error)

    @ray.method(concurrency_group="control")
    def save(self, mark: int) -> None:
        self._peer.save(mark)

    @ray.method(concurrency_group="control")
    def save_last(self, mark: int) -> None:
        self._peer.save_last(mark)

    @ray.method(concurrency_group="control")
    def stop(self, *, saves: bool) -> int:
        return self._peer.stop(saves=saves)

    @ray.method(concurrency_group="control")
    def leave(self) -> None:
        self._peer.leave()

    @ray.method(concurrency_group="control")
    def model(self) -> bytes:
        return self._peer.model()

    @ray.method(concurrency_group="control")
    def snapshot(self) -> bytes:
        return self._peer.snapshot()

    @ray.method(concurrency_group="control")
    def parting(self) -> bytes | None:
        """What this peer leaves to its next process; None: a loop, which keeps that to itself."""
        return self._peer.snapshot() if self._has_snapshot else None

    @ray.method(concurrency_group="control")
    def shutdown(self) -> None:
        self._peer.shutdown()

    def _leave_and_end(self, *_: object) -> None:
        """On SIGTERM: whoever takes this process away means it, and most wait for some seconds."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._peer.leave()
        last = threading.Timer(_GRACE_S, os.kill, [os.getpid(), signal.SIGTERM])
        last.daemon = True
        last.start()


def pack(factories: Factories) -> bytes:
    """The user's own functions for the way to the peers, where modules are found here, and the folder of the command.

    Raises:
        UserError: they hold something that cannot be sent to another process.
    """
    try:
        own = str(Path.cwd())
    except FileNotFoundError:
        raise UserError("the folder of this process is not there any more: change to another") from None
    here = [str(Path(folder).absolute()) for folder in sys.path]  # "" is the folder of the command
    try:
        return cloudpickle.dumps((here, own, cloudpickle.dumps(factories)))
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise UserError(
            f"cannot send model, data, train_loop_per_worker or train_loop_config to the peers: {error}"
        ) from error


def _unpack(luggage: bytes) -> Factories:
    """Also makes importable what is so for the driver, last of all, and goes to its folder, so that a script finds and
    leaves its files there: for peers on its machine, and where folders are shared. Elsewhere Ray's `working_dir` brings
    the user's modules along."""
    folders, own, packed = cloudpickle.loads(luggage)
    sys.path += [folder for folder in folders if folder not in sys.path]
    if os.access(own, os.X_OK):
        os.chdir(own)
    factories: Factories = cloudpickle.loads(packed)
    return factories


def _addresses(given: list[Any]) -> tuple[str, ...]:
    if all(isinstance(each, str) for each in given):
        return tuple(given)
    found: tuple[str, ...] = ()
    with contextlib.suppress(ray.exceptions.RayError):  # it has died
        found = ray.get(given[0])
    if not found:
        raise SwarmError("the first peer, through which the others join, did not come up")
    return found
