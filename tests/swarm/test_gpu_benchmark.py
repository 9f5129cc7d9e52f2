"""The program for a GPU works where there is none, so that it does the first time that there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
ENV = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def test_it_measures_everything_once_on_a_cpu() -> None:
    ended = subprocess.run([sys.executable, PROGRAM, "--tiny"], capture_output=True, text=True, timeout=300, env=ENV)
    assert ended.returncode == 0, f"{ended.stdout[-2000:]}{ended.stderr[-2000:]}"
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["images_per_s"]["as it is"].keys() == {"plain loop", "trainer", "trainer, augments"}
    assert found["state_mb"] > 1.0
    assert found["peers"]["2"]["of_alone"] > 0
    assert found["peers"]["2"]["averaged"] > 0


def test_without_a_gpu_it_says_what_to_do() -> None:
    ended = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, timeout=60, env=ENV)
    assert ended.returncode == 2
    assert "there is no GPU here: --tiny shows on a CPU that the program works" in ended.stderr
