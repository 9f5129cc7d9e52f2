"""A model, a data set and a loop of the user's own, outside this repository."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.job.runs import ROOT, finish_in

SCRIPT = str(Path(sys.executable).with_name("ray-gossip"))
BY_BIGRAMS = 0.272  # share of the characters that are right when each is guessed from the one before it alone
NOT_NICE = {
    "RAY_worker_niceness": "0"
}  # else a Ray of the user's own yields to whatever else a terminal runs: 24 s become 170


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the user's package is."""
    shutil.copytree(ROOT / "tests" / "yours" / "charlm", tmp_path / "charlm")
    return tmp_path


def test_a_transformer_and_texts_of_the_users_own_train_by_config_alone(ray: str, folder: Path) -> None:
    cluster = {"RAY_ADDRESS": ray}
    done = finish_in(folder, [SCRIPT, "train", "charlm/config.yaml", "--run-dir", "run", "--json"], environment=cluster)
    assert done.returncode == 0, done
    summary = json.loads(done.stdout)
    assert summary["merged_accuracy"] > BY_BIGRAMS + 0.05
    assert summary["rounds"]["averaged"] >= 12  # of about 20: a peer may be done before the other's last round
    assert summary["consensus_distance"] < 1e-3


def test_a_regression_with_metrics_of_the_users_own_trains_by_config_alone(ray: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "yours" / "diabetes", tmp_path / "diabetes")
    command = [SCRIPT, "train", "diabetes/config.yaml", "--run-dir", "run", "--tensorboard"]
    done = finish_in(tmp_path, command, environment={"RAY_ADDRESS": ray})
    assert done.returncode == 0, done
    assert re.match(r"curves: http://localhost:\d+/\n", done.stdout)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["merged_loss"] < 0.75  # of the variance; a straight line leaves 0.5
    assert summary["merged_metrics"]["mae"] == pytest.approx(0.65, abs=0.15)
    assert summary["merged_accuracy"] is None
    assert summary["rounds"]["averaged"] >= 2  # steps of a millisecond: few rounds fit in
    assert re.search(r"; test loss 0\.\d+; ", done.stdout)
    assert re.search(r"\nloss +merged model 0\.\d+, mae 0\.\d+, peers 0\.\d+ to 0\.\d+\n", done.stdout)


def test_a_mistake_that_only_peers_can_find_is_one_line_too(ray: str, folder: Path) -> None:
    words = [
        str(folder / "charlm" / "config.yaml"),
        "swarm.num_peers=1",
        "data.args.num_characters=10",
        "--run-dir",
        str(folder / "run"),
    ]
    done = finish_in(ROOT, [SCRIPT, "train", *words], environment={"PYTHONPATH": str(folder), "RAY_ADDRESS": ray})
    assert done.returncode == 2, done
    assert done.stderr.splitlines()[-1] == (
        "ray-gossip: data.factory=charlm.text:next_characters: train_inputs holds no samples: its shape is [0, 32]"
    )


def test_a_script_trains_from_python_on_the_ray_it_has_started_and_its_own_loops_are_peers_in_actors(
    folder: Path,
) -> None:
    shutil.copy(ROOT / "tests" / "yours" / "script.py", folder)
    # in the folder of the tests' Ray it would find the cluster that they share
    with tempfile.TemporaryDirectory(prefix="rg-", dir="/tmp", ignore_cleanup_errors=True) as short:
        command = [sys.executable, "script.py", str(folder / "run")]
        done = finish_in(folder, command, environment={"RAY_TMPDIR": short, **NOT_NICE})
    assert done.returncode == 0, done
    answer = json.loads(done.stdout)  # and nothing else: it is not verbose
    assert answer["metrics"]["merged_accuracy"] > BY_BIGRAMS
    assert answer["path"] == str(folder / "run")
    assert answer["saved"] == ["model.pt"]
    assert answer["still_connected"]
    (rounds, ended, weights), (_, other_ended, other_weights) = answer["loops"]
    assert rounds["averaged"] > 0
    assert ended == other_ended == "averaged"
    assert weights == pytest.approx(other_weights, abs=1e-5)
