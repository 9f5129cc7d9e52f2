"""Processes of this machine, from /proc: which belong to a run, and which of them still live."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ray_gossip.sidecar.nursery import title
from tests.job.forked import WORKERS
from tests.job.waiting import wait_for


@dataclass(frozen=True)
class Process:
    """One process; `started` tells it from a later one with the same pid."""

    pid: int
    started: int  # clock ticks since boot
    parent: int = field(compare=False)
    name: str = field(compare=False)
    command: str = field(compare=False)


def family(pid: int) -> set[Process]:
    """The living process `pid`, everything below it, the workers of Ray that are forked for it, and the sidecars of all
    these."""
    processes = list(_living())
    found = {process for process in processes if process.pid == pid}
    while more := {p for p in processes if p.parent in pids(found) or p.name in map(title, pids(found))} - found:
        found |= more
        nodes = {f"RAY_RAYLET_PID={pid}" for pid in pids(found)}
        found |= {p for p in processes if p.name == "rg workers" and nodes & {*_environment(p.pid)}}
    return found


def forked() -> set[Process]:
    """All command lines and workers of Ray that have been forked for this worker of pytest, and what is below them."""
    ours = os.environ[WORKERS]
    parents = [
        p.pid for p in _living() if ours in p.command or (p.name == "rg workers" and ours in str(_environment(p.pid)))
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


def _environment(pid: int) -> list[str]:
    """With which a process began, or the one from which it was forked."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return (Path("/proc") / str(pid) / "environ").read_bytes().decode(errors="replace").split("\0")
    return []


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
