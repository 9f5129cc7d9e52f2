"""TensorBoard beside a run: it says where it is, shows the curves, and ends with the command, however that ends."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from psutil import Process

from ray_gossip.board import board
from ray_gossip.config import Config
from ray_gossip.errors import UserError
from ray_gossip.telemetry import Observer, RunLog
from tests.job.processes import wait_until_gone

PROGRAM = """
import sys, time
from pathlib import Path
from ray_gossip.board import board
with board(Path(sys.argv[1]), sys.stdout):
    time.sleep(600)
"""


def get(link: str) -> Any:
    with urllib.request.urlopen(link, timeout=30) as answer:
        return json.load(answer)


def test_says_where_it_is_shows_the_curves_and_ends_with_the_run(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run", Observer(Config()), run_id="a"):
        pass
    before, said = set(psutil.Process().children()), io.StringIO()
    with board(tmp_path, said):
        link = said.getvalue().removeprefix("curves: ").strip()
        assert "run/swarm" in get(f"{link}data/runs")
        assert "how well it learns" in json.dumps(get(f"{link}data/plugin/custom_scalars/layout"))
        ours = set(psutil.Process().children()) - before
    wait_until_gone(ours, within_s=5.0)
    assert said.getvalue().count("\n") == 1  # nobody looks at it: it does not stay


def test_ends_when_the_command_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        assert command.stdout.readline().startswith("curves: http://")
        below = Process(command.pid).children(recursive=True)
        command.kill()
    assert below
    wait_until_gone(below, within_s=5.0)


@pytest.mark.parametrize(("program", "why"), [("/bin/false", "it ended without a word"), ("/bin/echo", "-m tensor")])
def test_one_that_does_not_start_is_one_line(
    program: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(UserError, match=f"^TensorBoard did not start: {why}"), board(tmp_path, io.StringIO()):
        pass
