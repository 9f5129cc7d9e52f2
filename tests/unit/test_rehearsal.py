"""What a process of its own finds out before anything starts."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ray_gossip import rehearsal
from ray_gossip.config import Config, load
from ray_gossip.errors import ConfigError
from ray_gossip.factory import Factories
from ray_gossip.rehearsal import rehearse


def own(folder: Path, code: str, *words: str) -> Config:
    (folder / "mine.py").write_text(f"{code}\n")
    return load(None, ["model.factory=mine:build", *words])


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (
            "import os\nprint('noise')\nos._exit(7)",
            "model.factory=mine:build: importing it ended the process, with exit code 7",
        ),
        ("import sys\nsys.exit()", "model.factory=mine:build: cannot import mine: SystemExit"),
        (
            "from somewhere_else import build",
            "model.factory=mine:build: cannot import mine: ModuleNotFoundError: No mod",
        ),
        (
            "import functools\n\nbuild = functools.partial(int, 3)\nbuild = 3",
            "model.factory=mine:build cannot be called",
        ),
        (
            "def wrapped(f):\n    return lambda dim: f\n\n\n@wrapped\ndef build():\n    ...",
            "model.factory=mine:build has the parameters (dim): missing a required",
        ),
    ],
)
def test_what_only_an_import_tells_is_one_line(
    code: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    config = own(tmp_path, code)
    rehearse([config], imports=False)
    rehearse([config], factories=Factories(model=int), imports=True)
    with pytest.raises(ConfigError) as error:
        rehearse([Config(), config], imports=True)
    assert str(error.value).startswith(line)
    assert "mine" not in sys.modules
    assert capfd.readouterr() == ("", "")


def test_a_module_that_takes_too_long_is_believed_and_what_it_started_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(rehearsal, "_LIMIT_S", 8.0)
    code = f"import subprocess, time\nsubprocess.Popen(['sleep', '1234'], cwd={str(tmp_path)!r})\ntime.sleep(60)"
    rehearse([own(tmp_path, code)], imports=True)
    deadline = time.monotonic() + 5.0  # one that is killed is there for a moment still
    while subprocess.run(["pgrep", "-fx", "sleep 1234"], capture_output=True, text=True, check=False).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_several_optimizers_are_asked_about_at_once() -> None:
    sound = load(None, ["optimizer.name=RMSprop", "optimizer.args={alpha: 0.9}"])
    rehearse([sound, Config()], imports=True)
    broken = load(None, ["optimizer.name=RMSprop", "optimizer.args={alfa: 0.9}"])
    with pytest.raises(
        ConfigError, match=r"^optimizer\.args\.alfa is unknown to torch\.optim\.RMSprop; did you mean alpha"
    ):
        rehearse([sound, broken], imports=False)
