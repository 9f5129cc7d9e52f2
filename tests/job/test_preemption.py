"""Nodes come and go, with notice and without: the run goes on with what is there."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.job.clusters import start_cluster
from tests.job.runs import Run
from tests.job.waiting import wait_for

NODE = {"num_cpus": 1}
WIDE = ("model.factory=tests.job.networks:Wide", "model.args.step_s=0.01", "train.local_steps=1000000")
LEAVES_S = 5.0
BACK_S = 60.0  # imports on a machine that is busy with other tests


def wait_for_rounds(run: Run) -> None:
    """Until the swarm has averaged a few times more."""
    run.wait_for("SwarmRound", count=len(run.events("SwarmRound")) + 3, within_s=30.0)


def progress(run: Run, index: int) -> list[dict[str, Any]]:
    return [each for each in run.events("Progress") if each["peer_index"] == index]


@pytest.fixture(scope="module")
def elastic(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two nodes have room for two of three peers. A third node comes, is drained and goes; another comes in its place,
    and goes without notice; one more comes."""
    words = ("swarm.num_peers=3", "swarm.min_peers=2", "swarm.cpus_per_peer=1", *WIDE)
    folder = tmp_path_factory.mktemp("elastic") / "run"
    with start_cluster(NODE, NODE) as cluster, Run(folder, *words, address=cluster.address) as run:
        run.wait_until_training()
        cluster.add(**NODE)
        run.wait_for("PeerStarted", count=3, within_s=BACK_S)
        run.look()
        wait_for_rounds(run)
        cluster.drain(2)
        run.wait_for("PeerLeft", within_s=30.0)
        cluster.kill(2)
        wait_for_rounds(run)
        cluster.add(**NODE)
        run.wait_for("PeerStarted", count=4, within_s=BACK_S)
        wait_for_rounds(run)
        cluster.kill(2)
        run.wait_for("PeerLost", within_s=30.0)
        cluster.add(**NODE)
        run.wait_for("PeerStarted", count=5, within_s=BACK_S)
        wait_for_rounds(run)
        run.press_ctrl_c()
        assert run.finish().code == 130, run
    return run


def test_a_run_begins_with_the_peers_that_have_room_and_others_come_when_it_is_there(elastic: Run) -> None:
    first, second, third, *_ = elastic.events("PeerStarted")
    assert first["local_step"] == second["local_step"] == 0
    assert third["local_step"] > 0
    assert third["samples"] == 0
    (notice,) = [each for each in elastic.events("Notice") if "there is room for" in each["text"]]
    assert notice["text"] == "there is room for 2 of 3 peers: they begin, and the others come later"


def test_peers_of_a_node_that_is_drained_leave_soon_and_go_on_when_there_is_room(elastic: Run) -> None:
    (left,) = elastic.events("PeerLeft")
    assert left["is_replaced"]
    (notice,) = [each for each in elastic.events("Notice") if "is being drained" in each["text"]]
    assert notice["peer_index"] == left["peer_index"]
    assert left["wall_time"] - notice["wall_time"] < LEAVES_S
    assert elastic.events("PeerStarted")[3]["peer_index"] == left["peer_index"]
    assert all(each["wall_time"] > left["wall_time"] for each in elastic.events("PeerLost")), "its node could go"


def test_no_sample_of_theirs_is_lost_and_nobody_waits(elastic: Run) -> None:
    (left,) = elastic.events("PeerLeft")
    index, back = left["peer_index"], elastic.events("PeerStarted")[3]
    last = [each for each in progress(elastic, index) if each["wall_time"] <= left["wall_time"]][-1]
    assert last["local_step"] == left["local_step"]
    assert back["samples"] == last["samples"]
    others = [
        each
        for each in elastic.events("RoundReport")
        if each["peer_index"] != index and left["wall_time"] < each["wall_time"] < back["wall_time"]
    ]
    assert others
    assert {each["outcome"] for each in others} <= {"averaged", "alone"}
    assert max(each["blocked_s"] for each in others) < 0.5


def test_peers_of_a_node_that_goes_without_notice_come_back_from_the_swarm(elastic: Run) -> None:
    lost = elastic.events("PeerLost")
    assert {each["cause"].splitlines()[0] for each in lost} <= {"its node died", "its process died"}
    assert all(each["is_replaced"] for each in lost)
    back = elastic.events("PeerStarted")[4]
    assert back["peer_index"] == lost[0]["peer_index"]
    assert back["local_step"] > 0


def test_peers_whose_processes_are_told_to_end_leave_in_order_and_all_at_once_begin_again(
    ray: str, tmp_path: Path
) -> None:
    with Run(tmp_path / "run", "swarm.num_peers=2", *WIDE, address=ray) as run:
        run.wait_until_training()
        told = run.events("PeerStarted")[-1]
        os.kill(told["pid"], signal.SIGTERM)
        (left,) = run.wait_for("PeerLeft", within_s=10.0)
        assert left["peer_index"] == told["peer_index"]
        back = run.wait_for("PeerStarted", count=3, within_s=BACK_S)[-1]
        assert back["peer_index"] == told["peer_index"]
        wait_for(lambda: not Path(f"/proc/{told['pid']}").exists(), within_s=15.0, what="the end of its process")
        wait_for_rounds(run)
        for peer in {each["peer_index"]: each for each in run.events("PeerStarted")}.values():
            os.kill(peer["pid"], signal.SIGTERM)
        both = run.wait_for("PeerLeft", count=3, within_s=10.0)[1:]
        again = run.wait_for("PeerStarted", count=5, within_s=BACK_S)[3:]
        wait_for_rounds(run)
        run.press_ctrl_c()
        assert run.finish().code == 130, run
    assert run.events("PeerLost") == []
    assert sorted(each["peer_index"] for each in again) == [0, 1]
    assert min(each["local_step"] for each in again) >= min(each["local_step"] for each in both)
    for started in (back, *again):
        seen = [each["samples"] for each in progress(run, started["peer_index"])]
        assert started["samples"] in seen
        assert sorted(seen) == seen, "what it has seen is counted once"
