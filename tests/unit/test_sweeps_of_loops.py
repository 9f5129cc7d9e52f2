"""Sweeps of loops of one's own: what is compared, what is drawn, and which scheduler is chosen."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_gossip.config import parse
from ray_gossip.errors import ConfigError
from ray_gossip.records import Reported
from ray_gossip.tuning import sweep as sweeps
from ray_gossip.tuning import within
from ray_gossip.tuning.metrics import Scores, comparable, shown
from ray_gossip.tuning.outcome import Outcome, rank
from ray_gossip.tuning.plots import NAMES, draw
from ray_gossip.tuning.search import scheduler
from ray_gossip.tuning.space import Choice, Range
from tests.unit.telemetry_records import a_swarm, fold, started
from tests.unit.test_tuning import ATrial

LOOP = "train.loop=mine:train_loop"
SPACE = "space.gossip.steps.choice=[5, 10]"


def load(*words: str) -> sweeps.Sweep:
    return sweeps.load(None, [SPACE, *words])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            [LOOP],
            "tune.objectives=merged_accuracy is of models that are evaluated for you, and train.loop evaluates by",
        ),
        (
            [LOOP, "tune.objectives=max:a", "tune.scheduler=pbt"],
            "tune.scheduler=pbt: a loop of your own has no snapshot",
        ),
        (
            [LOOP, "tune.objectives=bytes_sent", "tune.scheduler=asha"],
            "tune.scheduler=asha compares what train.loop rep",
        ),
        ([LOOP, "tune.objectives=max:a", "tune.scheduler=asha"], "tune.scheduler=asha cannot know how long train.loop"),
        (
            [LOOP, "tune.objectives=max:done"],
            "max:done: results of Tune have a done of their own; report it by another",
        ),
        (["tune.objectives=max:f1"], "tune.objectives=max:f1: there is no f1 in train.metrics; add it, or name"),
        (
            ["tune.objectives=merged_acuracy"],
            "of what is reported, max:NAME or min:NAME; did you mean merged_accuracy?",
        ),
        (["tune.objectives=most:a"], "tune.objectives: most:a is none of merged_accuracy, "),
        (["tune.objectives='max:'"], "tune.objectives: max: is none of merged_accuracy, "),
    ],
)
def test_what_a_sweep_cannot_compare_is_one_line(words: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(*words)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        (["tune.num_samples=2"], "none"),
        (["space.seed.grid=[1, 2, 3, 4, 5, 6, 7, 8, 9]", "tune.num_samples=1"], "asha"),
        (["space.seed.grid=[1, 2, 3, 4, 5, 6, 7, 8]", "tune.num_samples=1"], "none"),
        (["space.gossip.alpha.uniform=[0.5, 1]"], "asha"),
        (["space.gossip.alpha.uniform=[0.5, 1]", "tune.reduction=4"], "none"),
        (["space.gossip.alpha.uniform=[0.5, 1]", "train.local_steps=100", "train.eval_every=100"], "none"),
        (["space.gossip.alpha.uniform=[0.5, 1]", "tune.searcher=optuna"], "asha"),
        (["space.gossip.alpha.uniform=[0.5, 1]", LOOP, "tune.objectives=max:a"], "none"),
        (["space.gossip.alpha.uniform=[0.5, 1]", LOOP, "tune.objectives=max:a", "tune.grace_steps=50"], "asha"),
        (["tune.scheduler=median"], "median"),
    ],
)
def test_the_scheduler_is_chosen_by_the_number_and_the_length_of_trials(words: list[str], chosen: str) -> None:
    assert load(*words).settings.tune.scheduler == chosen


@pytest.mark.parametrize("seed", range(5))
def test_draws_spread_over_the_values(seed: int) -> None:
    sweep = sweeps.load(None, [f"seed={seed}", "space.gossip.group_size.choice=[2, 4]", "tune.num_samples=4"])
    sizes = [point["gossip.group_size"] for point in sweep.points()[0]]
    assert sorted(set(sizes)) == [2, 4]
    chance = random.Random(seed)
    assert set(Counter(Choice((1, 2, 3)).spread(9, chance)).values()) == {3}
    for kind in ("uniform", "loguniform"):
        drawn = sorted(Range(kind, 0.01, 1.0).spread(10, chance))
        assert all(0.01 <= value <= 1.0 for value in drawn)
        shares = [
            math.log(value / 0.01) / math.log(100) if kind == "loguniform" else (value - 0.01) / 0.99 for value in drawn
        ]
        assert [int(share * 10) for share in shares] == list(range(10))
    assert sorted(Range("randint", 1, 4).spread(4, chance)) == [1, 2, 3, 4]


def test_a_key_that_has_one_value_everywhere_is_told() -> None:
    words = ["space.gossip.alpha.grid=[0.5, 1.0]", "tune.num_samples=1"]
    points, notices = load(*words).points()
    assert len(points) == 2
    assert notices == [f"space.gossip.steps is {points[0]['gossip.steps']} in all 2 trials: raise tune.num_samples"]
    assert load("tune.num_samples=2").points()[1] == []


def reported(peer_index: int, step: int, **metrics: float) -> Reported:
    return Reported(peer_index=peer_index, wall_time=float(step), local_step=step, metrics=metrics)


def test_a_result_has_what_the_loops_reported_at_its_name() -> None:
    state = a_swarm(2)
    scores = Scores(state, target_accuracy=None)
    fold(state, [started(0), started(1), reported(0, 20, accuracy=0.5, train_loss=1.0, bytes_sent=-1.0)])
    assert scores.evaluated_step() == 0
    fold(state, [reported(1, 10, accuracy=0.7, train_loss=2.0)])
    assert scores.evaluated_step() == 10
    metrics = scores.metrics(local_step=10)
    assert metrics["accuracy"] == pytest.approx(0.6)
    assert metrics["train_loss"] == pytest.approx(1.5)  # ours is not known for a loop
    assert metrics["bytes_sent"] == 0  # ours is


def test_what_a_loop_reports_does_not_steer_tune() -> None:
    state = a_swarm(1)
    fold(state, [started(0), reported(0, 10, done=1.0, training_iteration=9.0)])
    metrics = Scores(state, target_accuracy=None).metrics(local_step=10)
    assert not {"done", "training_iteration"} & metrics.keys()
    assert (metrics["reported/done"], metrics["reported/training_iteration"]) == (1.0, 9.0)


@pytest.mark.parametrize(
    ("bundles", "fits"),
    [
        (None, False),
        ([{}], False),
        ([{"CPU": 0.25}] * 4, True),
        ([{"CPU": 1.0}], None),
        ([{"CPU": 0.25}] * 3, None),
        ([{"CPU": 1.0}, *[{"CPU": 0.25}] * 4], None),
    ],
)
def test_a_trials_own_bundles_are_taken_or_refused(
    bundles: list[dict[str, float]] | None, fits: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = None if bundles is None else SimpleNamespace(bundle_specs=bundles)
    filesystem = SimpleNamespace(type_name="local")
    storage = SimpleNamespace(storage_filesystem=filesystem, trial_fs_path=str(tmp_path))
    monkeypatch.setattr(within, "get_current_placement_group", lambda: group)
    monkeypatch.setattr("ray.tune.get_context", lambda: SimpleNamespace(get_storage=lambda: storage))
    monkeypatch.setattr(within, "_runs", Counter())
    trial, second, other = (within.WithinTrial(trial_id) for trial_id in ("one", "one", "other"))
    assert (trial.run_dir, second.run_dir, other.run_dir) == (tmp_path, tmp_path / "run-2", tmp_path)
    swarm = parse({"swarm": {"num_peers": 4, "cpus_per_peer": 0.25}}).swarm
    if fits is None:
        with pytest.raises(
            ConfigError, match=r"not a bundle for each peer: tune\.with_resources\(trial, .*0\.25\}\] \* 4"
        ):
            trial.group(swarm)
    else:
        assert trial.group(swarm) is (group if fits else None)


def test_an_objective_that_was_never_reported_fails_the_trial_at_its_end() -> None:
    state = a_swarm(1)
    scores = Scores(state, target_accuracy=None, objectives=["max:acuracy"])
    fold(state, [started(0), reported(0, 10, accuracy=0.5)])
    scores.metrics(local_step=10)  # it may yet come
    summary = {"merged_accuracy": None, "merged_loss": None, "consensus_distance": 0.0}
    with pytest.raises(ConfigError) as error:
        scores.metrics(local_step=10, summary=summary)
    assert str(error.value) == "tune.objectives=max:acuracy was never reported; did you mean accuracy?"


def test_what_is_reported_is_compared_in_its_direction() -> None:
    assert comparable("max:a", {"a": 0.5}) == comparable("min:a", {"a": 0.5}) == 0.5
    assert comparable("max:a", {}) == -math.inf
    assert comparable("min:a", {"a": math.nan}) == math.inf
    assert shown(["max:a", "bytes_sent"])[-1] == "a"
    outcomes = [an_outcome("one", 0.3), an_outcome("two", 0.1), an_outcome("three", math.nan)]
    assert [outcome.name for outcome in rank(outcomes, "max:a")] == ["one", "two", "three"]
    assert [outcome.name for outcome in rank(outcomes, "min:a")] == ["two", "one", "three"]


def an_outcome(name: str, value: float) -> Outcome:
    history = [
        {"local_step": step, "a": value, "bytes_sent": float(step), "train_s": step / 10, "merged_accuracy": math.nan}
        for step in (1, 2)
    ]
    return Outcome(name, {"gossip.steps": 5}, "finished", history[-1], history, cause="", num_failures=0)


def test_there_are_pictures_of_what_is_reported() -> None:
    sweep = load(LOOP, "tune.objectives=max:a")
    outcomes = [an_outcome("one", 0.3), an_outcome("two", 0.1)]
    assert set(draw(sweep, outcomes, best=outcomes[0], front=[])) == set(NAMES)


def test_asha_stops_a_loop_that_is_behind_in_what_it_reports() -> None:
    sweep = load(LOOP, "tune.objectives=min:a", "tune.scheduler=asha", "tune.grace_steps=50")
    asha: Any = scheduler(sweep, max_steps=1_000_000_000, num_at_once=2)
    good, bad = ATrial("good"), ATrial("bad")
    for trial, value, decision in ((good, 0.1, "CONTINUE"), (bad, 0.9, "STOP")):
        asha.on_trial_add(None, trial)
        assert asha.on_trial_result(None, trial, {"local_step": 60, "a": value}) == decision
