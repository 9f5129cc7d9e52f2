"""The process from which all sidecars of a machine are forked: it has imported what they need, once.

It starts with the first sidecar and ends with the last. A sidecar whose training process has died is killed by it; its
own death ends no sidecar. Nothing of a peer runs here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ray_gossip.forking.launcher import other_end
from ray_gossip.forking.server import Child, ForkServer, prepared
from ray_gossip.resources import pid_namespace
from ray_gossip.sidecar.wire import Wire, own_user
from ray_gossip.usage import allow_many_files

_IDLE_S = 0.5  # without a sidecar; then it ends
_REMOVE_S, _AGAIN_S = 5.0, 0.05  # for which a folder is tried to be removed, and how often


def address() -> str:
    """Of this machine's nursery for this user, this Python and this code. An abstract socket: no file is left."""
    package = Path(__file__).parents[1]
    identity = f"{own_user()}:{pid_namespace()}:{sys.executable}:{package}"
    return f"\0ray_gossip.{hashlib.sha256(identity.encode()).hexdigest()[:24]}"


def title(parent: int) -> str:
    """What `ps -o pid,comm` shows of the sidecar of a training process, and of what it has forked; 15 characters."""
    return f"sidecar {parent}"


class Leftovers:
    """Folders of sidecars that have ended. Their DHT processes and daemons die a moment later, and may still write."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}  # folder -> when to give it up

    def add(self, folder: str) -> None:
        self._until[folder] = time.monotonic() + _REMOVE_S

    def remove_all(self) -> None:
        """Wait until they are removed, or given up."""
        while self.remove():
            time.sleep(_AGAIN_S)

    def remove(self) -> bool:
        """Try once. Returns whether some are left to be tried again."""
        for folder, until in [*self._until.items()]:
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.lexists(folder) or time.monotonic() > until:
                del self._until[folder]
        return bool(self._until)


class Nursery(ForkServer):
    """Forks sidecars; a child's owner is the training process that it belongs to."""

    def __init__(self, listener: socket.socket, serve: Callable[..., None]) -> None:
        super().__init__(listener, idle_s=_IDLE_S)
        self._serve = serve
        self._folders: dict[int, str] = {}  # of temporary files, by the process id of a sidecar
        self._leftovers = Leftovers()

    def _fork(self, connection: socket.socket) -> Child | None:
        with connection:
            parent, user = other_end(connection)
            if user != own_user():
                return None
            try:
                parent_ended = os.pidfd_open(parent)
            except ProcessLookupError:  # it has died meanwhile
                return None
            try:  # in /tmp: a socket's path has 107 characters at most
                folder = tempfile.mkdtemp(prefix=f"ray_gossip-{parent}-", dir="/tmp")
            except OSError:  # a full disk ends no nursery; the sidecar says what it cannot do without
                folder = None
            pid = os.fork()
            if pid == 0:
                try:
                    self._let_go()
                    os.close(parent_ended)
                    Path("/proc/self/comm").write_text(title(parent))
                    self._serve(Wire(connection), folder=folder)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(1)
        if folder is not None:
            self._folders[pid] = folder
        return Child(pid, os.pidfd_open(pid), parent_ended)

    def _over(self, child: Child, code: int) -> None:
        folder = self._folders.pop(child.pid, None)
        if folder is not None:
            self._leftovers.add(folder)

    def _look(self) -> float | None:
        return _AGAIN_S if self._leftovers.remove() else None


def main(name: str, report: int) -> None:
    """Args:
    report: descriptor to which a line is written, as `prepared` does.
    """
    allow_many_files()  # connections are files
    # this imports hivemind and torch, whose threads, of OpenBLAS, are made anew after a fork
    listener = prepared(name, report, ["ray_gossip.sidecar.program"], kind=socket.SOCK_STREAM, has_threads=True)
    if listener is not None:
        from ray_gossip.sidecar import program

        Nursery(listener, program.serve).serve()
