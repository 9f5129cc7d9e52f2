"""The training process's end of its sidecar. Works in any thread, after CUDA, under every start method: it never forks
this process, and imports no hivemind."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

from ray_gossip.errors import SwarmError
from ray_gossip.forking.launcher import is_ready, start_server
from ray_gossip.gossip.commands import Interrupted
from ray_gossip.gossip.handover import Handover
from ray_gossip.sidecar.nursery import Leftovers, address
from ray_gossip.sidecar.parcel import opened, packed
from ray_gossip.sidecar.wire import Wire, own_user

_DIED = "the network process of this peer died"
_START_S = 60.0  # for imports, on busy cores
_END_S = 5.0


class Sidecar:
    """One sidecar, from its start to its end."""

    def __init__(self) -> None:
        self._numbers, self._futures = itertools.count(), dict[int, Future[Any]]()
        self._lock = threading.Lock()  # of what follows
        self.why_dead = ""
        self.hand_over: Callable[[], Handover] | None = None  # gives this peer's model to a newcomer; in any thread
        self._wire, self.pid, self._folder = _connect()
        self._pidfd: int | None = os.pidfd_open(self.pid)
        threading.Thread(target=self._receive, name="sidecar", daemon=True).start()

    def call(self, method: str, *, file: int | None = None, **arguments: Any) -> Future[Any]:
        """Have it do something. The future fails with Interrupted when it dies before that."""
        number, future = next(self._numbers), Future[Any]()
        with self._lock:
            if not self.why_dead:
                self._futures[number] = future
        if number not in self._futures:
            future.set_exception(Interrupted(self.why_dead))
            return future
        with contextlib.suppress(OSError):  # then the thread that receives sees its end, too
            self._wire.send((number, method, arguments), file=file)
        return future

    def ask(self, method: str, *, within_s: float, file: int | None = None, **arguments: Any) -> Any:
        """What it answers to a command before it begins.

        Raises:
            SwarmError: nothing in time, or that it cannot.
        """
        try:
            return self.call(method, file=file, **arguments).result(timeout=within_s)
        except (FutureTimeoutError, TimeoutError):
            raise SwarmError(f"the network process of this peer has not answered for {within_s:g} s") from None

    def end(self) -> None:
        """In order; what does not end in time is killed."""
        with contextlib.suppress(FutureTimeoutError, TimeoutError, Interrupted):
            self.call("end").result(timeout=_END_S)
        self.kill()

    def kill(self) -> None:
        """At once, with all that it has forked."""
        self._wire.close()
        with self._lock:
            pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            is_ready(pidfd, within_s=_END_S)
            os.close(pidfd)
            if self._folder is not None:  # its nursery may be gone, or do so as well
                leftovers = Leftovers()
                leftovers.add(self._folder)
                leftovers.remove_all()

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
                self.why_dead = why
                left, self._futures = self._futures, {}
            for future in left.values():
                future.set_exception(Interrupted(why))

    def _give_model(self, number: int) -> None:
        assert self.hand_over is not None
        with contextlib.suppress(OSError):  # it may end meanwhile
            try:
                file = packed(self.hand_over())
            except Exception as error:
                self._wire.send((number, "told", str(error)))
                if isinstance(error, SwarmError):  # it has nothing to give, which is no fault
                    return
                raise
            try:
                self._wire.send((number, "told", ""), file=file)
            finally:
                os.close(file)


def _connect() -> tuple[Wire, int, str | None]:
    """A new sidecar: the wire to it, its process id, the folder of its temporary files."""
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
            wire.send("hello", file=2 if connection.fileno() > 2 else None)  # standard error, unless that is closed
            (_, pid, folder), _ = wire.receive()
        except TimeoutError:  # it hangs; sidecars that it has forked live on
            os.kill(wire.other[0], signal.SIGKILL)
            wire.close()
            continue
        except (EOFError, OSError):  # it ended just now, because nobody had needed it
            wire.close()
            continue
        connection.settimeout(None)
        return wire, pid, folder
    raise SwarmError(f"the network process of this peer did not start: {why}")


def _start_nursery(name: str) -> str:
    """Returns why it did not start, if it did not."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_path()), "CUDA_VISIBLE_DEVICES": ""}
    module = "ray_gossip.sidecar.nursery"
    return start_server(module, name, python=sys.executable, within_s=_START_S, environment=environment, cwd="/")


def _path() -> list[str]:
    """Where the nursery finds its modules: not in the folder of the user's script, where one may have the name of one
    of these, unless hivemind is there, too."""
    users = {"", str(Path.cwd()), str(Path(sys.argv[0]).absolute().parent)}
    return [
        entry for entry in map(str, sys.path) if entry not in users or (Path(entry) / "hivemind/__init__.py").is_file()
    ]
