"""How the workers of each node are started: forked from one process there that has imported torch, if that can be."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_gossip.forking import launcher

_ASK_S = 20.0  # a node that has not answered by then starts its workers as Ray does
# A job whose workers need a Python or a container of their own has Ray start them.
_OWN_PYTHON = {"pip", "uv", "conda", "container", "image_uri", "py_executable", "nsight", "rocprof_sys"}
_NORMAL = {"env_vars": {"RAY_worker_niceness": "0"}}  # Ray gives workers less of a processor than others get


class Launchers:
    """Of the nodes on which peers are placed.

    Args:
        is_used: False: Ray starts all workers by itself.
    """

    def __init__(self, *, is_used: bool) -> None:
        context = ray.get_runtime_context()
        self._is_used = is_used and not _OWN_PYTHON & {*context.runtime_env}
        self._commands: dict[str, Any] = {context.get_node_id(): _command()}  # or a reference to it, by node id

    def look(self, nodes: Iterable[str]) -> None:
        """Ask those that are not known yet; waits for nothing."""
        for node in {*nodes} - self._commands.keys() if self._is_used else ():
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            self._commands[node] = _command_there.options(scheduling_strategy=there).remote()

    def environment(self, node: str) -> dict[str, Any]:
        """The runtime environment of a worker on this node; empty: Ray has not chosen one yet."""
        if not self._is_used or not node:
            return _NORMAL
        self.look([node])
        if not isinstance(self._commands[node], str):
            try:
                self._commands[node] = ray.get(self._commands[node], timeout=_ASK_S)
            except ray.exceptions.RayError:  # it is slow, or gone
                self._commands[node] = ""
        command = self._commands[node]
        return {**_NORMAL, "py_executable": command} if command else _NORMAL


def _command() -> str:
    return shlex.join([sys.executable, "-I", "-S", launcher.__file__, sys.executable])


@ray.remote(num_cpus=0, max_retries=0)
def _command_there() -> str:
    return _command()
