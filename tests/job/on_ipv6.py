"""`unshare --map-root-user --net python -m tests.job.on_ipv6 RUN_DIR`: a swarm of two peers on a Ray cluster of two
nodes that know no IPv4, in a network namespace of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.job.clusters import start_cluster
from tests.job.runs import train

ADDRESS = "fd00::2"


def _main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "-6", "address", "add", f"{ADDRESS}/64", "dev", "lo", "nodad"], check=True)
    node = {"num_cpus": len(os.sched_getaffinity(0)), "node_ip_address": ADDRESS}
    words = ("swarm.num_peers=2", "train.local_steps=60", "swarm.placement=STRICT_SPREAD")
    with start_cluster(node, node) as cluster:
        train(Path(sys.argv[1]), *words, address=cluster.address, forked=False)


if __name__ == "__main__":
    _main()
