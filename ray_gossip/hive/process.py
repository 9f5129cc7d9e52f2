"""Processes: the fork guard, and starting and stopping hivemind's DHT.

hivemind forks its DHT and averager. A fork of a Ray worker inherits the worker's sockets: when the worker is then
killed, Ray sees no end of file, and the children live on and answer other peers. Memory that they share has names in
/dev/shm, which a killed peer leaves behind now and then. The guard cures all three.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import multiprocessing.util
import os
import re
import resource
import signal
import socket
import stat
import struct
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from multiprocessing.context import ForkProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import hivemind
import psutil
import torch
from hivemind.dht.protocol import ValidationError
from hivemind.p2p import P2P, P2PDaemonError
from hivemind.utils import MAX_DHT_TIME_DISCREPANCY_SECONDS, MPFuture

from ray_gossip.errors import SwarmError
from ray_gossip.gossip.seat import Listen
from ray_gossip.hive.bounded_records import BoundedRecords
from ray_gossip.hive.charter import CHARTER_KEY
from ray_gossip.hive.doors import close_doors, refusals
from ray_gossip.hive.readable_records import ReadableRecords
from ray_gossip.hive.repairs import TakesLongCommands
from ray_gossip.hive.signed_records import SignedRecords

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_OPEN_FILES = 65_536
_LONGEST_FOLDER = 107 - len("/pymp-12345678/listener-12345678")  # a socket's path holds 107 bytes
_CLOCKS = re.compile(r"local: (?P<local>[\d.]+), peer: (?P<peer>[\d.]+)")  # in hivemind's message, seconds since 1970
_guarded = False


def guard_forks() -> None:
    """From now on every forked child dies with this process and gives up the sockets that were open at this moment,
    and memory that they share ends with the last of them.

    Call it on the main thread before hivemind starts: the kernel ties the death signal to the forking *thread*.
    """
    global _guarded
    if _guarded:
        return
    _guarded = True
    # torch's default on Linux, which hivemind changes when it is imported: memory without a name ...
    torch.multiprocessing.set_sharing_strategy("file_descriptor")
    _shorten_sockets()
    _allow_open_files(_OPEN_FILES)  # ... but with an open file for each tensor: engine=hivemind shares all of a model's
    parent = os.getpid()
    inherited = _open_sockets()
    libc = ctypes.CDLL(None, use_errno=True)

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the parent's handler, which is Ray's and raises
        for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all of its processes: the parent
            signal.signal(number, signal.SIG_IGN)  # answers, and ends its children in order
        if os.getppid() != parent and os.getppid() == 1:
            os._exit(1)  # the parent died before the line above
        for descriptor, identity in inherited.items():
            if _socket_identity(descriptor) == identity:
                os.close(descriptor)
        gc.freeze()  # else its first full collection writes into every inherited page: a copy of 60 MB

    os.register_at_fork(after_in_child=in_child)


def _shorten_sockets() -> None:
    """Have multiprocessing keep its sockets in /tmp, as libp2p's daemon does, if their paths would be too long below
    TMPDIR. Python 3.15 does so itself."""
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) > _LONGEST_FOLDER:
        tempfile.tempdir = "/tmp"
        try:
            multiprocessing.util.get_temp_dir()  # makes one, for this process and those that it forks
        finally:
            tempfile.tempdir = usual


def _allow_open_files(number: int) -> None:
    """Raise this process's own limit, as far as the system lets it: shells give 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def renew_locks() -> None:
    """Give this process hivemind's locks of its own, when it was forked from one that had imported hivemind.

    Before anything of hivemind is started. Else the locks are shared with all such processes, and one that is killed
    while it holds one stops the others for ever.
    """
    MPFuture.reset_backend()


def go_to_background() -> None:
    """From now on this thread, and the threads and processes that it starts, get their share of the cores, but do not
    take one from a process that has just woken, such as a trainer whose GPU is done."""
    if os.sched_getscheduler(0) == os.SCHED_OTHER:  # else somebody has decided otherwise
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_getparam(0))


@contextlib.contextmanager
def in_background() -> Iterator[None]:
    """As `go_to_background`, for what this thread starts meanwhile."""
    usual, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    go_to_background()
    try:
        yield
    finally:
        os.sched_setscheduler(0, usual, parameters)


class AlwaysForked:
    """Mix-in for hivemind's averagers: fork, whatever start method the program has chosen.

    Their futures and tensors are inherited; pickling them to a spawned process is impossible.
    """

    _Popen = staticmethod(ForkProcess._Popen)
    _after_fork = staticmethod(BaseProcess._after_fork)  # type: ignore[attr-defined]

    def run_in_background(self, await_ready: bool = True, timeout: float | None = None) -> None:
        """As hivemind's, which would also have this process ignore Ctrl-C from now on."""
        process: Any = self
        process.start()
        if await_ready:
            process.wait_until_ready(timeout)


def _open_sockets() -> dict[int, tuple[int, int]]:
    """Descriptor -> identity of each open socket, but for those that lead to a child of this process."""
    sockets = {}
    for entry in Path("/proc/self/fd").iterdir():
        identity = _socket_identity(int(entry.name))
        if identity is not None and not _leads_to_child(int(entry.name)):
            sockets[int(entry.name)] = identity
    return sockets


