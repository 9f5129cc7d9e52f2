"""A population on real Ray: trials that take turns, go on from their own state, and from another's."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import metadata

from ray_gossip import config
from ray_gossip.resources import this_machine
from tests.job.processes import wait_until_gone
from tests.job.runs import Run

SWEEP_S = 230.0
END_OF_PROCESSES_S = 10.0
GOOD, HOPELESS = "trial-001", "trial-002"


def words(num_peers: int, *, local_steps: int) -> tuple[str, ...]:
    """A good trial and a hopeless one, on a machine that holds one of them at once."""
    return (
        f"swarm.num_peers={num_peers}",
        f"swarm.cpus_per_peer={this_machine()['CPU'] / num_peers}",
        "gossip.group_size=2",
        "gossip.steps=10",
        "model.factory=tests.job.networks:Slow",
        "model.args.step_s=0.04",  # so that a turn outlasts what Tune needs to end it, on a machine that is busy
        "data.batch_size=64",
        f"train.local_steps={local_steps}",
        "train.eval_every=50",
        "train.report_s=0.1",
        "space.optimizer.lr.loguniform=[0.0000001, 0.1]",
        "seed=806",  # which draws 0.035 and 0.00000011
        "tune.num_samples=2",
        "tune.scheduler=pbt",
        "tune.perturb_steps=100",
    )


@pytest.fixture(scope="session")
def population(ray: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run_dir = tmp_path_factory.mktemp("population") / "sweep"
    with Run(run_dir, *words(2, local_steps=300), command="tune", address=ray) as run:
        for num_turns in (1, 2, 3):
            run.wait_for("PeerStarted", count=2 * num_turns, trial=HOPELESS)
            run.look()
        assert run.finish(within_s=SWEEP_S).code == 0, run
        wait_until_gone(run.processes, within_s=END_OF_PROCESSES_S)
    return run


def ranking(run: Run) -> dict[str, dict[str, Any]]:
    return {each["trial"]: each for each in json.loads(run.stdout.splitlines()[-1])["ranking"]}


def board(run: Run) -> EventMultiplexer:
    """What TensorBoard reads."""
    read = EventMultiplexer().AddRunsFromDirectory(str(run.run_dir))
    read.Reload()
    return read


@pytest.mark.timeout(2 * SWEEP_S)
def test_a_hopeless_trial_goes_on_from_a_good_one_and_ends_as_one(population: Run) -> None:
    assert f"{HOPELESS} goes on from {GOOD} at step" in population.stderr
    hopeless = ranking(population)[HOPELESS]
    assert (hopeless["end"], hopeless["num_failures"]) == ("finished", 0)
    assert hopeless["metrics"]["merged_accuracy"] > 0.9


def test_a_trial_goes_on_at_its_local_step_and_none_begins_twice(population: Run) -> None:
    for trial in (GOOD, HOPELESS):
        started = [peer["local_step"] for peer in population.events("PeerStarted", trial=trial)]
        assert started[::2] == started[1::2], "peers of a swarm start alike"
        assert started[:2] == [0, 0]
        assert min(started[2:]) >= 100
        assert not list((population.run_dir / trial).glob("attempt-*"))
        rounds = [each["round"] for each in population.events("SwarmRound", trial=trial)]
        assert max(rounds) >= 25


def test_what_a_trial_reports_leads_from_its_beginning_to_its_end(population: Run) -> None:
    rows = list(csv.DictReader((population.run_dir / HOPELESS / "progress.csv").read_text().splitlines()))
    steps = [int(row["local_step"]) for row in rows]
    assert steps == sorted(steps)
    taken_over = next(index for index, row in enumerate(rows) if float(row["peer_accuracy"]) > 0.8)
    assert float(rows[taken_over - 1]["peer_accuracy"]) < 0.5
    assert int(rows[taken_over]["bytes_sent"]) > 0


def test_the_best_config_and_tensorboard_show_the_values_that_a_trial_ended_with(population: Run) -> None:
    ended_with = json.loads((population.run_dir / "pbt_global.txt").read_text().splitlines()[-1])[5]["optimizer.lr"]
    assert ended_with != pytest.approx(0.0348, rel=0.01), "it took over this one's state, and changed it"
    results = ranking(population)
    assert results[HOPELESS]["values"]["optimizer.lr"] == ended_with
    best = next(iter(results.values()))
    assert config.load(population.run_dir / "best.yaml").optimizer.lr == best["values"]["optimizer.lr"]
    read = board(population)
    session = read.PluginRunToTagToContent(metadata.PLUGIN_NAME)[HOPELESS]
    started = metadata.parse_session_start_info_plugin_data(session[metadata.SESSION_START_INFO_TAG])
    assert started.hparams["optimizer.lr"].number_value == ended_with
    steps = [event.step for event in read.Tensors(f"{HOPELESS}/peer-00", "eval/accuracy")]
    assert {50, 300} <= set(steps)


def test_tunes_own_record_of_which_trial_learned_from_which_is_kept(population: Run) -> None:
    lines = (population.run_dir / "pbt_global.txt").read_text().splitlines()
    learned = [json.loads(line) for line in lines]
    assert any((taker[0], giver[0]) == ("2", "1") for taker, giver, *_ in learned)


def test_few_checkpoints_are_left(population: Run) -> None:
    for trial in (GOOD, HOPELESS):
        assert 1 <= len(list(Path(population.run_dir, trial).glob("checkpoint_*"))) <= 4


@pytest.mark.timeout(SWEEP_S)
def test_an_interrupted_population_goes_on_where_its_trials_were_saved(ray: str, tmp_path: Path) -> None:
    with Run(tmp_path / "sweep", *words(1, local_steps=200), command="tune", address=ray) as first:
        first.wait_for("PeerStarted", count=2, trial=GOOD)  # each has had one turn
        first.look()
        first.press_ctrl_c()
        assert first.finish(within_s=60.0).code == 130, first
        wait_until_gone(first.processes, within_s=END_OF_PROCESSES_S)
    with Run(tmp_path / "sweep", "--resume", command="tune", address=ray) as again:
        assert again.finish().code == 0, again
    for trial in (GOOD, HOPELESS):
        assert ranking(again)[trial]["end"] == "finished"
        first_start, *others = [peer["local_step"] for peer in again.events("PeerStarted", trial=trial)]
        assert first_start == 0
        assert min(others) >= 100
        assert not list((again.run_dir / trial).glob("attempt-*"))
        # before the interruption, and after it
        assert {50, 200} <= {event.step for event in board(again).Tensors(trial, "trial/local_step")}
