"""Whole runs: what they reach, and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ray_gossip import config, data, models
from tests.job.runs import ROOT, events, train


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What `make demo` runs."""
    run_dir = tmp_path_factory.mktemp("quickstart") / "run"
    return run_dir, train(run_dir, "configs/quickstart.yaml")


def test_the_quick_start_learns_digits_in_every_peer(quickstart: tuple[Path, dict[str, Any]]) -> None:
    _, summary = quickstart
    assert summary["merged_accuracy"] >= 0.95
    assert len(summary["peer_accuracy"]) == 4
    assert min(summary["peer_accuracy"]) >= 0.93
    assert summary["rounds"]["failed"] == 0
    assert summary["rounds"]["averaged"] > 100
    assert summary["consensus_distance"] < 1e-3
    assert summary["peers_lost"] == []


def test_the_last_line_of_output_is_the_summary_file(quickstart: tuple[Path, dict[str, Any]]) -> None:
    run_dir, summary = quickstart
    assert json.loads((run_dir / "summary.json").read_text()) == summary
    promised = (
        "run_id engine num_peers merged_accuracy peer_accuracy rounds consensus_distance samples_per_s bytes_sent "
        "wall_s time_to_first_step_s"
    )
    assert set(promised.split()) <= set(summary)
    assert set(summary["rounds"]) == {"averaged", "partial", "alone", "failed"}


def test_the_merged_model_loads_with_plain_torch_and_is_as_good_as_reported(
    quickstart: tuple[Path, dict[str, Any]],
) -> None:
    run_dir, summary = quickstart
    resolved = config.load(run_dir / "config.yaml")
    dataset = data.load(resolved.data)
    model = models.build(resolved.model, in_shape=dataset.in_shape, num_classes=dataset.num_classes, seed=1)
    model.load_state_dict(torch.load(run_dir / "model.pt", weights_only=True))
    model.eval()
    logits = model(dataset.test_images)
    accuracy = (logits.argmax(dim=1) == dataset.test_labels).float().mean().item()
    assert accuracy == pytest.approx(summary["merged_accuracy"], abs=1e-6)


def test_tensorboard_has_a_run_per_peer_and_one_for_the_swarm(quickstart: tuple[Path, dict[str, Any]]) -> None:
    run_dir, _ = quickstart
    for run in ("peer-00", "peer-01", "peer-02", "peer-03", "swarm"):
        curves = EventAccumulator(str(run_dir / run))
        curves.Reload()
        tags = set(curves.Tags()["scalars"])
        assert {"train/loss", "eval/accuracy"} <= tags
        assert len(curves.Scalars("train/loss")) > 3
        if run == "swarm":
            assert len(curves.Scalars("swarm/consensus_distance")) > 10
            assert "swarm/who_met_whom" in curves.Tags()["images"]


@pytest.mark.parametrize("num_peers", [1, 3])
def test_any_number_of_peers_trains(num_peers: int, tmp_path: Path) -> None:
    summary = train(tmp_path / "run", f"swarm.num_peers={num_peers}", "gossip.group_size=2", "train.local_steps=300")
    assert summary["num_peers"] == num_peers
    assert summary["merged_accuracy"] > 0.9
    assert summary["rounds"]["failed"] == summary["rounds"]["partial"] == 0


def test_the_shipped_engine_trains_too(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    summary = train(
        run_dir,
        "engine=hivemind",
        "swarm.num_peers=2",
        "gossip.group_size=2",
        "gossip.matchmaking_s=1.5",
        "gossip.exact_every=5",
        "train.local_steps=300",
    )
    assert summary["engine"] == "hivemind"
    assert summary["merged_accuracy"] > 0.9
    assert summary["rounds"]["averaged"] > 0
    assert any("gossip.exact_every" in notice["text"] for notice in events(run_dir, "Notice"))


def test_the_resolved_config_of_a_run_trains_again(quickstart: tuple[Path, dict[str, Any]]) -> None:
    run_dir, _ = quickstart
    assert config.load(run_dir / "config.yaml") == config.load(ROOT / "configs" / "quickstart.yaml")