def _leads_to_child(descriptor: int) -> bool:
    """True for the socket to torch's shared-memory manager: forked children share tensors through it too."""
    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
        if duplicate.family != socket.AF_UNIX:
            return False
        pid, _, _ = _CREDENTIALS.unpack(duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # not a process of this machine, or gone
        return False
    return int(status.rpartition(")")[2].split()[1]) == os.getpid()


def _socket_identity(descriptor: int) -> tuple[int, int] | None:
    """Device and inode, or None when the descriptor is no socket: numbers are reused, identities are not."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def quiet_hivemind() -> None:
    """Keep hivemind's and its event loops' log lines from users: what matters is in our reports."""
    logging.getLogger("hivemind").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="hivemind")  # deprecations that only its authors can mend


def start_dht(
    *, initial_peers: Sequence[str], listen: Listen, start_s: float, may_be_taken: bool = True, signs: bool = True
) -> hivemind.DHT:
    """Start this process's DHT node and libp2p daemon; without initial peers, of a new swarm. Waits at most `start_s`.

    Args:
        signs: its records, and takes only those of others that are signed: not with hivemind's own optimizer, whose
            records have other names and signatures.
        may_be_taken: another peer may have the same identity. hivemind looks with another daemon first: half a second.

    Raises:
        SwarmError: it cannot listen there, or nobody answers at the initial peers.
    """
    close_doors(listen.secret)
    refusals()  # of an earlier try
    dht = TakesLongCommands(
        initial_peers=list(initial_peers),
        host_maddrs=list(listen.host_maddrs),
        announce_maddrs=list(listen.announce_maddrs) or None,
        identity_path=str(listen.identity_path) if listen.identity_path else None,
        start=False,
        startup_timeout=start_s,
        use_auto_relay=False,
        use_relay=False,
        nat_port_map=False,  # else it has a router open a port to the internet, unasked
        auto_nat=False,  # which looks for relays, and others are asked to dial back
        check_if_identity_free=may_be_taken,
        record_validators=[BoundedRecords(), ReadableRecords(), *(_signed(listen.identity_path) if signs else [])],
    )
    try:
        with in_background():
            dht.run_in_background(await_ready=False)
        _wait_until_ready(dht, start_s)
    except (P2PDaemonError, OSError, FutureTimeoutError, ValidationError, RuntimeError) as error:
        stop_dht(dht)
        where = f"from {', '.join(initial_peers)}" if initial_peers else f"on {', '.join(listen.host_maddrs)}"
        raise SwarmError(f"the DHT did not start {where}: {_reason(error)}") from error
    return dht


def _signed(identity: Path | None) -> list[SignedRecords]:
    """Where this peer's key is known. Of a file that is missing, hivemind makes the key."""
    if identity is not None and not identity.exists():
        P2P.generate_identity(str(identity))
    return [SignedRecords(identity.read_bytes(), of_all=[CHARTER_KEY])] if identity is not None else []


def _wait_until_ready(dht: hivemind.DHT, within_s: float) -> None:
    """As hivemind's, which would wait for a process that has died."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return dht.wait_until_ready(min(1.0, within_s))
        except FutureTimeoutError:
            if not dht.is_alive():
                raise OSError("its process died") from None
            if time.monotonic() > deadline:
                raise


def keep_files_in(folder: str) -> None:
    """Sockets and temporary files of this process and of what it forks; it removes none when it is killed."""
    tempfile.tempdir = folder
    P2P._UNIX_SOCKET_PREFIX = f"/unix{folder}/hivemind-"


class NetworkProcesses:
    """The DHT process and its libp2p daemon, watched from the training process that they belong to: without them its
    peer would train alone and take itself for the last one alive."""

    def __init__(self, dht: hivemind.DHT) -> None:
        node = psutil.Process(dht.pid)
        self._watched = [("DHT process", node)]
        self._watched += [("libp2p daemon", child) for child in node.children() if child.name() == "p2pd"]

    @property
    def dead(self) -> str:
        """The name of one that has died; empty: both live."""
        for name, process in self._watched:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return name
        return ""


def _reason(error: Exception) -> str:
    """What others have against this peer, or the operating system."""
    text = str(error).strip() or type(error).__name__
    if "bootstrap" in text and (why := refusals()):
        return why[0]
    if "bootstrap" in text:  # nobody was reached, or nobody has answered
        return "nobody answers there: does that peer still run, and is its port open?"
    clocks = _CLOCKS.search(text)
    if clocks is None:
        return text
    ahead_s = float(clocks["local"]) - float(clocks["peer"])
    side = "ahead of" if ahead_s > 0 else "behind"
    return (
        f"the clock of this machine is {abs(ahead_s):.1f} s {side} that of the swarm, "
        f"and may differ by {MAX_DHT_TIME_DISCREPANCY_SECONDS} s: set both by NTP"
    )


def stop_dht(dht: hivemind.DHT) -> None:
    """Stop the DHT process and its libp2p daemon, the hard way after hivemind's own grace period."""
    if dht.is_alive():
        dht.shutdown()
    dht.join(timeout=1.0)
    if dht.is_alive():
        dht.kill()
