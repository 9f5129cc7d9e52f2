"""A process that answers nothing: what the system of its node says of it, and its end. Ray asks it to end first, and
gives it 5 s for that."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import psutil
import ray

STOPPED: str = psutil.STATUS_STOPPED


@ray.remote(num_cpus=0, max_retries=0)
def state_of(pid: int) -> str:
    """psutil's word for it; empty: there is none with this number that Ray has started here."""
    return next((str(process.status()) for process in _workers(pid)), "")


@ray.remote(num_cpus=0, max_retries=0)
def kill(pid: int) -> None:
    """At once, if Ray has started it here."""
    for process in _workers(pid):
        process.kill()


def _workers(pid: int) -> Iterator[psutil.Process]:
    """The one with this number, or none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        # another container counts its processes by itself: whoever has the same parent is among those that we see
        if process.ppid() == os.getppid():
            yield process
