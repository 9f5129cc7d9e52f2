"""Ctrl-C, kill, kill -9: nothing is left, nothing is lost."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.job.networks import PACED
from tests.job.processes import family, wait_until_gone
from tests.job.runs import Run

ENDLESS = (*PACED, "swarm.num_peers=2", "train.local_steps=1000000", "train.eval_every=20")
STOP_S = 15.0  # promised
END_OF_PROCESSES_S = 5.0


def test_ctrl_c_on_a_terminal_ends_the_run_and_leaves_no_process(ray: str, tmp_path: Path) -> None:
    with Run(tmp_path / "run", *ENDLESS, terminal=True, address=ray) as run:
        run.wait_until_training()
        assert sum("p2pd" in process.command for process in run.processes) == 2
        run.press_ctrl_c()
        assert run.finish(within_s=STOP_S).code == 130, run
        wait_until_gone(run.processes, within_s=END_OF_PROCESSES_S)
    assert "Traceback" not in run.stdout
    assert run.stdout.rfind("\x1b[?25h") > run.stdout.rfind("\x1b[?25l"), "the cursor is back"


def test_what_was_written_before_ctrl_c_is_readable(ray: str, tmp_path: Path) -> None:
    with Run(tmp_path / "run", *ENDLESS, address=ray) as run:
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
        run.wait_for_process("gcs_server")
        run.press_ctrl_c()
        while run.running:
            run.look()  # it goes on starting Ray, to stop it in order
        assert run.finish(within_s=STOP_S).code == 130, run
        wait_until_gone(run.processes, within_s=END_OF_PROCESSES_S)
    assert not run.run_dir.exists()


def test_ctrl_c_while_peers_start_leaves_no_process(tmp_path: Path) -> None:
    with Run(tmp_path / "run", *ENDLESS) as run:
        run.wait_for_process("p2pd")
        run.press_ctrl_c()
        assert run.finish(within_s=STOP_S).code == 130, run
        wait_until_gone(run.processes, within_s=END_OF_PROCESSES_S)
    assert run.summary["rounds"]["averaged"] == 0


def test_sigterm_stops_the_run_as_ctrl_c_does(ray: str, tmp_path: Path) -> None:
    with Run(tmp_path / "run", *ENDLESS, address=ray) as run:
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
def casualties(ray: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of four peers: 2 loses its sidecar, 0, through which the others joined, is killed, and 1 raises."""
    folder = tmp_path_factory.mktemp("casualties")
    order = folder / "order"
    words = ("gossip.group_size=4", "train.local_steps=3000", "swarm.max_replacements=0")
    model = "model.factory=tests.job.networks:Fragile"
    with Run(folder / "run", *words, model, f"model.args={{order: {order}, step_s: 0.005}}", address=ray) as run:
        run.wait_until_training()
        pids = {peer["peer_index"]: peer["pid"] for peer in run.events("PeerStarted")}

        network = family(pids[2]) - {process for process in family(pids[2]) if process.pid == pids[2]}
        (sidecar,) = (process for process in network if process.parent not in {each.pid for each in network})
        told = len(run.events("Notice"))
        os.kill(sidecar.pid, signal.SIGKILL)
        wait_until_gone(network, within_s=2.0)
        run.wait_for("Notice", count=told + 1, within_s=10.0)

        killed = family(pids[0])
        os.kill(pids[0], signal.SIGKILL)
        run.wait_for("PeerLost", count=1, within_s=2.0)
        wait_until_gone(killed, within_s=END_OF_PROCESSES_S)

        raising = family(pids[1])
        order.write_text(str(pids[1]))
        run.wait_for("PeerLost", count=2, within_s=10.0)
        wait_until_gone(raising, within_s=END_OF_PROCESSES_S)

        assert run.finish().code == 0, run
    return run


def test_a_peer_that_loses_its_sidecar_says_so_gets_another_and_goes_on(casualties: Run) -> None:
    (told,) = (each for each in casualties.events("Notice") if "the network process of this peer died" in each["text"])
    assert told["peer_index"] == 2
    later = [r for r in casualties.events("RoundReport") if r["wall_time"] > told["wall_time"] and r["peer_index"] == 2]
    assert any(report["outcome"] == "averaged" for report in later)


def test_a_killed_peer_is_reported_in_2_s_and_leaves_nothing(casualties: Run) -> None:
    killed, _ = casualties.events("PeerLost")
    assert killed["peer_index"] == 0
    assert killed["cause"].startswith("its process died")


def test_a_peer_that_raises_is_reported_with_its_cause(casualties: Run) -> None:
    _, raised = casualties.events("PeerLost")
    assert raised["peer_index"] == 1
    cause, _, place = raised["cause"].splitlines()[0].partition(" (")
    assert cause == "it raised ArithmeticError: a layer of this model has failed"
    assert re.fullmatch(r".*/tests/job/networks\.py, line \d+\)", place)


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


def test_a_swarm_of_which_no_peer_comes_up_fails_with_the_cause(ray: str, tmp_path: Path) -> None:
    with Run(tmp_path / "run", "swarm.num_peers=2", "swarm.start_s=0.5", address=ray) as run:
        assert run.finish(within_s=60.0).code == 1, run
    expected = "ray-gossip: no peer came up; peer 0: it did not come up within swarm.start_s=0.5"
    assert run.stderr.splitlines()[-1] == expected
    assert [lost["peer_index"] for lost in run.summary["peers_lost"]] == [0, 1]
