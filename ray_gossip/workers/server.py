"""The process from which a node's Ray workers are forked: it has imported what a peer needs, once.

The first launcher starts it; it ends a minute after its last worker. A worker whose launcher is gone is killed by it.
Nothing of a peer runs here, and nothing of the user's own is imported: that happens in the worker.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_gossip.workers.launcher import LONGEST, READY, TAKEN

IDLE_S = 60.0  # without a worker; then it ends
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
# Threads do not survive a fork, so that none may be there: they are told to begin later, in the worker.
_WITHOUT_THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
# Not Ray: it reads in its environment for which job a worker is, when it is loaded.
_MODULES = ("torch", "torch.utils.data", "ray_gossip.peer", "ray_gossip.loop.worker", "ray_gossip.data.digits")


@dataclass(frozen=True)
class _Worker:
    pid: int
    ended: int  # a descriptor that can be waited for
    launcher: socket.socket


class _Server:
    def __init__(self, listener: socket.socket, *, idle_s: float) -> None:
        self._listener, self._idle_s = listener, idle_s
        self._workers: list[_Worker] = []
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)

    def serve(self) -> None:
        """Fork until nobody has needed this for a while. Returns in a worker only after its end."""
        idle_since = time.monotonic()
        while self._workers or time.monotonic() - idle_since < self._idle_s:
            wait_ms = None if self._workers else 1000 * self._idle_s
            events = {descriptor for descriptor, _ in self._poll.poll(wait_ms)}
            for worker in [each for each in self._workers if {each.ended, each.launcher.fileno()} & events]:
                self._end(worker, is_over=worker.ended in events)
                idle_since = time.monotonic()
            if self._listener.fileno() in events:
                self._answer(*self._listener.accept())

    def _answer(self, launcher: socket.socket, _: Any) -> None:
        size = _CREDENTIALS.size
        _, user, _ = _CREDENTIALS.unpack(launcher.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        if user != os.geteuid():
            launcher.close()
            return
        try:
            launcher.settimeout(5.0)  # it has connected to send this
            message, output, _, _ = socket.recv_fds(launcher, LONGEST, 2)
            request = json.loads(message)
        except (OSError, ValueError):
            launcher.close()
            return
        pid = os.fork()
        if pid == 0:
            self._listener.close()
            for each in self._workers:
                os.close(each.ended)
                each.launcher.close()
            launcher.close()
            _be_worker(request, output)
        for file in output:
            os.close(file)
        launcher.settimeout(None)
        worker = _Worker(pid, os.pidfd_open(pid), launcher)
        self._workers.append(worker)
        self._poll.register(worker.ended, select.POLLIN)
        self._poll.register(launcher, select.POLLIN)  # readable: its end
        with contextlib.suppress(OSError):  # then its end is seen next
            socket.send_fds(launcher, [json.dumps({"pid": pid}).encode()], [worker.ended])

    def _end(self, worker: _Worker, *, is_over: bool) -> None:
        if not is_over:
            os.kill(worker.pid, signal.SIGKILL)
        _, status = os.waitpid(worker.pid, 0)
        with contextlib.suppress(OSError):
            worker.launcher.send(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())
        for descriptor in (worker.ended, worker.launcher.fileno()):
            self._poll.unregister(descriptor)
        os.close(worker.ended)
        worker.launcher.close()
        self._workers.remove(worker)


def _be_worker(request: dict[str, Any], output: Sequence[int]) -> None:
    """Run the worker's program, and end with it."""
    code = 1
    try:
        os.setsid()
        for target, file in enumerate(output, start=1):
            os.dup2(file, target)
            os.close(file)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        _begin_anew()
        sys.argv = request["words"]
        sys.path[0] = str(Path(sys.argv[0]).parent)  # as Python does for a program
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _begin_anew() -> None:
    """What each process has for itself: random numbers, threads, what Ctrl-C does."""
    import numpy as np
    import torch

    np.random.seed(int.from_bytes(os.urandom(4), "little"))
    torch.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(int(threads) if threads.isdecimal() and int(threads) else len(os.sched_getaffinity(0)))
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main(name: str, report: int, *, idle_s: float = IDLE_S) -> None:
    """Args:
    report: descriptor to which READY is written, or TAKEN, or why it cannot be.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with os.fdopen(report, "wb") as told:
        try:
            listener.bind(name)
        except OSError:
            told.write(TAKEN)
            return
        listener.listen(128)  # launchers that come from now on wait
        os.environ.update(_WITHOUT_THREADS)
        try:
            for module in _MODULES:
                importlib.import_module(module)
        except Exception as error:  # whatever is wrong with them, a worker says it better
            told.write(f"{type(error).__name__}: {error}".replace("\n", " ").encode())
            return
        if others := len([*Path("/proc/self/task").iterdir()]) - 1:
            told.write(f"{others} threads began with the imports, and a fork would lack them".encode())
            return
        gc.collect()
        gc.freeze()
        told.write(READY)
    _Server(listener, idle_s=idle_s).serve()


if __name__ == "__main__":
    main(sys.argv[1].replace("@", "\0", 1), int(sys.argv[2]))
