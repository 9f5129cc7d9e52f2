"""Whole runs: what they reach, and what they leave behind."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ray_gossip import config, data, models
from tests.job.processes import wait_until_gone
from tests.job.runs import ROOT, Run, train

PROMISED_KEYS = (
    "run_id engine num_peers merged_accuracy peer_accuracy rounds consensus_distance samples_per_s bytes_sent wall_s "
    "time_to_first_step_s"
)


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What `make demo` runs, with --json. It takes 20 to 30 s on two quiet cores."""
    with Run(tmp_path_factory.mktemp("quickstart") / "run", "configs/quickstart.yaml") as run:
        run.wait_until_training()
        assert run.finish().code == 0, run
    return run


def test_the_quick_start_learns_digits_in_every_peer(quickstart: Run) -> None:
    summary = quickstart.summary
    assert summary["merged_accuracy"] >= 0.95
    assert len(summary["peer_accuracy"]) == 4
    assert min(summary["peer_accuracy"]) >= 0.93
    assert summary["peers_lost"] == []


def test_its_rounds_do_not_fail_and_bring_the_swarm_to_agreement(quickstart: Run) -> None:
    summary = quickstart.summary
    assert summary["rounds"]["failed"] == 0
    assert summary["rounds"]["averaged"] > 100
    assert summary["final_outcome"] == ["averaged"] * 4
    assert summary["consensus_distance"] < 1e-3
    assert summary["troubles"] == []


def test_the_last_line_of_output_is_the_summary_file(quickstart: Run) -> None:
    assert json.loads(quickstart.stdout.splitlines()[-1]) == quickstart.summary
    assert set(PROMISED_KEYS.split()) <= set(quickstart.summary)
    assert set(quickstart.summary["rounds"]) == {"averaged", "partial", "alone", "failed"}


def test_the_terminal_shows_the_view_and_nothing_of_the_machinery(quickstart: Run) -> None:
    assert len(quickstart.stdout.splitlines()) == 1
    timed, summary = (
        re.compile(r" *\d+\.\d s  "),
        re.compile(r"(accuracy|rounds|distance|averaged|speed|files|curves|model) +"),
    )
    strange = [
        line for line in quickstart.stderr.splitlines() if line and not (timed.match(line) or summary.match(line))
    ]
    assert strange == []


def test_it_leaves_no_process(quickstart: Run) -> None:
    commands = [process.command for process in quickstart.processes]
    assert sum("p2pd" in command for command in commands) == 4
    wait_until_gone(quickstart.processes, within_s=5.0)


def test_the_merged_model_loads_with_plain_torch_and_is_as_good_as_reported(quickstart: Run) -> None:
    resolved = config.load(quickstart.run_dir / "config.yaml")
    dataset = data.load(resolved.data)
    model = models.build(resolved.model, in_shape=dataset.in_shape, num_classes=dataset.num_classes, seed=1)
    model.load_state_dict(torch.load(quickstart.run_dir / "model.pt", weights_only=True))
    model.eval()
    accuracy = (model(dataset.test_inputs).argmax(dim=1) == dataset.test_labels).float().mean().item()
    assert accuracy == pytest.approx(quickstart.summary["merged_accuracy"], abs=1e-6)


@pytest.mark.parametrize("run", ["peer-00", "peer-01", "peer-02", "peer-03", "swarm"])
def test_tensorboard_has_the_curves_of_every_peer_and_of_the_swarm(run: str, quickstart: Run) -> None:
    curves = EventAccumulator(str(quickstart.run_dir / run))
    curves.Reload()
    assert len(curves.Scalars("train/loss")) > 3
    assert curves.Scalars("eval/accuracy")[-1].value >= 0.93
    assert curves.Scalars("merged/accuracy")[-1].value == pytest.approx(quickstart.summary["merged_accuracy"])
    if run == "swarm":
        distances = [point.value for point in curves.Scalars("swarm/consensus_distance")]
        assert len(distances) > 10
        assert distances[-1] == pytest.approx(quickstart.summary["consensus_distance"], rel=1e-3, abs=0.0)
        assert "swarm/who_met_whom" in curves.Tags()["images"]


