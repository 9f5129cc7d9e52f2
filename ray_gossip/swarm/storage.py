"""Whether a folder is one and the same on all nodes."""

from __future__ import annotations

import secrets
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_gossip.errors import ConfigError

_PROBE_S = 60.0  # a node may have to start a worker first


def check_storage(folder: Path) -> None:
    """Have every node read a file that the driver wrote into this folder, and write one beside it.

    Raises:
        ConfigError: a node sees another folder of that name, or none.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / f".probe-{secrets.token_hex(4)}"
    token.write_text("written by the driver")
    try:
        answers = {
            _probe.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(token)): node["NodeManagerHostname"]
            for node in nodes
        }
        ready, late = ray.wait(list(answers), num_returns=len(answers), timeout=_PROBE_S)
        wrong = [f"{answers[answer]} ({told})" for answer in ready if (told := ray.get(answer))]
        wrong += [f"{answers[answer]} (no answer within {_PROBE_S:g} s)" for answer in late]
    finally:
        token.unlink(missing_ok=True)
    if wrong:
        raise ConfigError(
            f"--run-dir {folder} is not the same folder on every node: not on {', '.join(wrong)}; name one on a file "
            "system that all nodes share"
        )


@ray.remote(max_retries=0)
def _probe(token: str) -> str:
    """What is wrong with the driver's folder on this node; empty: nothing."""
    path = Path(token)
    try:
        path.read_text()
        mine = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
        mine.write_text("")
        mine.unlink()
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""
