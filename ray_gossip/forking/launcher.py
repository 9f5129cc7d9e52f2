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
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

READY, TAKEN = b"ready\n", b"taken\n"  # what a server reports; another of its name lives
LONGEST = 2**20  # bytes of a request: mostly its environment
# This package, wherever it is; its other imports as everywhere, but none from the folder in which a user's script is.
_SERVER = (
    "import sys; sys.path.insert(0, sys.argv[1]); import ray_gossip; sys.path[:] = filter(None, sys.path[1:]); "
    "from ray_gossip.forking.server import begin; begin(*sys.argv[2:])"
)
_PACKAGE = Path(__file__).resolve().parents[1]
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_START_S = 60.0  # of the server's imports, on busy cores; one that does not answer for so long hangs
# On which of the environment it depends what is imported, and how; the rest is the worker's own, and it gets it.
_SHARED = ("PYTHON", "PYTORCH", "LD_", "PATH", "TORCH", "CUDA", "MKL", "KMP", "OMP", "OPENBLAS", "MALLOC_", "NPY_")
_OF_ONE = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")  # which Ray sets for each worker


def name_of(python: str, environment: Mapping[str, str]) -> str:
    """Of the server for workers of this Python and this environment; an abstract socket, which leaves no file."""
    found = [name for name in sorted(environment) if name.startswith(_SHARED) and name not in _OF_ONE]
    own = Path("/proc/self")
    identity = [
        [os.geteuid(), os.getgroups(), python, str(Path.cwd()), [(name, environment[name]) for name in found]],
        # a worker belongs to its job's share of the machine, and process ids mean something within one namespace only
        [(own / "ns" / kind).stat().st_ino for kind in ("pid", "mnt")],
        [(own / "cgroup").read_text(), (own / "limits").read_text()],
        [sorted(os.sched_getaffinity(0)), os.getpriority(os.PRIO_PROCESS, 0)],
        # and whoever changes the code wants it
        [str(_PACKAGE), max(path.stat().st_mtime_ns for path in _PACKAGE.rglob("*.py"))],
    ]
    return f"\0ray_gossip.workers.{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]}"


def other_end(connection: socket.socket) -> tuple[int, int]:
    """Process id and user id of the other end, as the kernel knows them."""
    size = _CREDENTIALS.size
    pid, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, user


def main(python: str, words: Sequence[str]) -> int:
    try:
        # the node: Ray's process there, which has started this one
        said = {"words": [*words], "cwd": str(Path.cwd()), "environment": {**os.environ}, "node": os.getppid()}
        request = json.dumps(said).encode()
        if len(request) > LONGEST:
            raise ValueError("its environment is too long")
        connection = _ready_server(python)
    except (OSError, ValueError) as error:
        print(f"ray_gossip: this worker imports everything by itself: {error}", file=sys.stderr, flush=True)
        os.execv(python, [python, *words])
    # From here on this process becomes no worker: the server may have forked it, and there would be two.
    socket.send_fds(connection, [request], [1, 2])
    _, files, _, _ = socket.recv_fds(connection, LONGEST, 1)
    if not files:
        return 1
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: _pass_on(files[0], number))
    connection.settimeout(None)
    with contextlib.suppress(OSError, ValueError):
        return int(json.loads(connection.recv(LONGEST)))
    return 1  # the server has died; its workers go on, and Ray knows them by their own process ids


def _pass_on(worker: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(worker, number)


def _ready_server(python: str) -> socket.socket:
    """A connection to one that waits for the request. It is started where there is none; one that hangs is killed,
    which ends none of its workers. Raises OSError, ValueError."""
    name = name_of(python, os.environ)
    connection = _connected(name)
    if connection is None:
        why = start_server("ray_gossip.forking.workers", name, python=python, within_s=_START_S)
        connection = None if why else _connected(name)
        if connection is None:
            raise OSError(why or "its fork server has ended")
    pid, user = other_end(connection)
    try:
        if user != os.geteuid():
            raise PermissionError("another user of this machine listens where its fork server should")
        if connection.recv(LONGEST) != READY:
            raise OSError("its fork server has ended")
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        connection.close()
        raise TimeoutError(f"its fork server has not answered for {_START_S:g} s") from None
    except OSError:
        connection.close()
        raise
    return connection


def _connected(name: str) -> socket.socket | None:
    """None: nobody listens there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LONGEST)
    connection.settimeout(_START_S)
    try:
        connection.connect(name)
    except ConnectionRefusedError:
        connection.close()
        return None
    return connection


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
    try:
        subprocess.run(  # which forks the server, and ends
            [python, "-c", _SERVER, str(_PACKAGE.parent), module, name.replace("\0", "@"), str(its_end)],
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
