"""How a peer is hit on purpose, in its own process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from ray_gossip.sidecar.nursery import title

_SLOWED = 2 / 3  # of the time a slow process stands still


def strike(kind: str, *, for_s: float) -> None:
    """Do it to this process, or to its network side; one that is not there just then cannot be hit.

    Args:
        kind: as in `faults.kinds`.
        for_s: how long it lasts, where it does not last by itself.
    """
    own = os.getpid()
    if kind in ("kill", "stop"):
        os.kill(own, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    elif kind == "slow":
        _stand_still([own], for_s=for_s, share=_SLOWED)
    else:
        sidecar = _sidecar(own)
        below = [] if sidecar is None else sidecar.children(recursive=True)
        daemons = [process.pid for process in below if process.name() == "p2pd"]
        if kind == "drop":
            _stand_still(daemons, for_s=for_s, share=1.0)
            return
        for pid in daemons if kind == "p2pd" or sidecar is None else [sidecar.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _sidecar(own: int) -> psutil.Process | None:
    """Of this process; what it has forked has the same name."""
    named = {process.pid: process for process in psutil.process_iter(["name"]) if process.info["name"] == title(own)}
    with contextlib.suppress(psutil.NoSuchProcess):
        return next((process for process in named.values() if process.ppid() not in named), None)
    return None


def _stand_still(pids: list[int], *, for_s: float, share: float) -> None:
    """Another process sees to it, which goes on when this one stands still."""
    if pids:
        words = [str(Path(__file__).with_name("standstill.py")), str(for_s), str(share), *map(str, pids)]
        subprocess.Popen([sys.executable, "-I", "-S", *words], start_new_session=True)