def test_the_summary_lists_what_was_averaged(quickstart: Run) -> None:
    summary = quickstart.summary
    assert len(summary["averaged"]) == summary["averaged_tensors"] == 8
    assert {part["kind"] for part in summary["averaged"]} == {"parameter"}
    assert sum(part["num_bytes"] for part in summary["averaged"]) == summary["averaged_bytes"]


def test_its_resolved_config_is_the_config_again(quickstart: Run) -> None:
    assert config.load(quickstart.run_dir / "config.yaml") == config.load(ROOT / "configs" / "quickstart.yaml")


def test_one_peer_trains_alone(ray: str, tmp_path: Path) -> None:
    summary = train(tmp_path / "run", "swarm.num_peers=1", "train.local_steps=300", address=ray).summary
    assert summary["merged_accuracy"] > 0.9
    assert set(summary["rounds"]) - {kind for kind, count in summary["rounds"].items() if count == 0} == {"alone"}
    assert summary["troubles"] == []


def test_six_peers_train_in_groups_of_up_to_four(ray: str, tmp_path: Path) -> None:
    words = ("swarm.num_peers=6", "gossip.group_size=4", "model.name=mlp", "train.local_steps=100")
    run = train(tmp_path / "run", *words, address=ray)
    assert run.summary["merged_accuracy"] > 0.9
    assert run.summary["rounds"]["failed"] == run.summary["rounds"]["partial"] == 0
    assert run.summary["final_outcome"] == ["averaged"] * 6


def test_a_merged_model_with_batch_norm_is_no_worse_than_the_peers_are(ray: str, tmp_path: Path) -> None:
    """At a constant learning rate, whose noise averaging takes away: with 4 seeds, 0.6 to 2.2 points better."""
    words = ("model.name=resnet20", "gossip.group_size=2", "gossip.steps=20", "train.local_steps=160", "seed=2")
    summary = train(tmp_path / "run", *words, "optimizer.schedule=constant", address=ray).summary
    assert summary["merged_batch_norm"] == "recalibrated"
    assert summary["merged_accuracy"] >= statistics.mean(summary["peer_accuracy"])
    assert summary["merged_accuracy"] > 0.9


@pytest.mark.parametrize(
    "shards", [["data.shards=label_sorted"], ["data.shards=dirichlet", "data.dirichlet_alpha=0.1"]]
)
def test_skewed_shards_are_pictured_and_the_merged_model_beats_the_peers(
    shards: list[str], ray: str, tmp_path: Path
) -> None:
    """Peers that have not met for 90 steps know little but their own classes; the mean of them knows all. One round for
    each, whatever their speeds: a later one that a slower peer holds shortly before its end would make them alike."""
    words = (
        "gossip.group_size=4",
        "gossip.steps=300",
        "gossip.overlap=false",  # else what remains of the 90 steps depends on how long the round takes
        "train.local_steps=390",
        "train.eval_every=1000",
        "model.name=mlp",
    )
    run = train(tmp_path / "run", *words, *shards, address=ray)
    assert run.summary["merged_accuracy"] > statistics.mean(run.summary["peer_accuracy"])
    curves = EventAccumulator(str(run.run_dir / "swarm"))
    curves.Reload()
    assert "swarm/classes_of_peers" in curves.Tags()["images"]
    counts = [peer["class_counts"] for peer in run.events("PeerStarted")]
    assert sum(map(sum, counts)) == 1433
    assert min(min(classes) for classes in counts) == 0  # a class that some peer never sees


