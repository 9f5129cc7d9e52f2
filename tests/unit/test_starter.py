"""`ray-gossip init`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_gossip.cli import main
from ray_gossip.config import load


def test_init_writes_a_config_and_a_loop_and_says_how_to_run_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    assert capsys.readouterr().out == "wrote config.yaml and train.py; next: ray-gossip train config.yaml\n"
    assert load(tmp_path / "config.yaml").train.loop == "train:train_loop"
    compile((tmp_path / "train.py").read_text(), "train.py", "exec")
    assert main(["init", "a b/c"]) == 0
    assert "next: cd 'a b/c' && ray-gossip train" in capsys.readouterr().out


def test_init_overwrites_nothing_and_says_where_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("mine")
    assert main(["init"]) == 2
    assert capsys.readouterr().err == "ray-gossip: train.py is there already: move it away, or name another folder\n"
    assert not (tmp_path / "config.yaml").exists()
    assert main(["init", "train.py"]) == 2
    assert "cannot write to train.py" in capsys.readouterr().err
    assert main(["init", "x" * 300]) == 2
    assert "File name too long" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["init", "a", "b"])
