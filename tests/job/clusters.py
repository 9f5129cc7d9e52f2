"""A Ray cluster of several nodes on this machine, in a process of its own; GPUs are whatever one says. Its workers are
forked (`forked.py`), but for those of a test that has nobody to fork them.

`python -m tests.job.clusters '[{"num_cpus": 2}, …]'` prints its address and lives until its standard input ends. For
each line that it reads, a JSON object, it does something and prints "done": `reserve` bundles, as another job would;
`drain` a node, by number, as one that is about to be taken away; `kill` one; `add` one.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from tests.job import forked
from tests.job.processes import family, wait_until_gone


class Cluster:
    """What the process that runs the cluster tells, and what it is told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._answer()

    def reserve(self, *bundles: dict[str, float]) -> None:
        """Take resources away, for as long as the cluster lives."""
        self._ask({"reserve": bundles})

    def drain(self, node: int) -> None:
        """Give notice that this node will be taken away in a minute, as a spot instance's is."""
        self._ask({"drain": node})

    def add(self, **node: Any) -> None:
        """Let the cluster grow."""
        self._ask({"add": node})

    def kill(self, node: int) -> None:
        """Take this node away, without notice."""
        self._ask({"kill": node})

    def _ask(self, what: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(what)}\n")
        self._process.stdin.flush()
        assert self._answer() == "done"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def start_cluster(*nodes: dict[str, Any]) -> Iterator[Cluster]:
    """Start a cluster of these nodes, the head first; leave nothing of it behind."""
    command = [sys.executable, "-m", "tests.job.clusters", json.dumps(nodes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            cluster = Cluster(process)
            assert cluster.address, "the cluster did not start"
            processes = family(process.pid)
            yield cluster
        finally:
            process.communicate()  # the end of its input
    wait_until_gone(processes, within_s=15.0)


def _main() -> None:
    import ray
    from ray.cluster_utils import Cluster as RayCluster
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason
    from ray.util.placement_group import placement_group

    frugal = {"object_store_memory": 80 * 2**20, "include_log_monitor": False}
    workers = {"setup_worker_path": forked.__file__} if forked.WORKERS in os.environ else {}
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints is no answer
    head, *others = json.loads(sys.argv[1])
    cluster = RayCluster(initialize_head=True, head_node_args={"include_dashboard": False, **frugal, **workers, **head})
    try:
        for node in others:
            cluster.add_node(**frugal, **workers, **node)
        cluster.wait_for_nodes()
        print(cluster.address, file=answers, flush=True)
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        for line in sys.stdin:
            ((what, argument),) = json.loads(line).items()
            if what == "reserve":
                assert placement_group(argument).wait(30)
            elif what == "drain":
                node_id = cluster.list_all_nodes()[argument].node_id
                reason, until_ms = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, round(1000 * (time.time() + 60))
                client = ray._raylet.GcsClient(address=cluster.address)
                assert client.drain_node(node_id, reason, "its price has risen", until_ms) == (True, "")
            elif what == "add":
                cluster.add_node(**frugal, **workers, **argument)
            elif what == "kill":
                cluster.remove_node(cluster.list_all_nodes()[argument], allow_graceful=False)
            print("done", file=answers, flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    _main()
