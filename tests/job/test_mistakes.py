"""What a user can get wrong: one line, exit code 2, nothing started."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.job.runs import finish

NUM_CPUS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["gossip.group_siz=2"], "unknown key gossip.group_siz; did you mean gossip.group_size?"),
        (["gossip.group_size=many"], "gossip.group_size='many' should be a valid integer"),
        (["gossip.group_size=0"], "gossip.group_size=0 should be greater than or equal to 1"),
        (["missing.yaml"], "config file not found: missing.yaml"),
        (["configs/quickstart.yaml", "other.yaml"], "configs/quickstart.yaml and other.yaml: name one config file"),
        (["swarm.num_peers=900"], f"needs 225 CPUs but the cluster has {NUM_CPUS}"),
        (["swarm.gpus_per_peer=64"], "needs 256 GPUs but the cluster has "),
        (["swarm.placement=STRICT_SPREAD"], "swarm.num_peers=4 but the cluster has 1 with room for a peer"),
        (["optimizer.name=sdg"], "optimizer.name=sdg is not in torch.optim; did you mean SGD"),
        (["swarm.num_peers=1500", "swarm.cpus_per_peer=0.001"], "swarm.num_peers=1500 is above the 14"),
        (
            ["model.factory=nowhere:build"],
            "model.factory=nowhere:build: there is no module nowhere; looked in the folder",
        ),
        (["--run-dri=x"], "unknown option --run-dri=x"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(words: list[str], line: str, tmp_path: Path) -> None:
    answer = mistake(*words, "--run-dir", str(tmp_path / "run"))
    assert line in answer
    assert not (tmp_path / "run").exists()


def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("swarm: {num_peers: 4\n")
    assert "broken.yaml, line 2 is not readable as YAML" in mistake(str(broken))


def test_the_folder_of_an_earlier_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").touch()
    assert f"--run-dir {tmp_path} already holds a run" in mistake("--run-dir", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    assert f"cannot write to --run-dir {folder}: {folder.parent} is not a writable folder" in mistake(
        "--run-dir", str(folder)
    )


@pytest.mark.parametrize("folder", ["/proc/run", "/sys/run"])
def test_a_folder_that_looks_writable_and_is_not_is_refused(folder: str) -> None:
    assert f"cannot write to --run-dir {folder}: " in mistake("--run-dir", folder)


@pytest.mark.parametrize("name", ["config.yaml", "model.pt", "summary.json"])
def test_a_file_of_the_user_s_own_is_not_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    assert f"would overwrite the {name} that is there" in mistake("--run-dir", str(tmp_path))
    assert (tmp_path / name).read_text() == "mine"


def test_the_report_of_an_earlier_sweep_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "best.yaml").write_text("mine")
    done = finish("tune", "configs/tune_digits.yaml", "--run-dir", str(tmp_path), within_s=60.0)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert "would overwrite the best.yaml that is there" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["best.yaml"]


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("127.0.0.1:1", "cannot connect to the Ray cluster at 127.0.0.1:1: Connection refused"),
        ("nonsense", "cannot connect to the Ray cluster at nonsense: "),
        ("http://127.0.0.1:8265", "RAY_ADDRESS=http://127.0.0.1:8265 is where jobs are submitted"),
        ("ray://127.0.0.1:10001", "cannot drive a swarm through Ray Client (ray://127.0.0.1:10001)"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line(address: str, line: str) -> None:
    assert line in mistake(RAY_ADDRESS=address)


def test_a_sweep_too_says_that_an_address_is_that_of_jobs() -> None:
    words = ("tune", "configs/tune_digits.yaml", "tune.searcher=optuna")
    done = finish(*words, within_s=60.0, RAY_ADDRESS="http://127.0.0.1:8265")
    assert (done.returncode, done.stdout) == (2, ""), done
    assert "RAY_ADDRESS=http://127.0.0.1:8265 is where jobs are submitted" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["train", "--help"],
        ["train", "gossip.group_size=0"],
        ["tune", "configs/tune_digits.yaml", "space.gossip.steps.choice=[0]"],
    ],
)
def test_help_and_mistakes_are_answered_in_a_second(words: list[str]) -> None:
    def seconds() -> float:
        started = time.monotonic()
        finish(*words, within_s=60.0)
        return time.monotonic() - started

    assert any(seconds() < 1.0 for _ in range(5))  # of which four may meet a busy machine


def mistake(*words: str, **environment: str) -> str:
    """The one line with which `ray-gossip train` answers."""
    done = finish("train", *words, within_s=60.0, **environment)
    assert (done.returncode, done.stdout) == (2, ""), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("ray-gossip: ")
    return line
