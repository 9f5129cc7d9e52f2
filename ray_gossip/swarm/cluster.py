"""The Ray cluster: connect to it, or start a local one, and leave nothing of it behind."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import ray

from ray_gossip.config import SwarmConfig
from ray_gossip.errors import UserError
from ray_gossip.resources import Node, check_fits, this_machine

_LOCAL_OBJECT_STORE_BYTES = 200 * 2**20  # reports and one model pass through it, nothing else
_DIAL_S = 5.0  # longest that the cluster's first answer may take


@contextlib.contextmanager
def cluster(config: SwarmConfig, *, address: str | None) -> Iterator[None]:
    """Connect to the Ray cluster at `address`, or start a local one; leave it (or end it) afterwards.

    Raises:
        UserError: there is no such cluster, or (ResourceError) it cannot hold the swarm. Nothing of the swarm has
            been started then.
    """
    if ray.is_initialized():
        check_fits(config, nodes())
        yield
        return
    try:
        if address is None:
            _start_local()
        else:
            _connect(address)
        check_fits(config, nodes())
        yield
    finally:
        ray.shutdown()


def connected_address() -> str | None:
    """The Ray cluster that this process is connected to already."""
    return ray.get_runtime_context().gcs_address if ray.is_initialized() else None


def _start_local() -> None:
    try:
        with _own_signal_handlers(hold_ctrl_c=True):
            ray.init(
                address="local",
                num_cpus=int(this_machine()["CPU"]),
                include_dashboard=False,
                object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
                logging_level="ERROR",
                log_to_driver=False,  # what matters is in our records
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot start Ray on this machine: {_first_line(error)}") from error


def _connect(address: str) -> None:
    if address.startswith("ray://"):
        raise UserError(f"cannot drive a swarm through Ray Client ({address}): use ray job submit")
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=_DIAL_S).close()
        with _own_signal_handlers(hold_ctrl_c=False):
            # no runtime environment here: the job's own one counts, and Ray takes it from one source only
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot connect to the Ray cluster at {address}: {_first_line(error)}") from error


@contextlib.contextmanager
def _own_signal_handlers(*, hold_ctrl_c: bool) -> Iterator[None]:
    """Keep ray.init from taking over.

    Its handlers of SIGTERM print a stack and abort the process 3 s later, whatever it is doing: ours come back. A
    Ctrl-C while it starts processes would leave some of them behind: the first one is held back until it is done.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may touch handlers
        yield
        return
    terminate, interrupt = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    held: list[int] = []

    def hold(number: int, frame: Any) -> None:
        if held and callable(interrupt):
            interrupt(number, frame)
        held.append(number)

    if hold_ctrl_c and callable(interrupt):
        signal.signal(signal.SIGINT, hold)
    try:
        yield
    except SystemExit as ended:  # so Ray answers SIGTERM meanwhile
        held.append(signal.SIGTERM)
        if ended.code != signal.SIGTERM:
            raise
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, terminate)
    if held:
        signal.raise_signal(held[0])


def nodes() -> list[Node]:
    """What each live node of the cluster has."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [{"CPU": node.get("CPU", 0.0), "GPU": node.get("GPU", 0.0)} for node in resources]


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
