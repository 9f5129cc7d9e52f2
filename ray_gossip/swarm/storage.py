"""Whether a place for results is one and the same on all nodes."""

from __future__ import annotations

import secrets
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_gossip import storage
from ray_gossip.errors import ConfigError

_PROBE_S = 60.0  # a node may have to start a worker first


def check_storage(place: str, *, key: str = "--run-dir ") -> None:
    """Write to a folder, or to where a URI leads, and have every node read that and write beside it.

    Args:
        key: what the place was given by.

    Raises:
        ConfigError: it cannot be written to, or a node sees another folder of that name, or none.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    name = f".probe-{secrets.token_hex(4)}"
    try:
        storage.write(place, name, b"written by the driver")
    except OSError as error:
        raise ConfigError(f"cannot write to {key}{place}: {_reason(error)}") from error
    try:
        answers = {
            _probe.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(place, name): node["NodeManagerHostname"]
            for node in (nodes if len(nodes) > 1 else ())
        }
        ready, late = ray.wait(list(answers), num_returns=len(answers), timeout=_PROBE_S) if answers else ([], [])
        wrong = [f"{answers[answer]} ({told})" for answer in ready if (told := _told(answer))]
        wrong += [f"{answers[answer]} (no answer within {_PROBE_S:g} s)" for answer in late]
    finally:
        storage.remove(place, name)
    if wrong:
        raise ConfigError(
            f"{key}{place} is not the same on every node: not on {', '.join(wrong)}; name a folder on a file "
            "system that all nodes share, or a URI such as s3://bucket/name"
        )


def _told(answer: Any) -> str:
    """What a node says of the place."""
    try:
        told: str = ray.get(answer)
        return told
    except (
        ray.exceptions.TaskUnschedulableError,
        ray.exceptions.NodeDiedError,
    ):  # it has gone since it was listed, as an autoscaler's idle ones do
        return ""
    except ray.exceptions.RayError as error:
        return str(error).splitlines()[0]


@ray.remote(max_retries=0)
def _probe(place: str, name: str) -> str:
    """What is wrong with the driver's place on this node; empty: nothing."""
    mine = f"{name}-{secrets.token_hex(4)}"
    try:
        storage.read(place, name)
        storage.write(place, mine, b"")
        storage.remove(place, mine)
    except OSError as error:
        return _reason(error)
    return ""


def _reason(error: OSError) -> str:
    return error.strerror or str(error).splitlines()[0]
