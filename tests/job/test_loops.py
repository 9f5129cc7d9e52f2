"""Training loops of the user's own, under a driver: by config, and from Python as with Ray Train."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.job.runs import ROOT, finish_forked, finish_in
from tests.job.scripts import changed

FAILED_S = 100.0  # until a declaration has expired, on busy cores too; swarm.start_s is 180


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "tests" / "yours" / "loops", tmp_path / "loops")
    return tmp_path


def test_a_loop_by_config_has_curves_by_peer_a_merged_model_and_a_summary(ray: str, folder: Path) -> None:
    words = ["train.loop=loops.digits:train_loop", "train.loop_args={lr: 0.1, epochs: 60}", "swarm.num_peers=2"]
    command = ["ray-gossip", "train", *words, "gossip.group_size=2", "gossip.steps=20", "--run-dir", "run"]
    done = finish_forked(folder, command, environment={"RAY_ADDRESS": ray})
    assert done.returncode == 0, done
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["reported"]["accuracy"] > 0.9
    assert summary["rounds"]["averaged"] >= 20
    assert summary["final_outcome"] == ["averaged", "averaged"]
    assert summary["consensus_distance"] < 1e-3
    state = torch.load(folder / "run" / "model.pt", weights_only=True)
    assert state["0.weight"].shape == (64, 64)
    boards = {run: EventAccumulator(str(folder / "run" / run)).Reload() for run in ("peer-00", "peer-01", "swarm")}
    for run, board in boards.items():
        accuracies = board.Scalars("accuracy")
        assert len(accuracies) == 60 or run == "swarm", run  # a point of the swarm waits for the slower one
        assert accuracies[-1].value > 0.9
        assert run != "swarm" or accuracies[-1].value == pytest.approx(summary["reported"]["accuracy"])
    assert "reported  loss " in done.stdout


def run_loop(ray: str, folder: Path, loop: str, args: str) -> subprocess.CompletedProcess[str]:
    words = [f"train.loop=loops.digits:{loop}", f"train.loop_args={args}", "swarm.num_peers=2", "gossip.group_size=2"]
    command = ["ray-gossip", "train", *words, "gossip.steps=20", "--run-dir", "run"]
    return finish_forked(folder, command, environment={"RAY_ADDRESS": ray})


def test_a_peer_computes_in_as_many_threads_as_it_has_cpus(ray: str, folder: Path) -> None:
    words = ["train.loop=loops.digits:goes_on", "train.loop_args={steps: 1, dies_at: 2}", "swarm.num_peers=1"]
    command = ["ray-gossip", "train", *words, "swarm.cpus_per_peer=2", "--run-dir", "run"]
    done = finish_forked(folder, command, environment={"RAY_ADDRESS": ray})
    assert done.returncode == 0, done
    assert json.loads((folder / "run" / "summary.json").read_text())["reported"]["threads"] == 2


@pytest.mark.parametrize("code", [0, 3])
def test_a_loop_that_calls_sys_exit_has_ended_or_failed(ray: str, folder: Path, code: int) -> None:
    done = run_loop(ray, folder, "exits", f"{{lr: 0.1, epochs: 20, code: {code}}}")
    assert done.returncode == (0 if code == 0 else 1), done
    assert "began with different models" not in done.stdout + done.stderr
    if code == 0:
        assert json.loads((folder / "run" / "summary.json").read_text())["final_outcome"] == ["averaged"] * 2
    else:
        assert "the loop called sys.exit(3)" in done.stderr.splitlines()[-1]


def test_a_loop_that_fails_on_one_peer_at_once_holds_up_no_other(ray: str, folder: Path) -> None:
    began = time.monotonic()
    done = run_loop(ray, folder, "fails_on_rank_0", "{steps: 200}")
    assert done.returncode == 0, done
    assert time.monotonic() - began < FAILED_S, done
    (lost,) = json.loads((folder / "run" / "summary.json").read_text())["peers_lost"]
    assert (lost["peer_index"], "rank 0 has a bug" in lost["cause"]) == (0, True)


def test_a_loop_that_goes_on_at_the_swarms_local_step_can_be_replaced(ray: str, folder: Path) -> None:
    words = ["train.loop=loops.digits:goes_on", "train.loop_args={steps: 2000, dies_at: 200}", "swarm.num_peers=3"]
    command = ["ray-gossip", "train", *words, "gossip.steps=20", "swarm.max_replacements=1", "--run-dir", "run"]
    done = finish_forked(folder, command, environment={"RAY_ADDRESS": ray})
    assert done.returncode == 0, done
    events = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
    (lost,) = (event for event in events if event["event"] == "PeerLost")
    assert (lost["peer_index"], lost["is_replaced"]) == (1, True)
    back = next(event for event in events if event["event"] == "PeerStarted" and event["incarnation"])
    assert 200 < back["local_step"] < 2000
    (began,) = (
        each for each in events if each["event"] == "Reported" and each["metrics"]["began_at"] == back["local_step"]
    )
    assert began["metrics"]["has_momentum"]
    assert {each["metrics"]["threads"] for each in events if each["event"] == "Reported"} == {1}
    ends = {event["peer_index"]: event for event in events if event["event"] == "PeerFinished"}
    assert [ends[index]["local_step"] for index in range(3)] == [2000] * 3
    assert 32 * (2000 - back["local_step"]) < ends[1]["samples"] <= 32 * (2200 - back["local_step"])
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["final_outcome"] == ["averaged"] * 3
    assert summary["consensus_distance"] < 1e-5


def test_a_tuner_over_a_function_that_calls_fit_has_hparams_and_the_curves_of_peers(ray: str, folder: Path) -> None:
    command = [sys.executable, "loops/tuner.py", str(folder / "out")]
    done = finish_in(folder, command, environment={"RAY_ADDRESS": ray, "PYTHONPATH": f"{folder}:{ROOT}"})
    assert done.returncode == 0, done
    _, lr, accuracy, best = next(line for line in done.stdout.splitlines() if line.startswith("best ")).split()
    assert (float(lr), float(accuracy) > 0.9) == (0.1, True)
    trials = sorted(path.parent for path in (folder / "out" / "sweep").glob("*/summary.json"))
    assert len(trials) == 2
    assert Path(best) in trials
    for trial in trials:
        results = [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]
        assert len(results) == 21  # each report of all peers, and the end
        summary = json.loads((trial / "summary.json").read_text())
        assert results[-1]["accuracy"] == pytest.approx(summary["reported"]["accuracy"])
        assert summary["final_outcome"] == ["averaged", "averaged"]
        own = EventAccumulator(str(trial)).Reload()
        assert "_hparams_/session_start_info" in own.summary_metadata
        assert "ray/tune/accuracy" in own.Tags()["scalars"]
        for peer in ("peer-00", "peer-01"):
            assert len(EventAccumulator(str(trial / peer)).Reload().Scalars("accuracy")) == 20


def test_a_sweep_over_a_loop_ranks_what_it_reports(ray: str, folder: Path) -> None:
    words = [
        "train.loop=loops.digits:train_loop",
        "train.loop_args.epochs=20",
        "space.train.loop_args.lr.grid=[1e-5, 0.1]",
    ]
    swarm = ["swarm.num_peers=2", "gossip.group_size=2", "gossip.steps=20"]
    command = [
        "ray-gossip",
        "tune",
        *words,
        *swarm,
        "tune.objectives=max:accuracy",
        "tune.num_samples=1",
        "--run-dir",
        "sweep",
    ]
    done = finish_forked(folder, command, environment={"RAY_ADDRESS": ray})
    assert done.returncode == 0, done
    report = json.loads((folder / "sweep" / "report.json").read_text())
    assert report["trials"]["finished"] == 2
    assert report["best"]["values"]["train.loop_args.lr"] == 0.1
    good, bad = (each["metrics"]["accuracy"] for each in report["ranking"])
    assert good > 0.9 > bad
    assert (folder / "sweep" / "seconds.png").exists()
    hparams = EventAccumulator(str(folder / "sweep" / report["best"]["trial"])).Reload()
    assert hparams.Scalars("trial/accuracy")[-1].value == pytest.approx(good)


def test_what_init_writes_runs_by_the_command_that_it_prints(ray: str, tmp_path: Path) -> None:
    done = finish_forked(tmp_path, ["ray-gossip", "init", "mine"], environment={})
    assert done.returncode == 0, done
    _, _, command = done.stdout.strip().partition("; next: cd mine && ")
    assert command == "ray-gossip train config.yaml"
    words = ["ray-gossip", *command.split()[1:], "--run-dir", "run"]
    done = finish_forked(tmp_path / "mine", words, environment={"RAY_ADDRESS": ray})
    assert done.returncode == 0, done
    summary = json.loads((tmp_path / "mine" / "run" / "summary.json").read_text())
    assert summary["num_peers"] == 4
    assert summary["reported"]["accuracy"] > 0.9
    assert summary["final_outcome"] == ["averaged"] * 4
    again = finish_forked(tmp_path, ["ray-gossip", "init", "mine"], environment={})
    assert (again.returncode, again.stderr) == (
        2,
        "ray-gossip: mine/config.yaml is there already: move it away, or name another folder\n",
    )


def test_a_script_of_ray_train_changes_three_lines_and_alone_gives_what_it_gave(ray: str, folder: Path) -> None:
    script = folder / "loops" / "torch_trainer.py"
    ours, models = changed(script, to="our_torch_trainer.py"), []
    # Ray Train takes a second or two for each report; two peers need a second to meet
    for each, num_workers, epochs in ((script, 1, 3), (ours, 1, 3), (ours, 2, 20)):
        place, saved = folder / f"{each.stem}-{num_workers}", folder / f"{each.stem}-{num_workers}-models"
        saved.mkdir()
        command = [str(each), str(num_workers), str(place), str(saved), str(epochs)]
        done = finish_forked(folder, command, environment={"RAY_ADDRESS": ray})
        assert done.returncode == 0, done
        models.append([torch.load(model, weights_only=True) for model in saved.iterdir()])
    (theirs,), (alone,), both = models
    assert len(both) == 2
    assert len(theirs) == 6
    for name, tensor in theirs.items():
        assert torch.equal(tensor, alone[name]), name  # bit for bit
    run = folder / "our_torch_trainer-2" / "digits"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["final_outcome"] == ["averaged"] * 2
    assert summary["rounds"]["averaged"] > 0
    assert summary["reported"]["epoch"] == 19
    merged = torch.load(run / "model.pt", weights_only=True)
    assert not torch.equal(merged["0.weight"], alone["0.weight"])
    for peer in ("peer-00", "peer-01"):
        assert len(EventAccumulator(str(run / peer)).Reload().Scalars("loss")) == 20
