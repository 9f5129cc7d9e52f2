"""A run that is interrupted, in whatever way, goes on from its latest checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.job.networks import PACED
from tests.job.runs import ROOT, Run, finish_forked

DROPPING = ("model.factory=tests.job.networks:Dropping", "optimizer.name=Adam", "swarm.num_peers=1")
BATCH = 32


def train(run_dir: Path, *words: str, address: str) -> Run:
    with Run(run_dir, *words, address=address) as run:
        assert run.finish().code == 0, run
    return run


def checkpoints(ray: str, run_dir: Path) -> subprocess.CompletedProcess[str]:
    return finish_forked(ROOT, ["ray-gossip", "checkpoints", str(run_dir)], environment={"RAY_ADDRESS": ray})


def samples(run: Run) -> dict[int, int]:
    return {end["peer_index"]: end["samples"] for end in run.events("PeerFinished")}


def manifest(run_dir: Path) -> dict[str, Any]:
    latest = max((run_dir / "checkpoints").glob("*/manifest.json"))
    found: dict[str, Any] = json.loads(latest.read_text())
    return found


def test_one_peer_that_is_interrupted_ends_bit_for_bit_as_if_it_never_was(ray: str, tmp_path: Path) -> None:
    """Killed with its driver, so that it goes back to a checkpoint; stopped in order, so that it loses nothing."""
    words = (*DROPPING, "train.local_steps=400", "checkpoint.every_steps=30")
    whole = train(tmp_path / "whole", *words, "model.args.step_s=0", address=ray)
    paced = (*words, "model.args.step_s=0.02")
    with Run(tmp_path / "run", *paced, address=ray) as run:
        run.wait_for("Saved", count=2)
        run.look()
        run.send(signal.SIGKILL)
        run.finish()
    before = max(record["local_step"] for record in run.events("Progress"))
    often = "checkpoint.every_steps=5"  # peers save themselves between the driver's last look and its word to stop
    with Run(tmp_path / "run", *paced, often, "--resume", address=ray) as run:
        run.wait_for("Progress", count=len(run.events("Progress")) + 3)
        run.press_ctrl_c()
        assert run.finish().code == 130, run
    stopped_at = max(saved["local_step"] for saved in run.events("Saved"))
    (peer,) = manifest(tmp_path / "run")["peers"]
    assert peer["local_step"] == stopped_at == max(record["local_step"] for record in run.events("Progress"))
    run = train(tmp_path / "run", *paced, "--resume", address=ray)
    own, expected = (torch.load(each.run_dir / "model.pt", weights_only=True) for each in (run, whole))
    assert all(torch.equal(own[name], expected[name]) for name in expected)
    assert samples(run) == samples(whole) == {0: 400 * BATCH}
    first, second = (started["local_step"] for started in run.events("PeerStarted")[1:])
    assert (first % 30, second) == (0, stopped_at)
    assert first <= before
    told = [notice["text"] for notice in run.events("Notice") if "it goes on from checkpoint" in notice["text"]]
    for text, step in zip(told, (first, second), strict=True):
        assert text.endswith(f", of 1 peer, with 1 peer: from local step {step} on, {step * BATCH:,} samples")
    steps = [point.step for point in EventAccumulator(str(run.run_dir / "peer-00")).Reload().Scalars("train/loss")]
    assert steps == sorted(steps), "what was lost is not drawn twice"
    assert steps[-1] == 400
    again = train(tmp_path / "run", *paced, "--resume", address=ray)
    assert json.loads(again.stdout)["run_id"] == run.summary["run_id"], "it has ended: nothing is started"
    assert checkpoints(ray, tmp_path / "run").returncode == 0


def test_a_swarm_goes_on_with_another_number_of_peers_and_counts_each_sample_once(ray: str, tmp_path: Path) -> None:
    """Two peers, killed with their driver; then three, stopped in order; then one. The last checkpoint but one is
    damaged meanwhile, and said so."""
    words = ("model.factory=tests.job.networks:Slow", "checkpoint.every_steps=40", "gossip.steps=10")
    paced = (*words, "model.args.step_s=0.02", "train.local_steps=100000")
    with Run(tmp_path / "run", *paced, "swarm.num_peers=2", address=ray) as run:
        run.wait_for("Saved", count=6)
        run.look()
        run.send(signal.SIGKILL)
        run.finish()
    damaged = max((tmp_path / "run" / "checkpoints").glob("*/manifest.json"))
    damaged.write_text(damaged.read_text()[:-50])
    shown = checkpoints(ray, tmp_path / "run")
    assert f"checkpoint {int(damaged.parent.name)} is passed over: its manifest is damaged" in shown.stdout
    with Run(tmp_path / "run", *paced, "swarm.num_peers=3", "--resume", address=ray) as run:
        run.wait_for("PeerStarted", count=5)
        began = {peer["peer_index"]: peer for peer in run.events("PeerStarted")[2:]}
        run.wait_for("Saved", count=len(run.events("Saved")) + 3)
        run.press_ctrl_c()
        assert run.finish().code == 130, run
    mark = int(damaged.parent.name) - 40
    assert [began[index]["local_step"] for index in range(3)] == [mark] * 3
    assert [began[index]["samples"] for index in range(3)] == [mark * BATCH, mark * BATCH, 0]
    saved = manifest(tmp_path / "run")
    assert [peer["peer_index"] for peer in saved["peers"]] == [0, 1, 2]
    steps = [peer["local_step"] for peer in saved["peers"]]
    seen = sum(peer["samples"] for peer in saved["peers"])
    assert seen == BATCH * (2 * mark + sum(step - mark for step in steps))
    refused = finish_forked(
        ROOT,
        ["ray-gossip", "train", "model.name=mlp", "--resume", "--run-dir", str(tmp_path / "run")],
        environment={"RAY_ADDRESS": ray},
    )
    assert refused.returncode == 2
    assert "no checkpoint in" in refused.stderr
    assert "is of another model" in refused.stderr
    last = (*words, "swarm.num_peers=1", f"train.local_steps={steps[0] + 300}")
    run = train(tmp_path / "run", *last, "--resume", address=ray)
    assert samples(run) == {0: seen + 300 * BATCH}
    assert run.summary["merged_accuracy"] > 0.9
    assert run.summary["num_peers"] == 1


def test_where_all_peers_die_at_once_the_swarm_goes_back_to_its_checkpoint(ray: str, tmp_path: Path) -> None:
    words = (*PACED, "swarm.num_peers=2", "train.local_steps=600", "checkpoint.every_steps=50")
    with Run(tmp_path / "run", *words, address=ray) as run:
        run.wait_for("Saved", count=4)
        pids = [peer["pid"] for peer in run.events("PeerStarted")]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # else the successor of one might begin from the other
            for pid in pids:
                os.kill(pid, number)
        assert run.finish().code == 0, run
    (told,) = (each["text"] for each in run.events("Notice") if "every peer was lost" in each["text"])
    mark = int(told.removeprefix("every peer was lost: all go on from checkpoint "))
    assert mark >= 100
    assert [peer["local_step"] for peer in run.events("PeerStarted")[2:]] == [mark, mark]
    assert samples(run) == {0: 600 * BATCH, 1: 600 * BATCH}
    assert run.summary["final_outcome"] == ["averaged", "averaged"]


@pytest.mark.parametrize("has_run", [False, True])
def test_resume_without_a_checkpoint_begins(ray: str, tmp_path: Path, has_run: bool) -> None:
    words = ("swarm.num_peers=1", "train.local_steps=20")
    if has_run:
        train(tmp_path / "run", *words, address=ray)
        (tmp_path / "run" / "model.pt").unlink()  # as if it had been interrupted
        (tmp_path / "run" / "checkpoints" / "000000010").mkdir(parents=True)  # while it saved for the first time
    run = train(tmp_path / "run", *words, "--resume", address=ray)
    assert len(run.events("PeerFinished")) == 1
    assert (tmp_path / "run" / "attempt-1" / "events.jsonl").exists() == has_run
