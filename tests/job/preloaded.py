"""The processes from which others are forked: see `forked.py`.

`python -m tests.job.preloaded SOCKET SOCKET`, of workers and of command lines, has imported what they need, and lives
until its standard input ends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_gossip import cli
from tests.job.forked import COMMANDS, WORKERS, receive, send

# Ray reads the environment of a worker, which names the job that it is for, when it is loaded: workers load it.
_OF_ALL = ("torch", "torchvision", "tensorboard", "pandas", "pyarrow", "optuna", "ray_gossip.peer")
_OF_COMMANDS = ("ray.tune", "ray_gossip.driver", "ray_gossip.swarm.actor", "ray_gossip.tuning.sweep")
_WITHOUT_THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


@contextlib.contextmanager
def preloaded(folder: Path) -> Iterator[None]:
    """Let two such processes live, with their sockets in this folder."""
    sockets = {kind: str(folder / kind.lower()) for kind in (WORKERS, COMMANDS)}
    command = [sys.executable, "-m", "tests.job.preloaded", *sockets.values()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n", "it does not start"
            os.environ.update(sockets)
            yield
        finally:
            for kind in sockets:
                os.environ.pop(kind, None)
            process.communicate()


@dataclass(frozen=True)
class _Child:
    pid: int
    ended: int  # a descriptor
    connection: socket.socket


def _serve(listener: socket.socket) -> Callable[[], Any]:
    """Fork until standard input ends. Returns in a child: what it is to do."""
    children: list[_Child] = []
    while True:
        watched: list[Any] = [0, listener, *(child.ended for child in children)]
        readable, _, _ = select.select(watched, [], [])
        for child in [child for child in children if child.ended in readable]:
            _, status = os.waitpid(child.pid, 0)
            with contextlib.suppress(OSError):  # nobody asks any more
                send(child.connection, os.waitstatus_to_exitcode(status))
            child.connection.close()
            os.close(child.ended)
            children.remove(child)
        if 0 in readable:
            for child in children:
                os.kill(child.pid, signal.SIGKILL)
            sys.exit()
        if listener in readable:
            connection, _ = listener.accept()
            (words, cwd, environment), output = receive(connection)
            pid = os.fork()
            if pid == 0:
                for each in (listener, connection, *(child.connection for child in children)):
                    each.close()
                for child in children:
                    os.close(child.ended)
                return _become(words, cwd, environment, output)
            child = _Child(pid, os.pidfd_open(pid), connection)
            for file in output:
                os.close(file)
            send(connection, pid, [child.ended])
            children.append(child)


def _become(words: list[str], cwd: str, environment: dict[str, str], output: list[int]) -> Callable[[], Any]:
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for target, file in enumerate(output, start=1):
        os.dup2(file, target)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    program, *arguments = words
    if program == "ray-gossip":
        return lambda: sys.exit(cli.main(arguments))
    sys.argv = words
    return lambda: runpy.run_path(program, run_name="__main__")


def _import(names: Sequence[str]) -> None:
    for name in names:
        importlib.import_module(name)
    threads = [(each / "comm").read_text() for each in Path("/proc/self/task").iterdir()]
    assert len(threads) == 1, f"what is forked would lack the threads {threads}"
    gc.collect()
    gc.freeze()


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    return listener


if __name__ == "__main__":
    os.environ |= {**cli._RAY_SETTINGS, **cli._TUNE_SETTINGS, **_WITHOUT_THREADS}
    _listeners = [_listen(each) for each in sys.argv[1:]]
    print("ready", flush=True)
    _import(_OF_ALL)
    if os.fork() == 0:
        _listeners.reverse()
        _import(_OF_COMMANDS)
    _listeners[1].close()
    _serve(_listeners[0])()
