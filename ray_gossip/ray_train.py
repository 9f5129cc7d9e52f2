"""Ray Train's own configs, as they are meant here. Read by their fields, so that this loads no Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_gossip.errors import ConfigError
from ray_gossip.storage import is_uri

_WITHOUT_END = 1_000_000_000


def swarm_of(scaling: Any) -> dict[str, Any]:
    """The keys of the `swarm` section that a ScalingConfig stands for.

    Raises:
        ConfigError: it asks for something that there is not here.
    """
    if scaling is None:
        return {}
    known = ("num_workers", "use_gpu", "resources_per_worker", "placement_strategy", "accelerator_type")
    _refuse_others("scaling_config", scaling, known)
    least, most = scaling.num_workers if isinstance(scaling.num_workers, tuple) else (None, scaling.num_workers)
    resources = dict(scaling.resources_per_worker or {})
    gpus = resources.pop("GPU", 1.0 if scaling.use_gpu else 0.0)
    swarm: dict[str, Any] = {"num_peers": most, "gpus_per_peer": gpus}
    if least is not None:
        swarm["min_peers"] = least
    swarm["cpus_per_peer"] = resources.pop("CPU", 1.0)  # as Ray Train reserves it
    swarm["placement"] = scaling.placement_strategy
    if scaling.accelerator_type is not None:
        swarm["accelerator_type"] = scaling.accelerator_type
    if resources:
        swarm["resources_per_peer"] = resources
    return swarm


def failures_of(run: Any) -> dict[str, Any]:
    """The keys of the `swarm` section that a RunConfig's FailureConfig stands for: a failure ends one peer, and what is
    started again is that peer.

    Raises:
        ConfigError: it asks for something that there is not here.
    """
    failure = None if run is None else getattr(run, "failure_config", None)
    if failure is None:
        return {}
    _refuse_others("failure_config", failure, ("max_failures",))
    most = failure.max_failures
    if most == 0:  # as it is where nobody has said anything
        return {}
    return {"max_replacements": _WITHOUT_END if most == -1 else most}


def checkpoints_of(run: Any) -> dict[str, Any]:
    """The keys of the `checkpoint` section that a RunConfig's CheckpointConfig stands for.

    Raises:
        ConfigError: it asks for something that there is not here.
    """
    given = None if run is None else getattr(run, "checkpoint_config", None)
    if given is None:
        return {}
    known = ("num_to_keep", "checkpoint_score_attribute", "checkpoint_score_order")
    _refuse_others("checkpoint_config", given, known)
    keys: dict[str, Any] = {} if given.num_to_keep is None else {"keep": given.num_to_keep}
    if given.checkpoint_score_attribute is not None:
        keys["best_by"] = f"{given.checkpoint_score_order}:{given.checkpoint_score_attribute}"
    return keys


def run_dir_of(run: Any) -> Path | None:
    """The folder that a RunConfig names; None: any new one.

    Raises:
        ConfigError: it asks for something that there is not here.
    """
    if run is None:
        return None
    _refuse_others("run_config", run, ("name", "storage_path", "failure_config", "checkpoint_config"))
    place = run.storage_path
    for key, value in (("name", run.name), ("storage_path", place)):
        if not isinstance(value, (str, Path)):
            raise ConfigError(f"run_config.{key}={value!r} is no text")
    if len(Path(run.name).parts) != 1 or run.name == "..":
        raise ConfigError(f"run_config.name={run.name} is no name of one folder; what is above it is storage_path")
    if place is not None and is_uri(place):
        raise ConfigError(f"run_config.storage_path={place} is a URI, which only a sweep writes to; name a folder")
    return Path(place) / str(run.name)  # both have values of Ray Train's own where none were given


def _refuse_others(called: str, config: Any, known: tuple[str, ...]) -> None:
    """Raise ConfigError for a field that was set and means nothing here."""
    wanted = called.title().replace("_", "")
    if wanted not in {kind.__name__ for kind in type(config).__mro__}:
        raise ConfigError(f"{called} is a {type(config).__name__}, not Ray Train's {wanted}(...)")
    usual = _usual(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in known and not _is_same(value, usual.get(field.name)):
            raise ConfigError(f"{called}.{field.name}={value}: it has no meaning for a swarm; leave it out")


def _usual(kind: type) -> Mapping[str, Any]:
    """What the fields are when nothing was said: some are filled in by the class itself."""
    made = kind()
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}


def _is_same(value: Any, usual: Any) -> bool:
    return value is usual or (type(value) is type(usual) and repr(value) == repr(usual))
