"""What Ray starts for a worker, in place of Python: `launcher.py PYTHON WORKER.py …`.

It has the worker forked from this node's server of workers (`workers.py`), which has imported torch and the parts of a
peer, and lives as long as the worker. Where that cannot be, it becomes the worker, as Ray would have started it.
Nothing but the standard library is loaded here, and none of a user's environment counts (`python -I -S`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

READY, TAKEN = b"ready\n", b"taken\n"  # what a server reports; another of its name lives
LONGEST = 2**20  # bytes of a request: mostly its environment
# This package, wherever it is; its other imports as everywhere, but none from the folder in which a user's script is.
_SERVER = (
    "import sys; sys.path.insert(0, sys.argv[1]); import ray_gossip; sys.path[:] = filter(None, sys.path[1:]); "
    "from ray_gossip.forking.server import begin; begin(*sys.argv[2:])"
)
_START_S = 120.0  # of the server's imports, on busy cores
_ANSWER_S = 30.0
# On which of the environment it depends what is imported, and how; the rest is the worker's own, and it gets it.
_SHARED = ("PYTHON", "PYTORCH", "LD_", "PATH", "TORCH", "CUDA", "MKL", "KMP", "OMP", "OPENBLAS", "MALLOC_", "NPY_")
_OF_ONE = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")  # which Ray sets for each worker


def name_of(python: str, environment: Mapping[str, str]) -> str:
    """Of the server for workers of this Python, environment and folder; an abstract socket, which leaves no file."""
    found = [name for name in sorted(environment) if name.startswith(_SHARED) and name not in _OF_ONE]
    shared = [(name, environment[name]) for name in found]
    namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - process ids mean something within one only
    identity = json.dumps([os.geteuid(), namespace, python, __file__, os.getcwd(), shared])  # noqa: PTH109
    return f"\0ray_gossip.workers.{hashlib.sha256(identity.encode()).hexdigest()[:24]}"


def main(python: str, words: Sequence[str]) -> int:
    try:
        connection = _connected(python)
        # the node: Ray's process there, which has started this one
        request = {"words": [*words], "cwd": os.getcwd(), "environment": {**os.environ}, "node": os.getppid()}  # noqa: PTH109
        socket.send_fds(connection, [json.dumps(request).encode()], [1, 2])
        connection.settimeout(_ANSWER_S)
        _, files, _, _ = socket.recv_fds(connection, LONGEST, 1)
        worker = files[0]
    except (OSError, IndexError, ValueError) as error:
        print(f"ray_gossip: this worker imports everything by itself: {error}", file=sys.stderr, flush=True)
        os.execv(python, [python, *words])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: _pass_on(worker, number))
    connection.settimeout(None)
    with contextlib.suppress(OSError, ValueError):
        return int(json.loads(connection.recv(LONGEST)))
    return 1  # the server has died; its workers go on, and Ray knows them by their own process ids


def _pass_on(worker: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(worker, number)


def _connected(python: str) -> socket.socket:
    """To the server, which is started where there is none. Raises OSError."""
    name = name_of(python, os.environ)
    for is_last in (False, True):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LONGEST)
        try:
            connection.connect(name)
        except ConnectionRefusedError:
            connection.close()
            if is_last:
                raise
            why = start_server("ray_gossip.forking.workers", name, python=python, within_s=_START_S)
            if why:
                raise OSError(why) from None
        else:
            return connection
    raise AssertionError


def start_server(
    module: str,
    name: str,
    *,
    python: str,
    within_s: float,
    environment: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> str:
    """Start the fork server that this module is, and wait until it listens. Returns why it does not, if so."""
    report, its_end = os.pipe()
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    try:
        subprocess.run(  # which forks the server, and ends
            [python, "-c", _SERVER, package, module, name.replace("\0", "@"), str(its_end)],
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[its_end],
            check=False,
        )
    except OSError as error:
        os.close(report)
        return str(error)
    finally:
        os.close(its_end)
    # a child that another thread has forked meanwhile holds the pipe open: its end says nothing
    with os.fdopen(report, "rb") as told:
        line = told.readline() if is_ready(report, within_s=within_s) else b"it did not answer"
    return "" if line in (READY, TAKEN) else line.decode(errors="replace").strip() or "it ended at once"


def is_ready(descriptor: int, *, within_s: float) -> bool:
    """Whether something can be read there, or a process has ended; `select` knows no descriptor above 1,023."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(1000 * within_s))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
