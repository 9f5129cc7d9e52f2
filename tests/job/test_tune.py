"""Sweeps on real Ray: trials that end early, lose a peer or their driver, are interrupted and resumed."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import metadata

from ray_gossip import config
from tests.job.networks import PACED
from tests.job.processes import family, forked, wait_until_gone
from tests.job.runs import Run, finish

SWEEP_S = 230.0
END_OF_PROCESSES_S = 10.0


def report(run: Run) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return told


@pytest.fixture(scope="session")
def sweep(ray: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trials one by one: a baseline that loses a peer, a good one whose driver is killed once, and a hopeless one."""
    words = (
        *PACED,
        "swarm.num_peers=2",
        "gossip.group_size=2",
        "train.local_steps=600",
        "train.eval_every=50",
        "space.optimizer.lr.grid=[0.05, 0.0000001]",
        "space.gossip.alpha.grid=[0.9]",
        "tune.baselines=all",
        "tune.scheduler=asha",
        "tune.grace_steps=50",
        "tune.max_concurrent=1",
    )
    with Run(tmp_path_factory.mktemp("sweep") / "sweep", *words, command="tune", address=ray) as run:
        first, *_ = run.wait_for("PeerStarted", count=2, trial="trial-001")
        run.wait_for("SwarmRound", trial="trial-001")
        of_first = {process for peer in run.events("PeerStarted", trial="trial-001") for process in family(peer["pid"])}
        os.kill(first["pid"], signal.SIGKILL)

        run.wait_for("SwarmRound", trial="trial-002")
        run.look()
        (driver,) = (process for process in forked() if process.command.startswith("ray::ResourceTrainable"))
        os.kill(driver.pid, signal.SIGKILL)
        wait_until_gone(of_first, within_s=END_OF_PROCESSES_S)  # it may take as long as a trial

        run.wait_for("PeerStarted", count=2, trial="trial-003")
        run.look()
        assert run.finish(within_s=SWEEP_S).code == 0, run
        wait_until_gone(run.processes, within_s=END_OF_PROCESSES_S)
    return run


@pytest.mark.timeout(2 * SWEEP_S)
def test_the_last_line_of_output_names_the_best_trial_and_counts_the_ends(sweep: Run) -> None:
    told = report(sweep)
    assert told == json.loads((sweep.run_dir / "report.json").read_text())
    assert told["best"]["trial"] in ("trial-001", "trial-002")
    assert told["best"]["metrics"]["merged_accuracy"] > 0.9
    assert told["trials"] == {"finished": 2, "stopped_early": 1, "failed": 0, "unfinished": 0}


def test_a_trial_whose_peer_dies_finishes(sweep: Run) -> None:
    (baseline,) = (each for each in report(sweep)["ranking"] if each["baseline"] == "all")
    assert (baseline["trial"], baseline["end"], baseline["metrics"]["local_step"]) == ("trial-001", "finished", 600)
    assert [lost["peer_index"] for lost in sweep.events("PeerLost", trial="trial-001")] == [0]


def test_a_trial_whose_driver_is_killed_is_started_again(sweep: Run) -> None:
    (retried,) = (each for each in report(sweep)["ranking"] if each["trial"] == "trial-002")
    assert (retried["end"], retried["num_failures"]) == ("finished", 1)
    assert len(sweep.events("PeerStarted", trial="trial-002")) == 2
    assert len(sweep.events("PeerStarted", trial="trial-002/attempt-1")) == 2


def test_a_hopeless_trial_is_stopped_early_and_stays_readable(sweep: Run) -> None:
    (hopeless,) = (each for each in report(sweep)["ranking"] if each["end"] == "stopped_early")
    assert hopeless["values"]["optimizer.lr"] == 1e-7
    assert 50 <= hopeless["metrics"]["local_step"] < 600
    summary = json.loads((sweep.run_dir / hopeless["trial"] / "summary.json").read_text())
    assert summary["merged_accuracy"] is None


