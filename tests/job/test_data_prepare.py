"""`ray-gossip data prepare`, by several processes at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.published import write_tiny_imagenet

READY = "tiny_imagenet is ready: 400 training and 10,000 test images, 64x64 in 3 channels, 200 classes\n"
DEADLINE_S = 100


def prepare(root: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "ray_gossip.cli",
        "data",
        "prepare",
        "data.name=tiny_imagenet",
        f"data.root={root}",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.timeout(2 * DEADLINE_S)
def test_processes_that_start_together_are_safe_even_after_one_was_killed_while_it_decoded(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    killed = prepare(tmp_path)
    deadline = time.monotonic() + DEADLINE_S
    while not (tmp_path / "tiny-imagenet-200.unfinished").exists():
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "tiny-imagenet-200.json").exists()

    together = [prepare(tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=DEADLINE_S) for process in together]
    assert outputs == [(READY, "")] * 2
    assert [process.returncode for process in together] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".tiny-imagenet-200.lock",
        "tiny-imagenet-200",
        "tiny-imagenet-200.json",
        "tiny-imagenet-200.npy",
    ]


def test_missing_data_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    process = prepare(tmp_path)
    output, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, output) == (2, "")
    assert errors.startswith(f"ray-gossip: data.name=tiny_imagenet: there is no {tmp_path}/tiny-imagenet-200; fetch ")
    assert errors.count("\n") == 1
