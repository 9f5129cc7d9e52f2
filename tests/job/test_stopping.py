"""Ctrl-C, kill, kill -9: nothing is left, nothing is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.job.processes import Process, family, wait_until_gone
from tests.job.runs import Run
from tests.job.waiting import wait_for

ENDLESS = ("swarm.num_peers=2", "train.local_steps=1000000", "train.eval_every=20")
STOP_S = 15.0  # promised
END_OF_PROCESSES_S = 5.0


def test_ctrl_c_on_a_terminal_ends_the_run_and_leaves_no_process(tmp_path: Path) -> None:
    with Run(tmp_path / "run", *ENDLESS, terminal=True) as run:
        run.wait_until_training()
        assert sum("p2pd" in process.command for process in run.processes) == 2
        run.press_ctrl_c()
        assert run.finish(within_s=STOP_S).code == 130, run
        wait_until_gone(run.processes, within_s=END_OF_PROCESSES_S)
    assert "Traceback" not in run.stdout
    assert run.stdout.rfind("\x1b[?25h") > run.stdout.rfind("\x1b[?25l"), "the cursor is back"


def test_what_was_written_before_ctrl_c_is_readable(tmp_path: Path) -> None:
    with Run(tmp_path / "run", *ENDLESS) as run:
        run.wait_until_training()
        run.press_ctrl_c()
        assert run.finish(within_s=STOP_S).code == 130, run
    assert run.summary["rounds"]["averaged"] > 0
    assert run.summary["merged_accuracy"] is None
    assert run.events("Progress")
    assert (run.run_dir / "events.jsonl").read_text().endswith("}\n")
    for folder in ("peer-00", "peer-01", "swarm"):
        curves = EventAccumulator(str(run.run_dir / folder))
        curves.Reload()
        assert curves.Scalars("train/loss")
    assert run.stderr.splitlines()[-1] == "ray-gossip: stopped by SIGINT"


def test_ctrl_c_while_ray_starts_leaves_no_process(tmp_path: Path) -> None:
    with Run(tmp_path / "run", *ENDLESS) as run:
        wait_for(lambda: any("gcs_server" in p.command for p in run.look()), within_s=60.0, what="the start of Ray")
        run.press_ctrl_c()
        while run.running:
            run.look()  # it goes on starting Ray, to stop it in order
        assert run.finish(within_s=STOP_S).code == 130, run
        wait_until_gone(run.processes, within_s=END_OF_PROCESSES_S)
    assert not run.run_dir.exists()


def test_ctrl_c_while_peers_start_leaves_no_process(tmp_path: Path) -> None:
    with Run(tmp_path / "run", *ENDLESS) as run:
        wait_for(lambda: any("p2pd" in p.command for p in run.look()), within_s=60.0, what="the first peer's p2pd")
        run.press_ctrl_c()
        assert run.finish(within_s=STOP_S).code == 130, run
        wait_until_gone(run.processes, within_s=END_OF_PROCESSES_S)
    assert run.summary["rounds"]["averaged"] == 0


def test_sigterm_stops_the_run_as_ctrl_c_does(tmp_path: Path) -> None:
    with Run(tmp_path / "run", *ENDLESS) as run:
        run.wait_until_training()
        run.send(signal.SIGTERM)
        assert run.finish(within_s=STOP_S).code == 128 + signal.SIGTERM, run
        wait_until_gone(run.processes, within_s=END_OF_PROCESSES_S)
    assert run.summary["rounds"]["averaged"] > 0


def test_a_driver_that_is_killed_leaves_no_peer(tmp_path: Path) -> None:
    with Run(tmp_path / "run", *ENDLESS) as run:
        run.wait_until_training()
        run.send(signal.SIGKILL)
        run.finish()
        # Ray's agents of a killed cluster follow within a minute
        peers = {process for process in run.processes if "Agent" not in process.command}
        wait_until_gone(peers, within_s=15.0)
    assert run.events("Progress")


@pytest.fixture(scope="session")
def casualties(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of four peers: 0, through which the others joined, is killed; 1 loses its averager, so that it raises."""
    words = ("gossip.group_size=4", "train.local_steps=2500")
    with Run(tmp_path_factory.mktemp("casualties") / "run", *words) as run:
        run.wait_until_training()
        pids = {peer["peer_index"]: peer["pid"] for peer in run.events("PeerStarted")}

        killed = family(pids[0])
        os.kill(pids[0], signal.SIGKILL)
        run.wait_for("PeerLost", count=1, within_s=2.0)
        wait_until_gone(killed, within_s=END_OF_PROCESSES_S)

        bereft = family(pids[1])
        os.kill(averager(bereft, pids[1]).pid, signal.SIGKILL)
        run.wait_for("PeerLost", count=2, within_s=10.0)
        wait_until_gone(bereft, within_s=END_OF_PROCESSES_S)

        assert run.finish().code == 0, run
    return run


def averager(peer: set[Process], pid: int) -> Process:
    """The fork of the actor that is not its DHT, below which p2pd runs."""
    parents = {process.parent for process in peer}
    (found,) = (p for p in peer if p.parent == pid and p.pid not in parents)
    return found


def test_a_killed_peer_is_reported_in_2_s_and_leaves_nothing(casualties: Run) -> None:
    killed, _ = casualties.events("PeerLost")
    assert killed["peer_index"] == 0
    assert killed["cause"].startswith("its process died")


def test_a_peer_that_raises_is_reported_with_its_cause(casualties: Run) -> None:
    _, raised = casualties.events("PeerLost")
    assert raised["peer_index"] == 1
    assert raised["cause"].splitlines()[0] == "it raised SwarmError: the averager process of this peer died"


def test_the_others_go_on_averaging_and_finish(casualties: Run) -> None:
    _, raised = casualties.events("PeerLost")
    later = [r for r in casualties.events("RoundReport") if r["wall_time"] > raised["wall_time"] + 1.0]
    assert any(report["outcome"] == "averaged" for report in later)
    assert {report["peer_index"] for report in later} == {2, 3}
    assert {finished["peer_index"] for finished in casualties.events("PeerFinished")} == {2, 3}


def test_the_summary_names_the_lost(casualties: Run) -> None:
    summary = casualties.summary
    assert [lost["peer_index"] for lost in summary["peers_lost"]] == [0, 1]
    assert summary["peer_accuracy"][:2] == [None, None]
    assert min(summary["peer_accuracy"][2:]) > 0.9
    assert summary["merged_accuracy"] > 0.9


def test_a_swarm_of_which_no_peer_comes_up_fails_with_the_cause(tmp_path: Path) -> None:
    with Run(tmp_path / "run", "swarm.num_peers=2", "swarm.start_s=0.5") as run:
        assert run.finish(within_s=60.0).code == 1, run
    expected = "ray-gossip: no peer came up; peer 0: it did not come up within swarm.start_s=0.5"
    assert run.stderr.splitlines()[-1] == expected
    assert [lost["peer_index"] for lost in run.summary["peers_lost"]] == [0, 1]
