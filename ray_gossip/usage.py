"""What a peer takes of its machine, and what is left there."""

from __future__ import annotations

import contextlib
import math
import resource
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from ray_gossip.errors import ResourceError
from ray_gossip.records import Usage

_EVERY_S = 30.0
_MOST_FILES = 65_536  # some programs close all that there may be, one by one
_SHARED = Path("/dev/shm")
_GROUP = Path("/sys/fs/cgroup")
# of a control group, version 2 and 1: the most that it may take, what it takes, and where it says what of that is cache
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


class Meter:
    """Measures now and then; the first time at once. A few milliseconds, in the thread that asks.

    Args:
        network_pid: of this peer's network side.
        place: a folder or URI into which this peer writes; None: none.
        device_bytes: of GPU memory that this process has reserved; None: it uses no GPU.
    """

    def __init__(
        self,
        *,
        network_pid: Callable[[], int],
        place: str | None,
        device_bytes: Callable[[], int] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._network_pid, self._place, self._device_bytes, self._clock = network_pid, place, device_bytes, clock
        self._measured_at = -math.inf

    def take(self, *, peer_index: int, local_step: int) -> list[Usage]:
        """One, or none if the last one was a moment ago."""
        if self._clock() - self._measured_at < _EVERY_S:
            return []
        self._measured_at = self._clock()
        own = psutil.Process()
        network = _family(self._network_pid())
        helpers = [process for process in own.children(recursive=True) if process not in network]
        free, most = memory()
        return [
            Usage(
                peer_index=peer_index,
                wall_time=time.time(),
                local_step=local_step,
                trainer_bytes=_bytes_of([own]),
                network_bytes=_bytes_of(network),
                helper_bytes=_bytes_of(helpers),
                device_bytes=self._device_bytes() if self._device_bytes is not None else None,
                open_files=own.num_fds(),
                most_open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                memory_free_bytes=free,
                memory_bytes=most,
                shared_free_bytes=_free_at(_SHARED),
                disk_free_bytes=_free_at(Path(self._place)) if self._place and "://" not in self._place else None,
            )
        ]


def memory() -> tuple[int, int]:
    """What is left of this machine's memory, or of what its container may take, and how much that is in all."""
    machine = psutil.virtual_memory()
    free, most = machine.available, machine.total
    for limit, taken, statistics, cache in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # another version, or no limit: "max"
            allowed = int((_GROUP / limit).read_text())
            lines = dict(line.split() for line in (_GROUP / statistics).read_text().splitlines())
            in_use = int((_GROUP / taken).read_text()) - int(lines.get(cache, 0))
            if allowed < machine.total:
                free, most = min(free, allowed - in_use), allowed
    return max(0, free), most


def check_memory(needed: int, *, what: str) -> None:
    """Raise ResourceError where there is less left than this many bytes."""
    free, _ = memory()
    if needed > free:
        raise ResourceError(
            f"{what} takes {needed / 1e9:.1f} GB of this machine's memory, which has {free / 1e9:.1f} GB left: lower "
            "swarm.num_peers, spread the peers (swarm.placement=SPREAD), or take a smaller model"
        )


def allow_many_files() -> None:
    """Let this process and those that it starts have as many open files as the system admits: connections are files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft < most:
        with contextlib.suppress(ValueError, OSError):  # a system that admits fewer than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:  # it is just being started again
        return []


def _bytes_of(processes: Iterable[psutil.Process]) -> int:
    """Memory that is shared is counted in parts."""
    found = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it has ended
            found += process.memory_full_info().pss
    return found


def _free_at(folder: Path) -> int | None:
    """On its disk; None: there is no such folder so far."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
