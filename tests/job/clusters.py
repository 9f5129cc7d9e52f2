"""A Ray cluster of several nodes on this machine, in a process of its own; GPUs are whatever one says. Its workers are
forked (`forked.py`), but for those of a test that has nobody to fork them.

`python -m tests.job.clusters '[{"num_cpus": 2}, …]'` prints its address and lives until its standard input ends. For
each line that it reads, a JSON list of bundles, it reserves them, as another job would, and prints "reserved".
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
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
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(bundles)}\n")
        self._process.stdin.flush()
        assert self._answer() == "reserved"

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
        for line in sys.stdin:
            ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
            assert placement_group(json.loads(line)).wait(30)
            print("reserved", file=answers, flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    _main()
