"""A network of this machine's own: a namespace for each process, all on one bridge, whose links can be made slow.

Needs root, `ip`, `tc`, and for links that take time or lose packets a kernel with `netem`. What goes over a link is
counted by the kernel, whatever sends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_NAMED = "import os, socket, sys; socket.sethostname(sys.argv[1]); os.execvp(sys.argv[2], sys.argv[2:])"
_BURST = "16kbit"
_QUEUE = "100ms"  # what waits longer than that for a slow link is dropped, as a router does


@dataclass(frozen=True)
class Place:
    """Of one process."""

    namespace: str
    ip_address: str
    interface: str

    def command(self, words: list[str]) -> list[str]:
        """A host of its own there, whose name is its address: gloo and torchft look theirs up."""
        named = ["unshare", "--uts", sys.executable, "-c", _NAMED, self.ip_address]
        return ["ip", "netns", "exec", self.namespace, *named, *words]

    @property
    def environment(self) -> dict[str, str]:
        return {"GLOO_SOCKET_IFNAME": self.interface, "TP_SOCKET_IFNAME": self.interface}

    def enter(self) -> None:
        """This process, with what it starts from now on, is there."""
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns is in Python 3.12
        with Path("/run/netns", self.namespace).open() as there:
            if libc.setns(there.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {self.namespace}")

    def bytes_sent(self) -> int:
        path = f"/sys/class/net/{self.interface}/statistics/tx_bytes"
        return int(_run("ip", "netns", "exec", self.namespace, "cat", path))


@dataclass(frozen=True)
class Link:
    """Of each place, both ways."""

    mbit_per_s: float | None = None  # None: as fast as this machine is
    delay_ms: float = 0.0
    loss: float = 0.0  # share of the packets


def why_not(link: Link) -> str:
    """What is missing; empty: nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [name for name in ("ip", "tc", "unshare") if shutil.which(name) is None]:
        return f"there is no {' and no '.join(missing)} (Debian: iproute2)"
    try:
        with Links(1, link):
            return ""
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd[:3])} says: {error.stderr.strip().splitlines()[0]}"


class Links:
    """As many places as asked for, on one bridge."""

    def __init__(self, count: int, link: Link = Link()) -> None:
        self._mark, self._link = f"rg{os.getpid() % 100_000}", link
        self.places = [Place(f"{self._mark}-{n}", f"10.77.0.{n + 1}", "eth0") for n in range(count)]
        self._hub = f"{self._mark}-hub"

    def __enter__(self) -> Links:
        try:
            self._add(self._hub)
            _run("ip", "-n", self._hub, "link", "add", "hub", "type", "bridge")
            _run("ip", "-n", self._hub, "link", "set", "hub", "up")
            for number, place in enumerate(self.places):
                self._add(place.namespace)
                ends = ["ip", "-n", place.namespace, "link", "add", "dev", place.interface, "type", "veth"]
                _run(*ends, "peer", "name", f"to{number}", "netns", self._hub)
                _run("ip", "-n", place.namespace, "address", "add", f"{place.ip_address}/24", "dev", place.interface)
                _run("ip", "-n", place.namespace, "link", "set", place.interface, "up")
                _run("ip", "-n", self._hub, "link", "set", f"to{number}", "master", "hub", "up")
                self._slow_down(place.namespace, place.interface)
                self._slow_down(self._hub, f"to{number}")
        except BaseException:
            self._remove()
            raise
        return self

    def _add(self, namespace: str) -> None:
        _run("ip", "netns", "add", namespace)
        _run("ip", "-n", namespace, "link", "set", "lo", "up")

    def _slow_down(self, namespace: str, interface: str) -> None:
        add, link, parent = (
            ["ip", "netns", "exec", namespace, "tc", "qdisc", "add", "dev", interface],
            self._link,
            "root",
        )
        if link.mbit_per_s is not None:
            rate = ["rate", f"{link.mbit_per_s:g}mbit", "burst", _BURST, "latency", _QUEUE]
            _run(*add, "root", "handle", "1:", "tbf", *rate)
            parent = "parent 1:1"
        if link.delay_ms or link.loss:
            far = ["delay", f"{link.delay_ms:g}ms", "loss", f"{100 * link.loss:g}%"]
            _run(*add, *parent.split(), "netem", *far)

    def _remove(self) -> None:
        for namespace in (*(place.namespace for place in self.places), self._hub):
            with contextlib.suppress(subprocess.CalledProcessError):  # it was not made
                _run("ip", "netns", "del", namespace)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout
