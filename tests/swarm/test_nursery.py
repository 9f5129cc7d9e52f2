"""The nursery and what it forks, in moments that come once in a thousand."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from ray_gossip.sidecar import client, nursery
from ray_gossip.sidecar.program import _Program
from ray_gossip.sidecar.wire import Wire


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def forked(function: Callable[[], object]) -> int:
    """The exit code of a child that does this; 9 if it comes back."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(9)
    return code_of(pid)


def test_a_sidecar_ends_whose_training_process_has_died_before_it_looked_for_it() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    wire: Any = SimpleNamespace(other=(gone.pid, os.getuid()))
    network: Any = SimpleNamespace(dead="")
    assert forked(lambda: _Program(wire)._watch(network)) == 0


def test_a_nursery_that_can_make_no_folder_forks_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> str:
        raise OSError(28, "No space left on device")

    def serve(wire: Wire, *, folder: str | None) -> None:
        os._exit(0 if folder is None else 1)

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    ours, theirs = socket.socketpair()
    with theirs, socket.socket(socket.AF_UNIX) as listener:
        born = nursery.Nursery(listener, serve)._fork(ours)
    assert born is not None
    assert code_of(born.pid) == 0
    for descriptor in (born.ended, born.owner_ended):
        os.close(descriptor)


def test_a_nursery_that_hangs_is_replaced_and_its_sidecars_live_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "address", lambda: f"\0ray_gossip.{os.getpid()}")
    gc.collect()  # what tests before have left open
    num_open = len(list(Path("/proc/self/fd").iterdir()))
    first = client.Sidecar()
    parent = psutil.Process(first.pid).ppid()
    os.kill(parent, signal.SIGSTOP)
    monkeypatch.setattr(client, "_START_S", 25.0)  # also for what the next one imports
    second = client.Sidecar()
    assert psutil.Process(second.pid).ppid() != parent
    for each in (first, second):
        assert psutil.pid_exists(each.pid)
        each.end()
        each.kill()  # once more changes nothing
    assert len(list(Path("/proc/self/fd").iterdir())) <= num_open


def test_a_folder_to_which_processes_still_write_while_it_is_removed_is_removed_all_the_same(tmp_path: Path) -> None:
    """What a killed sidecar has forked ends a moment after it."""
    folder, ends_at = tmp_path / "of a sidecar", time.monotonic() + 0.5

    def write() -> None:
        number = 0
        while time.monotonic() < ends_at:
            with contextlib.suppress(FileNotFoundError):
                (folder / f"{number}").touch()
            number += 1

    for _ in range(20):
        folder.mkdir()
        writer = threading.Thread(target=write)
        writer.start()
        leftovers = nursery.Leftovers()
        leftovers.add(str(folder))
        leftovers.remove_all()
        assert not folder.exists()
        ends_at = time.monotonic()
        writer.join()
        ends_at = time.monotonic() + 0.1


def test_a_sidecar_whose_nursery_was_killed_leaves_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "address", lambda: f"\0ray_gossip.{os.getpid()}")
    for end in (client.Sidecar.end, client.Sidecar.kill):
        sidecar = client.Sidecar()
        assert sidecar._folder is not None
        folder = Path(sidecar._folder)
        assert folder.is_dir()
        os.kill(psutil.Process(sidecar.pid).ppid(), signal.SIGKILL)
        end(sidecar)
        assert not folder.exists()
        assert not psutil.pid_exists(sidecar.pid) or psutil.Process(sidecar.pid).status() == psutil.STATUS_ZOMBIE
