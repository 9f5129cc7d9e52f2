"""What the system of a node says of a process there."""

from __future__ import annotations

import os

import psutil
import ray

STOPPED: str = psutil.STATUS_STOPPED


@ray.remote(num_cpus=0, max_retries=0)
def state_of(pid: int) -> str:
    """psutil's word for it; empty: there is none with this number that Ray has started here."""
    try:
        process = psutil.Process(pid)
        # another container counts its processes by itself: whoever has the same parent is among those that we see
        return str(process.status()) if process.ppid() == os.getppid() else ""
    except psutil.NoSuchProcess:
        return ""