def test_the_best_config_is_one_that_train_accepts(sweep: Run) -> None:
    best = config.load(sweep.run_dir / "best.yaml")
    assert best.optimizer.lr == 0.05
    assert best.train.local_steps == 600


def test_the_layout_is_that_of_tune(sweep: Run) -> None:
    for trial in ("trial-001", "trial-002", "trial-003"):
        folder = sweep.run_dir / trial
        assert json.loads((folder / "params.json").read_text())["gossip.alpha"] in (0.9, 1.0)
        rows = list(csv.DictReader((folder / "progress.csv").read_text().splitlines()))
        assert len(rows) == len((folder / "result.json").read_text().splitlines()) > 1
        assert {"peer_accuracy", "merged_accuracy", "bytes_sent", "consensus_distance", "local_step"} <= set(rows[0])


def test_tensorboard_has_the_hparams_of_every_trial_and_the_curves_of_its_peers(sweep: Run) -> None:
    board = EventMultiplexer().AddRunsFromDirectory(str(sweep.run_dir))
    board.Reload()
    sessions = board.PluginRunToTagToContent(metadata.PLUGIN_NAME)
    assert metadata.EXPERIMENT_TAG in sessions["."]
    for trial in ("trial-001", "trial-002", "trial-003"):
        started = metadata.parse_session_start_info_plugin_data(sessions[trial][metadata.SESSION_START_INFO_TAG])
        assert {"gossip.alpha", "optimizer.lr", "trial.baseline"} <= set(started.hparams)
        assert metadata.SESSION_END_INFO_TAG in sessions[trial]
        assert board.Tensors(trial, "trial/peer_accuracy")
        for run in ("peer-00", "peer-01", "swarm"):
            assert board.Tensors(f"{trial}/{run}", "train/loss")


def test_there_are_pictures(sweep: Run) -> None:
    for name in ("bytes.png", "seconds.png", "parallel.png"):
        assert (sweep.run_dir / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.timeout(SWEEP_S)
def test_an_interrupted_sweep_goes_on_with_what_has_not_finished_where_it_was_saved(ray: str, tmp_path: Path) -> None:
    words = (
        "swarm.num_peers=1",
        *PACED,
        "train.local_steps=600",
        "checkpoint.every_steps=50",
        "space.gossip.steps.grid=[10, 20]",
        "tune.scheduler=none",
        "tune.max_concurrent=1",
    )
    with Run(tmp_path / "sweep", *words, command="tune") as run:  # on a Ray of its own
        run.wait_for("Saved", trial="trial-002")
        run.look()
        run.press_ctrl_c()
        assert run.finish(within_s=40.0).code == 130, run
        wait_until_gone(run.processes, within_s=END_OF_PROCESSES_S)
    assert json.loads((run.run_dir / "report.json").read_text())["trials"]["unfinished"] == 1
    first = (run.run_dir / "trial-001" / "events.jsonl").read_bytes()

    with Run(tmp_path / "sweep", "--resume", command="tune", address=ray) as again:
        assert again.finish().code == 0, again
    assert report(again)["trials"] == {"finished": 2, "stopped_early": 0, "failed": 0, "unfinished": 0}
    assert (run.run_dir / "trial-001" / "events.jsonl").read_bytes() == first
    began = [peer["local_step"] for peer in again.events("PeerStarted", trial="trial-002")]
    saved = [each["local_step"] for each in again.events("Saved", trial="trial-002")]
    assert began[0] == 0 < 50 <= began[1] <= max(saved), "it goes on where it was saved"
    assert [end["samples"] for end in again.events("PeerFinished", trial="trial-002")] == [600 * 32]
    assert not list(run.run_dir.glob("trial-*/checkpoints")), "nothing goes on from there any more"


def test_a_folder_that_holds_a_sweep_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").touch()
    done = finish("tune", "configs/tune_digits.yaml", "--run-dir", str(tmp_path), within_s=60.0)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == f"ray-gossip: --run-dir {tmp_path} already holds a sweep: add --resume, or name a new folder\n"
    )
