"""What a user can get wrong: one line, exit code 2, nothing started."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.job.runs import finish


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["gossip.group_siz=2"], "unknown key gossip.group_siz; did you mean gossip.group_size?"),
        (["gossip.group_size=many"], "gossip.group_size='many'"),
        (["gossip.group_size=0"], "gossip.group_size=0"),
        (["missing.yaml"], "config file not found: missing.yaml"),
        (["swarm.num_peers=900"], f"needs 225 CPUs but the cluster has {len(os.sched_getaffinity(0))}"),
        (["swarm.gpus_per_peer=64"], "needs 256 GPUs but the cluster has 0"),
        (["optimizer.name=sdg"], "optimizer.name=sdg"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(words: list[str], line: str, tmp_path: Path) -> None:
    done = finish("train", *words, "--run-dir", str(tmp_path / "run"), timeout=60.0)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert line in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("swarm: {num_peers: 4\n")
    done = finish("train", str(broken), timeout=60.0)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "broken.yaml is not readable as YAML" in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["train", "gossip.group_size=0"]])
def test_help_and_mistakes_are_answered_in_a_second(words: list[str]) -> None:
    took_s = []
    for _ in range(3):
        started = time.monotonic()
        finish(*words, timeout=60.0)
        took_s.append(time.monotonic() - started)
    assert min(took_s) < 1.0, took_s
