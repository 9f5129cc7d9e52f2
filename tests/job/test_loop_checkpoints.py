"""A training loop of the user's own that is interrupted goes on from its latest checkpoint."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.job.runs import Run
from tests.yours.loops.resumable import seen

NUM_SAMPLES = 1797
EPOCHS = 5  # long enough that each part is interrupted before its end, on busy cores too


def loop(folder: Path, *, epochs: int, step_s: float = 0.0, **config: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    args = {"folder": str(folder), "epochs": epochs, "step_s": step_s, **config}
    return [
        "train.loop=tests.yours.loops.resumable:train_loop",
        f"train.loop_args={json.dumps(args)}",
        "gossip.steps=10",
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_one_peer_ends_bit_for_bit_with_the_same_samples_as_if_it_had_never_been_interrupted(
    ray: str, tmp_path: Path, workers: int
) -> None:
    """Killed with its driver, then stopped in order; also where a DataLoader takes samples ahead."""
    words = ("swarm.num_peers=1", "checkpoint.every_steps=30")
    whole_loop = loop(tmp_path / "whole", epochs=EPOCHS, workers=workers)
    with Run(tmp_path / "whole-run", *whole_loop, *words, address=ray) as whole:
        assert whole.finish().code == 0, whole
    paced = [*loop(tmp_path / "cut", epochs=EPOCHS, step_s=0.02, workers=workers), *words]
    with Run(tmp_path / "run", *paced, address=ray) as run:
        run.wait_for("Saved", count=2)
        run.look()
        run.send(signal.SIGKILL)
        run.finish()
    often = "checkpoint.every_steps=5"  # peers save themselves between the driver's last look and its word to stop
    with Run(tmp_path / "run", *paced, often, "--resume", address=ray) as run:
        run.wait_for("Progress", count=len(run.events("Progress")) + 2)
        run.press_ctrl_c()
        assert run.finish().code == 130, run
    stopped_at = max(record["local_step"] for record in run.events("Saved"))
    with Run(tmp_path / "run", *paced, "--resume", address=ray) as run:
        assert run.finish().code == 0, run
    began_at = [started["local_step"] for started in run.events("PeerStarted") if started["num_parameters"]]
    assert began_at[0] == 0
    assert began_at[1] % 30 == 0 < began_at[1]
    assert began_at[2] == stopped_at
    assert list(seen(tmp_path / "cut", 0)) == list(seen(tmp_path / "whole", 0))
    own, expected = (torch.load(each.run_dir / "model.pt", weights_only=True) for each in (run, whole))
    assert all(torch.equal(own[name], expected[name]) for name in expected)
    assert run.summary["reported"] == whole.summary["reported"], "the schedule has gone on, too"
    (finished,) = run.events("PeerFinished")
    assert finished["samples"] == EPOCHS * NUM_SAMPLES


def test_a_swarm_of_loops_goes_on_with_other_numbers_of_peers_and_each_sample_is_seen_once_an_epoch(
    ray: str, tmp_path: Path
) -> None:
    """Two peers, then three, then one, each time stopped in order."""
    words = [*loop(tmp_path / "cut", epochs=2, step_s=0.1), "gossip.group_size=2"]
    saved = 0
    for num_peers in (2, 3):
        resume = ["--resume"] if saved else []
        with Run(tmp_path / "run", *words, f"swarm.num_peers={num_peers}", *resume, address=ray) as run:
            run.wait_for("Progress", count=len(run.events("Progress")) + 4 * num_peers)
            run.press_ctrl_c()
            assert run.finish().code == 130, run
        assert len(run.events("Saved")) == saved + num_peers
        saved += num_peers
    with Run(tmp_path / "run", *words, "swarm.num_peers=1", "--resume", address=ray) as run:
        assert run.finish().code == 0, run
    (finished,) = run.events("PeerFinished")
    assert finished["samples"] == 2 * NUM_SAMPLES
    lines = [line for path in (tmp_path / "cut").glob("peer-*.txt") for line in path.read_text().splitlines()]
    counts = Counter(int(number) for line in lines for number in line.split()[1:])
    assert counts == Counter(dict.fromkeys(range(NUM_SAMPLES), 2))
    assert run.summary["reported"]["loss"] < 0.5


def test_a_checkpoint_of_another_model_is_refused_in_one_line(ray: str, tmp_path: Path) -> None:
    words = ("swarm.num_peers=1", "checkpoint.every_steps=20")
    with Run(tmp_path / "run", *loop(tmp_path / "cut", epochs=2, step_s=0.02), *words, address=ray) as run:
        run.wait_for("Saved")
        run.press_ctrl_c()
        assert run.finish().code == 130, run
    with Run(tmp_path / "run", *loop(tmp_path / "cut", epochs=2, width=8), *words, "--resume", address=ray) as run:
        assert run.finish().code == 1, run
    assert "is of another model or optimizer: Error(s) in loading state_dict for Sequential" in run.stderr
