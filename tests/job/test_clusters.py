"""On a Ray cluster that is there already: two nodes of this machine, each with two CPUs and, so it says, a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.job.clusters import Cluster, start_cluster
from tests.job.processes import wait_until_gone
from tests.job.runs import Run, finish

NODE = {"num_cpus": 2, "num_gpus": 1}
TWO_GPUS = ("swarm.num_peers=2", "swarm.gpus_per_peer=1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with start_cluster(NODE, NODE) as cluster:
        yield cluster


def test_a_swarm_spreads_over_nodes_and_reserves_their_gpus(cluster: Cluster, tmp_path: Path) -> None:
    words = (*TWO_GPUS, "swarm.placement=STRICT_SPREAD", "train.local_steps=200")
    with Run(tmp_path / "run", *words, address=cluster.address) as run:
        run.wait_until_training()
        assert run.finish().code == 0, run
        wait_until_gone(run.processes, within_s=10.0)
    assert run.summary["merged_accuracy"] > 0.9
    assert run.summary["rounds"]["failed"] == 0
    assert [peer["node"] for peer in run.events("PeerStarted")]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["swarm.num_peers=3", "swarm.gpus_per_peer=1"], "needs 3 GPUs but the cluster has 2"),
        (["swarm.num_peers=20"], "needs 5 CPUs but the cluster has 4"),
        (["swarm.num_peers=3", "swarm.placement=STRICT_SPREAD"], "swarm.num_peers=3 but the cluster has 2"),
    ],
)
def test_a_swarm_that_is_too_large_is_refused_with_both_numbers(
    words: list[str], line: str, cluster: Cluster, tmp_path: Path
) -> None:
    done = finish("train", *words, "--run-dir", str(tmp_path / "run"), RAY_ADDRESS=cluster.address)
    assert (done.returncode, done.stdout) == (2, ""), done
    (answer,) = done.stderr.splitlines()
    assert line in answer
    assert not (tmp_path / "run").exists()


@pytest.mark.timeout(300)
def test_trials_get_whole_bundles_and_wait_for_each_other(cluster: Cluster, tmp_path: Path) -> None:
    words = (*TWO_GPUS, "swarm.placement=STRICT_SPREAD", "train.local_steps=100", "train.eval_every=50")
    sweep = ("space.gossip.steps.grid=[10, 20]", "tune.scheduler=none")
    with Run(tmp_path / "sweep", *words, *sweep, command="tune", address=cluster.address) as run:
        for trial in ("trial-001", "trial-002"):
            run.wait_for("PeerStarted", count=2, trial=trial)
            run.look()
        assert run.finish().code == 0, run
        wait_until_gone(run.processes, within_s=10.0)
    ends = {trial: run.events("PeerFinished", trial=trial)[-1]["wall_time"] for trial in ("trial-001", "trial-002")}
    starts = {trial: run.events("PeerStarted", trial=trial)[0]["wall_time"] for trial in ends}
    first, second = sorted(starts, key=lambda trial: starts[trial])
    assert ends[first] < starts[second]


def test_a_sweep_of_which_a_trial_can_never_fit_is_refused_with_both_numbers(cluster: Cluster, tmp_path: Path) -> None:
    words = ("swarm.gpus_per_peer=1", "space.swarm.num_peers.choice=[2, 3]", "train.eval_every=50")
    done = finish("tune", *words, "--run-dir", str(tmp_path / "sweep"), RAY_ADDRESS=cluster.address)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert "swarm.num_peers=3 with swarm.gpus_per_peer=1 needs 3 GPUs but the cluster has 2" in done.stderr
    assert not (tmp_path / "sweep").exists()


def test_custom_resources_and_the_kind_of_gpu_decide_where_peers_are_placed(tmp_path: Path) -> None:
    plain, fast = {"num_cpus": 4}, {"num_cpus": 2, "resources": {"accelerator_type:H100": 1, "link": 2}}
    words = ("swarm.accelerator_type=H100", "swarm.resources_per_peer={link: 1}", "train.local_steps=60")
    with start_cluster(plain, fast) as cluster:
        refused = finish("train", *words, "--run-dir", str(tmp_path / "three"), RAY_ADDRESS=cluster.address)
        with Run(tmp_path / "run", *words, "swarm.num_peers=2", address=cluster.address) as run:
            assert run.finish().code == 0, run
    assert run.summary["final_outcome"] == ["averaged", "averaged"]
    assert refused.returncode == 2, refused
    assert "swarm.resources_per_peer.link=1 needs 4 link but the cluster has 2" in refused.stderr


def test_a_swarm_waits_for_room_says_so_and_ctrl_c_ends_the_wait(cluster: Cluster, tmp_path: Path) -> None:
    cluster.reserve({"GPU": 1})
    with Run(tmp_path / "run", *TWO_GPUS, address=cluster.address) as run:
        (notice,) = run.wait_for("Notice", within_s=30.0)
        assert "waiting for Ray to find room for 2 times" in notice["text"]
        run.press_ctrl_c()
        assert run.finish(within_s=15.0).code == 130, run
