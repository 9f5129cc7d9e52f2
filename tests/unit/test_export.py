"""One model out of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ray_gossip import cli
from ray_gossip.checkpoints.export import check, merged
from ray_gossip.checkpoints.manifest import Manifest, PeerFile, all_in, save
from ray_gossip.checkpoints.writer import Writer
from ray_gossip.config import Config
from ray_gossip.config.loading import dump
from ray_gossip.errors import UserError


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Of a run of two peers; the second checkpoint is damaged."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "events.jsonl").touch()
    (run_dir / "config.yaml").write_text(dump(Config()))
    for mark in (100, 200):
        saved = []
        for index in range(2):
            model = {"weight": torch.full((2, 3), float(index + mark)), "unit": torch.tensor([float(index)])}
            writer = Writer(str(run_dir / "checkpoints"), peer_index=index)
            writer.write(mark, {"local_step": mark, "samples": mark, "model": model, "averaged": ["weight"]})
            writer.wait()
            saved.append(writer.told.get())
        peers = tuple(PeerFile.of(each) for each in saved)
        manifest = Manifest(mark=mark, run_id="a", wall_time=0.0, model={}, num_peers=2, peers=peers)
        save(str(run_dir / "checkpoints"), manifest)
    (run_dir / "checkpoints" / "000000200" / saved[1].name).write_bytes(b"")
    return run_dir


def test_what_is_averaged_is_the_mean_and_the_rest_the_first_peers(run_dir: Path) -> None:
    manifest = all_in(str(run_dir / "checkpoints"))[-1]
    model = merged(str(run_dir / "checkpoints"), manifest)
    assert torch.equal(model["weight"], torch.full((2, 3), 100.5))
    assert torch.equal(model["unit"], torch.tensor([0.0]))


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_the_command_writes_the_latest_that_is_sound(
    run_dir: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def export(*words: str) -> tuple[int, str]:
        code = cli.main(["checkpoints", str(run_dir), "--export", *words])
        return code, "".join(capsys.readouterr())

    path = run_dir / name
    assert export(str(path)) == (0, f"{path}: the model of checkpoint 100, the mean of 2 peers\n")
    model = load_file(path) if name.endswith("safetensors") else torch.load(path, weights_only=True)
    assert torch.equal(model["weight"], torch.full((2, 3), 100.5))
    assert export(str(path)) == (2, f"ray-gossip: --export {path} is there already: name another\n")
    code, told = export(f"{run_dir}/other.pt", "--checkpoint", "200")
    assert code == 2
    assert "has no checkpoint 200 that is sound; ray-gossip checkpoints" in told


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"name a file that ends in \.pt or \.safetensors$"):
        check(tmp_path / "model.onnx")
