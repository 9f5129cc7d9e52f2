"""Processes forked from one that has imported what they need (`preloaded.py`): torch costs each 3 s of CPU, Ray 1.

For command lines and Ray workers of runs on the cluster that tests share. Whoever starts a Ray of his own gets
everything as a user does.

`python forked.py WORKER …` is what a node of that cluster starts for each worker, in place of Ray's `setup_worker.py`:
it has the worker forked, and lives as long.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# In the environment: where the processes listen from which others are forked.
WORKERS, COMMANDS = "RG_FORK_WORKERS", "RG_FORK_COMMANDS"
_LONGEST = 2**20  # bytes of a request: mostly its environment


class Forked:
    """As `subprocess.Popen`: a process in a session of its own.

    Args:
        words: a file of Python code and its arguments, or `ray-gossip` and its arguments.
        output: descriptors of its standard output and error.
    """

    def __init__(self, words: Sequence[str], *, cwd: Path, env: Mapping[str, str], output: tuple[int, int]) -> None:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _LONGEST)
        self._connection.connect(os.environ[COMMANDS if words[0] == "ray-gossip" else WORKERS])
        send(self._connection, [[*words], str(cwd), {**env}], output)
        self.pid, (self._pidfd,) = receive(self._connection)
        self.returncode: int | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._await_end, daemon=True).start()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"forked process {self.pid}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        os.close(self._pidfd)

    def _await_end(self) -> None:
        with self._connection:
            self.returncode, _ = receive(self._connection)
        self._ended.set()


def send(connection: socket.socket, message: object, files: Sequence[int] = ()) -> None:
    socket.send_fds(connection, [json.dumps(message).encode()], [*files])


def receive(connection: socket.socket) -> tuple[Any, list[int]]:
    message, files, _, _ = socket.recv_fds(connection, _LONGEST, 3)
    return json.loads(message), files


def _worker(words: Sequence[str]) -> int:
    """Be the parent of a worker, with these words of Ray's, until it ends."""
    context, its_own = "--serialized-runtime-env-context=", "--language="
    given = next((word.removeprefix(context) for word in words if word.startswith(context)), "{}")
    asked = json.loads(given)
    environment = {**os.environ, **asked.pop("env_vars", {})}
    python = asked.pop("py_executable", sys.executable)
    assert not any(asked.values()), f"this cluster knows no such environment of a worker: {asked}"
    plain = [word for word in words if not word.startswith((context, its_own))]
    if python != sys.executable:  # of a peer, which the package has forked: started as Ray does
        os.execvpe("bash", ["bash", "-c", f"exec {python} {shlex.join(plain)}"], environment)
    return Forked(plain, cwd=Path.cwd(), env=environment, output=(1, 2)).wait()


if __name__ == "__main__":
    sys.exit(_worker(sys.argv[1:]))
