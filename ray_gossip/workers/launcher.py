"""What Ray starts for a worker, in place of Python: `launcher.py PYTHON WORKER.py …`.

It has the worker forked from this node's fork server (`server.py`), which has imported torch and the parts of a peer,
and lives as long as the worker. Where that cannot be, it becomes the worker, as Ray would have started it. Nothing but
the standard library is loaded here, and none of a user's environment counts (`python -I -S`).
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

READY, TAKEN = b"ready", b"taken"
LONGEST = 2**20  # bytes of a request: mostly its environment
_START_S = 120.0  # of the server's imports, on busy cores
_ANSWER_S = 30.0
# On which of the environment it depends what is imported, and how; the rest is the worker's own, and it gets it.
_SHARED = ("PYTHON", "LD_", "TORCH", "PYTORCH", "CUDA", "MKL", "KMP", "OMP", "OPENBLAS", "NPY", "ATEN", "PATH")
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
        request = {"words": [*words], "cwd": os.getcwd(), "environment": {**os.environ}}  # noqa: PTH109
        socket.send_fds(connection, [json.dumps(request).encode()], [1, 2])
        connection.settimeout(_ANSWER_S)
        answer, files, _, _ = socket.recv_fds(connection, LONGEST, 1)
        worker = files[0]
    except (OSError, IndexError, ValueError) as error:
        print(f"ray_gossip: this worker imports everything by itself: {error}", file=sys.stderr, flush=True)
        os.execv(python, [python, *words])
    del answer
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: _pass_on(worker, number))
    connection.settimeout(None)
    while not select.select([connection], [], [])[0]:
        pass
    with contextlib.suppress(OSError, ValueError):
        return int(json.loads(connection.recv(LONGEST))["code"])
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
            _start(python, name)
        else:
            return connection
    raise AssertionError


def _start(python: str, name: str) -> None:
    """Returns when it listens. Raises OSError."""
    report, its_end = os.pipe()
    with os.fdopen(report, "rb") as told:
        command = [python, "-m", "ray_gossip.workers.server", name.replace("\0", "@"), str(its_end)]
        try:
            # not this worker's output, which would stay open with it
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[its_end],
                start_new_session=True,
            )
        finally:
            os.close(its_end)
        readable, _, _ = select.select([told], [], [], _START_S)
        line = told.read() if readable else b""
    if line not in (READY, TAKEN):
        raise OSError(line.decode(errors="replace") or f"the fork server was not ready after {_START_S:g} s")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
