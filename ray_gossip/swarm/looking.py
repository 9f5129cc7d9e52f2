"""A process that answers nothing: what the system of its node says of it, and its end. Ray asks it to end first, and
gives it 5 s for that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil
import ray

from ray_gossip.resources import pid_namespace

STOPPED: str = psutil.STATUS_STOPPED


@ray.remote(num_cpus=0, max_retries=0)
def state_of(pid: int, namespace: int) -> str:
    """psutil's word for it; empty: there is none with this number that can be seen from here."""
    return next((str(process.status()) for process in _found(pid, namespace)), "")


@ray.remote(num_cpus=0, max_retries=0)
def kill(pid: int, namespace: int) -> None:
    """At once, if it can be seen from here."""
    for process in _found(pid, namespace):
        process.kill()


def _found(pid: int, namespace: int) -> Iterator[psutil.Process]:
    """The one with this number, or none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if namespace == pid_namespace():
            yield psutil.Process(pid)