def test_a_run_that_goes_wrong_says_so_on_the_screen_in_its_files_and_in_tensorboard(ray: str, tmp_path: Path) -> None:
    words = ("swarm.num_peers=2", "train.local_steps=3000", "gossip.steps=20", "gossip.allreduce_s=0.001")
    run = train(tmp_path / "run", *words, address=ray)
    (told,) = (trouble for trouble in run.summary["troubles"] if trouble["kind"] == "rounds")
    assert "gossip.allreduce_s" in told["text"]
    assert told["first_round"] < 5
    notices = [notice["text"] for notice in run.events("Notice") if notice["text"].startswith("trouble: ")]
    assert any("did not average: the all-reduce took longer than" in notice for notice in notices), notices
    assert "did not average: the all-reduce took longer than" in run.stderr
    curves = EventAccumulator(str(run.run_dir / "swarm"))
    curves.Reload()
    assert max(point.value for point in curves.Scalars("swarm/trouble")) >= 1


def test_a_run_that_diverges_ends_with_the_cause(ray: str, tmp_path: Path) -> None:
    """A round notices it first: what is reported, every half second else, might be the loss of the same steps."""
    words = ("swarm.num_peers=2", "train.local_steps=5000", "gossip.steps=10", "optimizer.lr=1000", "train.report_s=60")
    with Run(tmp_path / "run", *words, address=ray) as run:
        assert run.finish().code == 1, run
    last = run.stderr.splitlines()[-1]
    assert "every peer was lost: it raised DivergedError: at local step" in last
    assert "its parameters are not finite, and " in last  # the other one has no model to give, or has ended already
    assert ": the training has diverged: lower optimizer.lr; " in last
    assert [lost["is_replaced"] for lost in run.events("PeerLost")] == [False, False]
    assert not (run.run_dir / "model.pt").exists()


@pytest.fixture(scope="module")
def shipped(ray: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three peers with hivemind's own optimizer: ten rounds would be right. Its progress tracker needs time: of steps
    of a few milliseconds, on a busy machine, a peer did 120 before its first round."""
    slow = ("model.factory=tests.job.networks:Slow", "model.args.step_s=0.04")
    words = (*slow, "engine=hivemind", "swarm.num_peers=3", "gossip.group_size=3", "gossip.steps=20")
    more = ("gossip.matchmaking_s=1.5", "gossip.exact_every=5", "train.local_steps=200", "train.eval_every=1000")
    return train(tmp_path_factory.mktemp("shipped") / "run", *words, *more, address=ray)


def test_the_engine_as_hivemind_ships_it_trains_an_odd_swarm(shipped: Run) -> None:
    assert shipped.summary["engine"] == "hivemind"
    assert shipped.summary["merged_accuracy"] > 0.9
    assert any("gossip.exact_every" in notice["text"] for notice in shipped.events("Notice"))


def test_hivemind_as_shipped_averages_every_h_local_steps_and_not_more_often(shipped: Run) -> None:
    for peer_index in range(3):
        steps = [r["local_step"] for r in shipped.events("RoundReport") if r["peer_index"] == peer_index]
        assert 2 <= len(steps) <= 12


def test_hivemind_as_shipped_sends_what_an_all_reduce_costs(shipped: Run) -> None:
    """Each peer of a group of M sends (M - 1) / M of the model to others, and as much of the mean back to them."""
    rounds = [report for report in shipped.events("RoundReport") if report["outcome"] == "averaged"]
    model_bytes = shipped.summary["averaged_bytes"]
    expected = sum(2 * model_bytes * (1 - 1 / len(report["group"])) for report in rounds)
    assert sum(report["bytes_sent"] for report in rounds) == pytest.approx(expected, rel=0.2)
    assert shipped.summary["bytes_sent"] > expected * 0.8


def test_hivemind_as_shipped_ends_soon_after_its_first_peer_is_done(shipped: Run) -> None:
    """The others have an interval left at most. A round that lacks a peer waits for matchmaking_s, a peer that is
    alone in one for twice that."""
    done = [e["wall_time"] for e in shipped.events("Evaluation") if e["model"] == "peer" and e["local_step"] == 200]
    assert len(done) == 3
    assert max(done) - min(done) < 12
