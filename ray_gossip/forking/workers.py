"""The process from which a node's Ray workers are forked: it has imported what a peer needs, once.

The first launcher starts it. Nothing of a peer runs here, and nothing of the user's own is imported: that happens in
the worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ray_gossip.forking.launcher import LONGEST, READY, other_end
from ray_gossip.forking.server import Child, ForkServer, prepared

IDLE_S = 60.0  # without a worker; then it ends, or when the node's Ray does
_REQUEST_S = 5.0  # for what a launcher has connected to say
# Threads do not survive a fork, so that none may be there: they are told to begin later, in the worker.
_WITHOUT_THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
# Not Ray: it reads in its environment for which job a worker is, when it is loaded.
_MODULES = ("torch", "torch.utils.data", "ray_gossip.peer", "ray_gossip.loop.worker", "ray_gossip.data.digits")


class _Server(ForkServer):
    def __init__(self, listener: socket.socket, *, idle_s: float) -> None:
        super().__init__(listener, idle_s=idle_s)
        self._launchers: dict[int, socket.socket] = {}  # by the process id of their worker

    def _fork(self, connection: socket.socket) -> Child | None:
        owner, user = other_end(connection)
        try:
            if user != os.geteuid():
                raise PermissionError
            connection.settimeout(_REQUEST_S)
            connection.send(READY)  # fails where the launcher has not waited, and become the worker itself
            message, output, _, _ = socket.recv_fds(connection, LONGEST, 2)
            request = json.loads(message)
            owner_ended = os.pidfd_open(owner)
        except (OSError, ValueError):
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            self._let_go()
            os.close(owner_ended)
            connection.close()
            _be_worker(request, output)
        for file in output:
            os.close(file)
        connection.settimeout(None)
        child = Child(pid, os.pidfd_open(pid), owner_ended)
        with contextlib.suppress(OSError):  # then its end is seen next
            socket.send_fds(connection, [b"forked"], [child.ended])
        self._launchers[pid] = connection
        self._live_with(request["node"])
        return child

    def _over(self, child: Child, code: int) -> None:
        with self._launchers.pop(child.pid) as launcher, contextlib.suppress(OSError):
            launcher.send(json.dumps(code).encode())

    def _let_go(self) -> None:
        super()._let_go()
        for launcher in self._launchers.values():
            launcher.close()


def _be_worker(request: dict[str, Any], output: Sequence[int]) -> NoReturn:
    """Run the worker's program, and end as Python ends one: what is registered for the end happens."""
    os.setsid()
    for target, file in enumerate(output, start=1):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _begin_anew()
    sys.argv = request["words"]
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as Python does for a program
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


def _begin_anew() -> None:
    """What each process has for itself: random numbers, threads, what Ctrl-C does."""
    import numpy as np
    import torch

    np.random.seed(int.from_bytes(os.urandom(4), "little"))
    torch.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
    use_threads()
    signal.signal(signal.SIGINT, signal.default_int_handler)


def use_threads() -> None:
    """As many as the environment says. Ray writes into it for how many CPUs a worker is, once that has begun; torch
    reads it when it is loaded."""
    import torch

    number = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if number.isdecimal() and int(number):
        torch.set_num_threads(int(number))


def main(name: str, report: int, *, idle_s: float = IDLE_S) -> None:
    """Args:
    report: descriptor to which a line is written, as `prepared` does.
    """
    os.environ.update(_WITHOUT_THREADS)
    listener = prepared(name, report, _MODULES, kind=socket.SOCK_SEQPACKET, has_threads=False)
    if listener is not None:
        _Server(listener, idle_s=idle_s).serve()
