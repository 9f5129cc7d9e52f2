"""A fork server: a process of a node that has imported what others need, once, and forks them from itself.

Whoever needs a process connects to the server's abstract socket, which leaves no file. A process whose owner has died
is killed by the server; the server's own death ends none.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_gossip.forking.launcher import READY, TAKEN


@dataclass(frozen=True)
class Child:
    """A forked process."""

    pid: int
    ended: int  # a descriptor that can be waited for
    owner_ended: int  # and this: whoever needs the process has died


class ForkServer(ABC):
    """One that listens.

    Args:
        idle_s: without a child and without a request; then it ends.
    """

    def __init__(self, listener: socket.socket, *, idle_s: float) -> None:
        self._listener, self._idle_s = listener, idle_s
        self._children: list[Child] = []
        self._patrons: dict[int, int] = {}  # process id -> descriptor that can be waited for
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)

    def serve(self) -> None:
        """Fork for whoever asks, until nobody has needed this for a while."""
        needed = time.monotonic()
        while True:
            again_s = self._look()
            if not self._children and again_s is None and time.monotonic() - needed >= self._idle_s:
                return
            wait_s = again_s if again_s is not None else None if self._children else self._idle_s
            events = {descriptor for descriptor, _ in self._poll.poll(None if wait_s is None else 1000 * wait_s)}
            for child in [each for each in self._children if {each.ended, each.owner_ended} & events]:
                if child.ended not in events:
                    os.kill(child.pid, signal.SIGKILL)
                _, status = os.waitpid(child.pid, 0)
                for descriptor in (child.ended, child.owner_ended):
                    self._poll.unregister(descriptor)
                self._children.remove(child)
                self._over(child, os.waitstatus_to_exitcode(status))
                os.close(child.ended)
                os.close(child.owner_ended)
            for patron in [patron for patron, ended in self._patrons.items() if ended in events]:
                self._poll.unregister(self._patrons[patron])
                os.close(self._patrons.pop(patron))
                self._idle_s = 0.0 if not self._patrons else self._idle_s
            if self._listener.fileno() in events:
                connection, _ = self._listener.accept()
                born = self._fork(connection)
                if born is not None:
                    self._children.append(born)
                    for descriptor in (born.ended, born.owner_ended):
                        self._poll.register(descriptor, select.POLLIN)
            if events or self._children:
                needed = time.monotonic()

    @abstractmethod
    def _fork(self, connection: socket.socket) -> Child | None:
        """A child for whoever has connected, if it gets one."""

    @abstractmethod
    def _over(self, child: Child, code: int) -> None:
        """A child has ended, with this exit code, or -(the signal's number)."""

    def _look(self) -> float | None:
        """Do what is to be done from time to time. Returns after how many seconds again; None: it is done."""
        return None

    def _live_with(self, patron: int) -> None:
        """With the last of these processes the reason ends to wait for more requests."""
        if patron not in self._patrons:
            with contextlib.suppress(ProcessLookupError):
                self._patrons[patron] = ended = os.pidfd_open(patron)
                self._poll.register(ended, select.POLLIN)

    def _let_go(self) -> None:
        """In a child: of all that is the server's."""
        self._listener.close()
        for child in self._children:
            os.close(child.ended)
            os.close(child.owner_ended)
        for ended in self._patrons.values():
            os.close(ended)


def prepared(
    name: str, report: int, modules: Sequence[str], *, kind: socket.SocketKind, has_threads: bool
) -> socket.socket | None:
    """What a server listens on, once it has imported these; None: it is not needed, or cannot be.

    Args:
        report: descriptor to which a line is written: READY, TAKEN, or why it cannot be.
        has_threads: threads may have begun with the imports, which are made anew after a fork.
    """
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        listener.bind(name)
    except OSError:
        os.write(report, TAKEN)
        return None
    listener.listen(128)  # whoever comes from now on waits
    try:
        for module in modules:
            importlib.import_module(module)
        others = [(each / "comm").read_text().strip() for each in _threads() if each.name != str(os.getpid())]
        if others and not has_threads:
            raise RuntimeError(f"a fork would lack the threads that these imports have begun: {', '.join(others)}")
    except Exception as error:  # whatever is wrong with them
        os.write(report, f"{type(error).__name__}: {error}".replace("\n", " ").encode() + b"\n")
        return None
    gc.collect()
    gc.freeze()  # else the first full collection of each child writes into every page that they share
    os.write(report, READY)
    os.close(report)
    return listener


def begin(module: str, name: str, report: str) -> None:
    """Be the server that this module is, in a process that nobody has to wait for. The rest: words for its `main`."""
    if os.fork() == 0:
        os.setsid()
        Path("/proc/self/comm").write_text(f"rg {module.rpartition('.')[2]}"[:15])  # what `ps -o comm` shows
        importlib.import_module(module).main(name.replace("@", "\0", 1), int(report))


def _threads() -> list[Path]:
    return [*Path("/proc/self/task").iterdir()]
