"""Scripts for other trainers, changed in three lines, under a driver: alone as before, and with others as peers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.job.runs import ROOT, finish_forked
from tests.job.scripts import changed

NUM_PEERS = 2  # four by hand: their imports alone are a quarter of a minute on two cores
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # as in an actor of at most one CPU: sums of other threads round otherwise


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "tests" / "yours" / "loops", tmp_path / "loops")
    return tmp_path


def train(ray: str, folder: Path, script: Path, num_peers: int) -> Path:
    """Run the script's `main` in each peer; the run's folder."""
    run = folder / f"run-{num_peers}"
    words = [f"train.loop=loops.{script.stem}:main", f"swarm.num_peers={num_peers}", "gossip.steps=10"]
    command = ["ray-gossip", "train", *words, "--run-dir", str(run)]
    done = finish_forked(folder, command, environment={"RAY_ADDRESS": ray})
    assert done.returncode == 0, done
    assert "whole data set" not in done.stdout
    return run


def merged(run: Path) -> dict[str, Any]:
    model: dict[str, Any] = torch.load(run / "model.pt", weights_only=True)
    return model


def check_swarm(run: Path, *, curve: str, num_points: int, local_steps: int, samples: int) -> None:
    """All final rounds averaged, a curve of each peer, and the swarm's; two batches are one step."""
    records = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    ended = [record for record in records if record["event"] == "PeerFinished"]
    assert [(end["local_step"], end["samples"]) for end in ended] == [(local_steps, samples)] * NUM_PEERS
    summary = json.loads((run / "summary.json").read_text())
    assert summary["final_outcome"] == ["averaged"] * NUM_PEERS
    assert summary["rounds"]["averaged"] > 0
    assert summary["consensus_distance"] < 1e-3
    assert summary["samples_per_s"] > 0
    for peer in range(NUM_PEERS):
        assert len(EventAccumulator(str(run / f"peer-{peer:02d}")).Reload().Scalars(curve)) == num_points
    swarm = EventAccumulator(str(run / "swarm")).Reload().Scalars(curve)
    assert swarm[-1].value == pytest.approx(summary["reported"][curve])
    assert swarm[-1].value < swarm[0].value


def test_a_lightning_script_changes_three_lines_and_alone_gives_what_it_gave(ray: str, folder: Path) -> None:
    script = folder / "loops" / "lightning_script.py"
    done = finish_forked(folder, [str(script)], environment=_ONE_THREAD)
    assert done.returncode == 0, done
    (checkpoint,) = folder.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    theirs = torch.load(checkpoint, weights_only=False)["state_dict"]
    ours = changed(script, to="our_lightning.py")
    alone = merged(train(ray, folder, ours, 1))
    assert {name: tensor.tolist() for name, tensor in theirs.items()} == {
        name: tensor.tolist() for name, tensor in alone.items()
    }  # bit for bit
    run = train(ray, folder, ours, NUM_PEERS)
    check_swarm(run, curve="val_loss", num_points=5, local_steps=235, samples=3750)
    assert merged(run).keys() == alone.keys()


def test_a_transformers_script_changes_three_lines_and_alone_gives_what_it_gave(ray: str, folder: Path) -> None:
    script = folder / "loops" / "transformers_script.py"
    done = finish_forked(folder, [str(script)], environment=_ONE_THREAD)
    assert done.returncode == 0, done
    theirs = load_file(folder / "gpt" / "model.safetensors")
    ours = changed(script, to="our_transformers.py")
    alone = merged(train(ray, folder, ours, 1))
    assert len(theirs) == 28
    for name, tensor in theirs.items():
        assert torch.equal(tensor, alone[name]), name  # bit for bit
    run = train(ray, folder, ours, NUM_PEERS)
    check_swarm(run, curve="loss", num_points=9, local_steps=94, samples=752)  # the last batch is of 2
    assert merged(run).keys() == alone.keys()
