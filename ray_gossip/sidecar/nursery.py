"""The process from which all sidecars of a machine are forked: it has imported what they need, once.

It starts with the first sidecar and ends with the last. A sidecar whose training process has died is killed by it; its
own death ends no sidecar. Nothing of a peer runs here.
"""

from __future__ import annotations

import gc
import hashlib
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ray_gossip.sidecar.wire import Wire, own_user
from ray_gossip.usage import allow_many_files

_IDLE_S = 0.5  # without a sidecar; then it ends
_REMOVE_S, _AGAIN_S = 5.0, 0.05  # for which a folder is tried to be removed, and how often
READY = b"ready\n"
TAKEN = b"taken\n"  # another nursery of this name lives


def address() -> str:
    """Of this machine's nursery for this user, this Python and this code. An abstract socket: no file is left."""
    package = Path(__file__).parents[1]
    space = Path("/proc/self/ns/pid").stat().st_ino  # process ids mean something within one only
    identity = f"{own_user()}:{space}:{sys.executable}:{package}"
    return f"\0ray_gossip.{hashlib.sha256(identity.encode()).hexdigest()[:24]}"


def title(parent: int) -> str:
    """What `ps -o pid,comm` shows of the sidecar of a training process, and of what it has forked; 15 characters."""
    return f"sidecar {parent}"


@dataclass(frozen=True)
class _Child:
    """A sidecar, and the training process that it belongs to; both as descriptors that can be waited for."""

    pid: int
    ended: int
    parent_ended: int
    folder: str | None  # its temporary files


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


def main(name: str, report: int) -> None:
    """Listen until nobody has needed this for a while.

    Args:
        report: descriptor to which READY is written, or TAKEN.
    """
    os.setsid()
    allow_many_files()  # connections are files
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(name)
    except OSError:
        os.write(report, TAKEN)
        return
    listener.listen(64)  # a training process that comes from now on waits
    try:
        from ray_gossip.sidecar import program  # hivemind, torch
    except Exception as error:  # whatever is wrong with them
        os.write(report, f"{type(error).__name__}: {error}".replace("\n", " ").encode() + b"\n")
        return
    gc.collect()
    gc.freeze()
    os.write(report, READY)
    os.close(report)
    children: list[_Child] = []
    leftovers = Leftovers()
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        wait_s = _AGAIN_S if leftovers.remove() else None if children else _IDLE_S
        events = {descriptor for descriptor, _ in poll.poll(None if wait_s is None else 1000 * wait_s)}
        if not events and wait_s == _IDLE_S:
            return
        for child in [child for child in children if {child.ended, child.parent_ended} & events]:
            if child.ended not in events:
                os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            if child.folder is not None:
                leftovers.add(child.folder)
            for descriptor in (child.ended, child.parent_ended):
                poll.unregister(descriptor)
                os.close(descriptor)
            children.remove(child)
        if listener.fileno() in events:
            connection, _ = listener.accept()
            born = _fork(Wire(connection), listener, children, program.serve)
            connection.close()
            if born is not None:
                children.append(born)
                poll.register(born.ended, select.POLLIN)
                poll.register(born.parent_ended, select.POLLIN)


def _fork(wire: Wire, listener: socket.socket, children: list[_Child], serve: Callable[..., None]) -> _Child | None:
    parent, user = wire.other
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
            listener.close()
            for child in children:
                os.close(child.ended)
                os.close(child.parent_ended)
            os.close(parent_ended)
            Path("/proc/self/comm").write_text(title(parent))
            serve(wire, folder=folder)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return _Child(pid, os.pidfd_open(pid), parent_ended, folder)


if __name__ == "__main__":
    if os.fork() == 0:  # so that nobody has to wait for it
        main(sys.argv[1].replace("@", "\0", 1), int(sys.argv[2]))
