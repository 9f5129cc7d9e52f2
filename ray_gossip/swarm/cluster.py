"""The Ray cluster: connect to it, or start a local one, and leave nothing of it behind."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence

import ray

from ray_gossip.config import SwarmConfig
from ray_gossip.errors import ResourceError, UserError
from ray_gossip.resources import Node, check_fits
from ray_gossip.swarm.autoscaler import may_grow
from ray_gossip.swarm.local import local_ray, own_signal_handlers

_TOO_SLOW = "timed out during startup"  # as Ray says it after 30 s: a second try may find a machine with less to do
_DIAL_S = 5.0  # longest that the cluster's first answer may take


@contextlib.contextmanager
def cluster(swarms: Sequence[SwarmConfig], *, address: str | None) -> Iterator[None]:
    """Connect to the Ray cluster at `address`, or start a local one; leave it (or end it) afterwards.

    Raises:
        UserError: there is no such cluster, or (ResourceError) it cannot hold each of the swarms, and no autoscaler is
            there to change that. Nothing of them has been started then.
    """
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            stack.enter_context(_local() if address is None else _connected(address))
        _check_all_fit(swarms)
        yield


def _check_all_fit(swarms: Sequence[SwarmConfig]) -> None:
    for swarm in swarms:
        try:
            check_fits(swarm, nodes())
        except ResourceError:
            if not may_grow():
                raise


def connected_address() -> str | None:
    """The Ray cluster that this process is connected to already."""
    return ray.get_runtime_context().gcs_address if ray.is_initialized() else None


@contextlib.contextmanager
def _local() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for is_last in (False, True):
            try:
                stack.enter_context(local_ray())
                break
            except (OSError, RuntimeError, ValueError) as error:
                if is_last or _TOO_SLOW not in str(error):
                    raise UserError(f"cannot start Ray on this machine: {_first_line(error)}") from error
        yield


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    try:
        _connect(address)
        yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=_DIAL_S).close()
        with own_signal_handlers(hold_ctrl_c=False):
            # no runtime environment here: the job's own one counts, and Ray takes it from one source only
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except ray.exceptions.RayError as error:  # of authentication, which is asked for before anything else
        reason = _first_line(error).split(". ")[0]
        raise UserError(
            f"cannot connect to the Ray cluster at {address}: {reason}; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to "
            "the file that holds the cluster's token"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot connect to the Ray cluster at {address}: {_first_line(error)}") from error


def nodes() -> list[Node]:
    """What each live node of the cluster has."""
    return [{"CPU": 0.0, "GPU": 0.0, **node["Resources"]} for node in ray.nodes() if node["Alive"]]


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
