"""A node is taken away, with notice and without: the run goes on, on the others."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.job.clusters import start_cluster
from tests.job.networks import PACED
from tests.job.runs import Run
from tests.job.waiting import wait_for

NODE = {"num_cpus": 1}
WIDE = ("model.factory=tests.job.networks:Wide", "model.args.step_s=0.01")
LEAVES_S = 5.0
BACK_S = 60.0  # imports on a machine that is busy with other tests


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three peers on three nodes: one node is drained, and goes; another goes without notice."""
    words = ("swarm.num_peers=3", "swarm.placement=SPREAD", "train.local_steps=1000000", *WIDE)
    folder = tmp_path_factory.mktemp("taken") / "run"
    with start_cluster(NODE, NODE, NODE) as cluster, Run(folder, *words, address=cluster.address) as run:
        run.wait_until_training()
        cluster.drain(1)
        run.wait_for("PeerLeft", within_s=30.0)
        run.wait_for("PeerStarted", count=4, within_s=BACK_S)
        cluster.kill(1)
        rounds = len(run.events("SwarmRound"))
        run.wait_for("SwarmRound", count=rounds + 3, within_s=30.0)
        cluster.kill(1)  # the second of those that were added
        run.wait_for("PeerLost", within_s=30.0)
        run.wait_for("PeerStarted", count=5, within_s=BACK_S)
        rounds = len(run.events("SwarmRound"))
        run.wait_for("SwarmRound", count=rounds + 3, within_s=30.0)
        run.press_ctrl_c()
        assert run.finish().code == 130, run
    return run


def test_peers_of_a_node_that_is_drained_leave_soon_and_go_on_elsewhere(taken: Run) -> None:
    (left,) = taken.events("PeerLeft")
    assert left["is_replaced"]
    (notice,) = [each for each in taken.events("Notice") if "is being drained" in each["text"]]
    assert notice["peer_index"] == left["peer_index"]
    assert left["wall_time"] - notice["wall_time"] < LEAVES_S
    started = [each for each in taken.events("PeerStarted") if each["peer_index"] == left["peer_index"]]
    assert [each["incarnation"] for each in started[:2]] == [0, 1]


def test_no_sample_of_theirs_is_lost_and_nobody_waits(taken: Run) -> None:
    (left,) = taken.events("PeerLeft")
    index, back = left["peer_index"], taken.events("PeerStarted")[3]
    before = [each for each in taken.events("Progress") if each["peer_index"] == index]
    last = max((each for each in before if each["wall_time"] <= left["wall_time"]), key=lambda each: each["wall_time"])
    assert last["local_step"] == left["local_step"]
    assert back["peer_index"] == index
    assert back["samples"] == last["samples"]
    others = [
        each
        for each in taken.events("RoundReport")
        if each["peer_index"] != index and left["wall_time"] < each["wall_time"] < back["wall_time"]
    ]
    assert others
    assert {each["outcome"] for each in others} <= {"averaged", "alone"}
    assert max(each["blocked_s"] for each in others) < 0.5


def test_peers_of_a_node_that_goes_without_notice_come_back_from_the_swarm(taken: Run) -> None:
    lost = taken.events("PeerLost")
    assert {each["cause"].splitlines()[0] for each in lost} <= {"its node died", "its process died"}
    assert all(each["is_replaced"] for each in lost)
    back = [each for each in taken.events("PeerStarted") if each["wall_time"] > lost[0]["wall_time"]]
    assert {each["peer_index"] for each in back} >= {each["peer_index"] for each in lost}
    assert all(each["local_step"] > 0 for each in back)


def test_a_run_begins_with_what_is_there_and_grows_and_shrinks_with_the_cluster(tmp_path: Path) -> None:
    words = ("swarm.num_peers=3", "swarm.min_peers=2", "swarm.cpus_per_peer=0.5", "train.local_steps=1000000", *WIDE)
    with start_cluster(NODE) as cluster, Run(tmp_path / "run", *words, address=cluster.address) as run:
        run.wait_until_training()
        assert [each["peer_index"] for each in run.events("PeerStarted")] == [0, 1]
        cluster.add(**NODE)
        grown = run.wait_for("PeerStarted", count=3, within_s=BACK_S)[-1]
        assert (grown["peer_index"], grown["samples"]) == (2, 0)
        run.look()
        cluster.drain(1)
        run.wait_for("PeerLeft", within_s=30.0)
        cluster.kill(1)
        rounds = len(run.events("SwarmRound"))
        run.wait_for("SwarmRound", count=rounds + 3, within_s=30.0)
        cluster.add(**NODE)
        again = run.wait_for("PeerStarted", count=4, within_s=BACK_S)[-1]
        run.press_ctrl_c()
        assert run.finish().code == 130, run
    assert run.events("PeerLost") == []
    assert again["peer_index"] == 2
    seen = [each["samples"] for each in run.events("Progress") if each["peer_index"] == 2]
    assert again["samples"] in seen, "what it had seen counts"
    assert sorted(seen) == seen
    notices = [each["text"] for each in run.events("Notice")]
    assert "there is room for 2 of 3 peers: they begin, and the others come later" in notices


def test_a_peer_whose_process_is_told_to_end_leaves_in_order(ray: str, tmp_path: Path) -> None:
    words = ("swarm.num_peers=2", "train.local_steps=1000000", *PACED)
    with Run(tmp_path / "run", *words, address=ray) as run:
        run.wait_until_training()
        told = run.events("PeerStarted")[-1]
        os.kill(told["pid"], signal.SIGTERM)
        (left,) = run.wait_for("PeerLeft", within_s=10.0)
        assert left["peer_index"] == told["peer_index"]
        back = run.wait_for("PeerStarted", count=3, within_s=BACK_S)[-1]
        assert back["peer_index"] == told["peer_index"]
        wait_for(lambda: not Path(f"/proc/{told['pid']}").exists(), within_s=15.0, what="the end of its process")
        run.press_ctrl_c()
        assert run.finish().code == 130, run
    assert run.events("PeerLost") == []


def test_all_peers_that_are_told_to_end_begin_again_with_what_they_hold(ray: str, tmp_path: Path) -> None:
    words = ("swarm.num_peers=2", "train.local_steps=1000000", *WIDE)
    with Run(tmp_path / "run", *words, address=ray) as run:
        run.wait_until_training()
        for told in run.events("PeerStarted"):
            os.kill(told["pid"], signal.SIGTERM)
        left = run.wait_for("PeerLeft", count=2, within_s=10.0)
        back = run.wait_for("PeerStarted", count=4, within_s=BACK_S)[2:]
        rounds = len(run.events("SwarmRound"))
        run.wait_for("SwarmRound", count=rounds + 2, within_s=30.0)
        run.press_ctrl_c()
        assert run.finish().code == 130, run
    assert run.events("PeerLost") == []
    assert sorted(each["peer_index"] for each in back) == [0, 1]
    for index in (0, 1):
        seen = [each["samples"] for each in run.events("Progress") if each["peer_index"] == index]
        (again,) = [each for each in back if each["peer_index"] == index]
        assert again["samples"] in seen
        assert sorted(seen) == seen
    assert min(each["local_step"] for each in back) >= min(each["local_step"] for each in left)
