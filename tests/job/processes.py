"""Processes of this machine, from /proc: which belong to a run, and which of them still live."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ray_gossip.sidecar.nursery import title
from tests.job.forked import WORKERS
from tests.job.waiting import wait_for

_LAUNCHER = "forking/launcher.py"


@dataclass(frozen=True)
class Process:
    """One process; `started` tells it from a later one with the same pid."""

    pid: int
    started: int  # clock ticks since boot
    parent: int = field(compare=False)
    name: str = field(compare=False)
    command: str = field(compare=False)


def family(pid: int) -> set[Process]:
    """The living process `pid`, everything below it, the workers that Ray's launchers have had forked, and the sidecars
    of all these."""
    processes = list(_living())
    found = {process for process in processes if process.pid == pid}
    while True:
        near = pids(found) | {pid for process in found if _LAUNCHER in process.command for pid in _held(process.pid)}
        more = {p for p in processes if p.parent in near or p.pid in near or p.name in map(title, near)} - found
        if not more:
            return found
        found |= more


def forked() -> set[Process]:
    """All command lines and workers of Ray that have been forked for this worker of pytest, and what is below them."""
    ours = os.environ[WORKERS]
    parents = [
        process.pid
        for process in _living()
        if ours in process.command or (_LAUNCHER in process.command and ours in _environment(process.pid))
    ]
    return {process for pid in parents for process in family(pid)}


def pids(processes: Iterable[Process]) -> set[int]:
    return {process.pid for process in processes}


def wait_until_gone(processes: Iterable[Process], *, within_s: float) -> None:
    """Wait until none of these processes lives."""
    awaited = set(processes)
    assert awaited, "a family has members"
    wait_for(lambda: not left(awaited), within_s=within_s, what=lambda: f"the end of {left(awaited)}")


def left(processes: Iterable[Process]) -> set[Process]:
    """Those that still live."""
    return set(processes) & set(_living())


def _environment(pid: int) -> str:
    """With which a process began."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return (Path("/proc") / str(pid) / "environ").read_bytes().decode(errors="replace")
    return ""


def _held(pid: int) -> Iterator[int]:
    """The processes of which this one has a pidfd."""
    for descriptor in (Path("/proc") / str(pid) / "fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just been closed
            yield from map(int, re.findall(r"^Pid:\s+(\d+)$", descriptor.read_text(), re.MULTILINE))


def _living() -> Iterator[Process]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
                fields = rest.split()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] not in "ZX":  # a zombie has ended
                yield Process(int(folder.name), int(fields[19]), int(fields[1]), name, command)
