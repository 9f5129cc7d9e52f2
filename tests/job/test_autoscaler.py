"""A cluster that begins with a head of 0 CPUs and grows by Ray's own autoscaler, whose nodes are processes here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.job.processes import family, left, wait_until_gone
from tests.job.runs import ROOT, Run
from tests.job.test_jobs import BIN, free_ports
from tests.job.waiting import wait_for

_EMPTY = (
    "docker initialization_commands setup_commands head_setup_commands worker_setup_commands head_start_ray_commands "
    "worker_start_ray_commands file_mounts cluster_synced_files rsync_exclude rsync_filter"
)
HEAD_ID = "f" * 51 + "00000"  # as Ray's provider of processes names it

START_S = 60.0
_WATCHED = """
import ray, sys, time
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
from ray.experimental.internal_kv import _internal_kv_get as get
while "autoscaler_report" not in (get("__autoscaling_status") or b"").decode():
    time.sleep(0.1)
"""


def autoscaling(gcs_address: str) -> dict[str, Any]:
    """Up to two nodes of two CPUs."""
    empty: dict[str, Any] = {key: {} if key in ("docker", "file_mounts") else [] for key in _EMPTY.split()}
    node = {"resources": {"CPU": 2, "object_store_memory": 80 * 2**20}, "node_config": {}, "max_workers": 2}
    return {
        **empty,
        "cluster_name": "grows",
        "max_workers": 2,
        "provider": {
            "type": "fake_multinode",
            "head_node_id": HEAD_ID,
            "gcs_address": gcs_address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {"ssh_user": "nobody"},
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {**node, "min_workers": 0},
        },
        "head_node_type": "head",
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 5,
        "file_mounts_sync_continuously": False,
    }


@pytest.fixture(scope="module")
def autoscaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of its head."""
    gcs, client, agent = free_ports(3)
    address = f"127.0.0.1:{gcs}"
    config = tmp_path_factory.mktemp("growing") / "config.json"
    config.write_text(json.dumps(autoscaling(address)))
    words = {
        "port": gcs,
        "node-ip-address": "127.0.0.1",
        "ray-client-server-port": client,
        "dashboard-agent-listen-port": agent,
        "include-dashboard": "false",
        "num-cpus": 0,
        "object-store-memory": 80 * 2**20,
        "temp-dir": os.environ["RAY_TMPDIR"],
        "autoscaling-config": config,
    }
    environment = {**os.environ, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    with (
        (config.parent / "head.log").open("w") as log,
        subprocess.Popen(
            [
                BIN / "ray",
                "start",
                "--head",
                "--block",
                "--disable-usage-stats",
                *(f"--{k}={v}" for k, v in words.items()),
            ],
            env=environment | {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as head,
    ):
        try:
            wait_for(lambda: is_there(gcs), within_s=START_S, what="a head")
            subprocess.run([sys.executable, "-c", _WATCHED, address], cwd=ROOT, timeout=START_S, check=True)
            yield address
        finally:
            processes = family(head.pid)
            head.send_signal(signal.SIGTERM)
            head.wait(timeout=60.0)
            for process in left(processes):  # nodes whose provider has ended
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            wait_until_gone(processes, within_s=30.0)


def is_there(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def test_a_swarm_waits_for_nodes_that_an_autoscaler_brings(autoscaled: str, tmp_path: Path) -> None:
    words = ("swarm.num_peers=2", "swarm.cpus_per_peer=2", "train.local_steps=60")
    with Run(tmp_path / "run", *words, address=autoscaled) as run:
        assert run.finish().code == 0, run
    assert run.summary["final_outcome"] == ["averaged", "averaged"]
    (notice,) = (n["text"] for n in run.events("Notice") if "waiting" in n["text"])
    assert notice.endswith("nodes are missing, which its autoscaler is to bring")


def test_a_swarm_that_no_node_of_an_autoscaler_could_hold_ends_with_the_fix(autoscaled: str, tmp_path: Path) -> None:
    words = ("swarm.num_peers=1", "swarm.cpus_per_peer=64", "swarm.start_s=6")
    with Run(tmp_path / "run", *words, address=autoscaled) as run:
        assert run.finish(within_s=60.0).code == 1, run
    assert run.stderr.splitlines()[-1].endswith(
        "within swarm.start_s=6: nodes are missing, which its autoscaler is to bring; "
        "ask for less, or raise swarm.start_s"
    )
