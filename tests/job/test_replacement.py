"""A lost peer gets a successor, which goes on where the swarm is."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.job.networks import PACED
from tests.job.processes import family, wait_until_gone
from tests.job.runs import Run

BACK_S = 60.0  # imports on a machine that is busy with other tests; 8 s where it is not


def latest_pids(run: Run) -> dict[int, int]:
    return {peer["peer_index"]: peer["pid"] for peer in run.events("PeerStarted")}


def since(run: Run, kind: str, event: dict[str, Any]) -> list[dict[str, Any]]:
    """What this peer has told after an event of it."""
    found = (each for each in run.events(kind) if each["wall_time"] > event["wall_time"])
    return [each for each in found if each["peer_index"] == event["peer_index"]]


@pytest.fixture(scope="module")
def storm(ray: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four peers with Adam: 2 is killed, and its successor; 0, through which the others joined, hangs."""
    folder = tmp_path_factory.mktemp("storm")
    words = ("optimizer.name=Adam", "optimizer.lr=0.001", "swarm.silent_s=3", "train.local_steps=6000")
    model = ("model.factory=tests.job.networks:Hurried", f"model.args={{order: {folder / 'order'}, step_s: 0.01}}")
    with Run(folder / "run", *words, *model, address=ray) as run:
        run.wait_until_training()
        for count in (1, 2):
            victim = latest_pids(run)[2]
            killed = family(victim)
            os.kill(victim, signal.SIGKILL)
            run.wait_for("PeerLost", count=count, within_s=10.0)
            wait_until_gone(killed, within_s=10.0)
            run.wait_for("PeerStarted", count=4 + count, within_s=BACK_S)
        os.kill(latest_pids(run)[0], signal.SIGSTOP)
        run.wait_for("PeerLost", count=3, within_s=20.0)
        run.wait_for("PeerStarted", count=7, within_s=BACK_S)
        (folder / "order").touch()
        assert run.finish().code == 0, run
    return run


def test_each_loss_is_told_with_what_becomes_of_it(storm: Run) -> None:
    lost = storm.events("PeerLost")
    assert [(each["peer_index"], each["is_replaced"]) for each in lost] == [(2, True), (2, True), (0, True)]
    assert [each["cause"].splitlines()[0] for each in lost[:2]] == 2 * ["its process died"]
    assert "swarm.silent_s=3" in lost[2]["cause"]


def test_successors_go_on_where_the_swarm_is(storm: Run) -> None:
    back = [each for each in storm.events("PeerStarted") if each["incarnation"]]
    assert [(each["peer_index"], each["incarnation"]) for each in back] == [(2, 1), (2, 2), (0, 1)]
    for started in back:
        others = [
            each["local_step"]
            for each in storm.events("Progress")
            if each["peer_index"] not in (0, 2) and each["wall_time"] < started["wall_time"]
        ]
        assert started["local_step"] > max(others) - 300  # which are made while it declares itself
        first, *_ = since(storm, "Progress", started)
        assert first["samples"] >= started["samples"] > 0
        lost = max(
            each["samples"]
            for each in storm.events("Progress")
            if each["wall_time"] < started["wall_time"] and each["peer_index"] == started["peer_index"]
        )
        assert started["samples"] == lost, "what was seen is counted once"


def test_successors_average_again(storm: Run) -> None:
    for started in (each for each in storm.events("PeerStarted") if each["incarnation"] and each["peer_index"] == 0):
        outcomes = [report["outcome"] for report in since(storm, "RoundReport", started)]
        assert outcomes.count("averaged") > 0.9 * len(outcomes) > 0


def test_all_peers_finish_and_agree(storm: Run) -> None:
    assert {end["peer_index"] for end in storm.events("PeerFinished")} == {0, 1, 2, 3}
    summary = storm.summary
    assert summary["final_outcome"] == ["averaged"] * 4
    assert summary["consensus_distance"] < 1e-5
    assert summary["merged_accuracy"] > 0.9


def test_peers_that_are_lost_together_with_all_others_get_no_successor(ray: str, tmp_path: Path) -> None:
    words = (*PACED, "swarm.num_peers=2", "train.local_steps=100000")
    with Run(tmp_path / "run", *words, address=ray) as run:
        run.wait_until_training()
        for pid in latest_pids(run).values():
            os.kill(pid, signal.SIGSTOP)  # none may begin its successor from the other
        for pid in latest_pids(run).values():
            os.kill(pid, signal.SIGKILL)
        assert run.finish(within_s=30.0).code == 1, run
    assert "every peer was lost: its process died" in run.stderr.splitlines()[-1]
    assert [each["incarnation"] for each in run.events("PeerStarted")] == [0, 0]
