"""What a trial reports, which trials are stopped for it, and what the report makes of it: no trial is run."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from ray_gossip.resources import num_that_fit
from ray_gossip.tuning import plots
from ray_gossip.tuning import sweep as sweeps
from ray_gossip.tuning.importance import importance
from ray_gossip.tuning.metrics import Metrics, Scores, comparable
from ray_gossip.tuning.outcome import End, Outcome, pareto, rank
from ray_gossip.tuning.search import scheduler, searcher
from ray_gossip.tuning.sweep import Sweep
from tests.unit.telemetry_records import a_config, a_swarm, evaluation, fold, lost, progress, report, started


def a_sweep(*words: str) -> Sweep:
    return sweeps.load(None, ["train.eval_every=50", "train.local_steps=400", *words])


def an_outcome(name: str, end: End, accuracy: float, megabytes: float = 1.0, *, lr: float = 0.1) -> Outcome:
    steps = [50, 100] if end == "stopped_early" else [50, 100, 400]
    history: list[Metrics] = [
        {
            "local_step": step,
            "peer_accuracy": accuracy * step / steps[-1],
            "bytes_sent": megabytes * 1e6 * step / steps[-1],
            "train_s": step / 10,
            "merged_accuracy": accuracy if step == 400 else math.nan,
        }
        for step in steps
    ]
    return Outcome(name, {"optimizer.lr": lr}, end, history[-1], history, cause="", num_failures=0)


class TestTheMetricsOfATrial:
    def test_are_the_same_from_the_first_result_to_the_last(self) -> None:
        state = a_swarm(2)
        scores = Scores(state, target_accuracy=None)
        first = scores.metrics(local_step=0)
        summary = {"merged_accuracy": 0.9, "merged_loss": 0.1, "consensus_distance": 0.0}
        last = scores.metrics(local_step=400, summary=summary)
        assert first.keys() == last.keys()
        assert math.isnan(first["merged_accuracy"])
        assert (last["merged_accuracy"], last["finished"]) == (0.9, 1)

    def test_an_evaluation_counts_once_all_live_peers_have_done_it(self) -> None:
        state = a_swarm(3)
        scores = Scores(state, target_accuracy=None)
        fold(state, [started(0), started(1), started(2), evaluation(0, 50, 0.5), evaluation(1, 100, 0.7)])
        assert scores.evaluated_step() == 0
        fold(state, [lost(2)])
        assert scores.evaluated_step() == 50
        assert scores.metrics(local_step=50)["peer_accuracy"] == pytest.approx(0.6)

    def test_the_target_is_reached_when_the_peers_are_as_good_on_average(self) -> None:
        state = a_swarm(1)
        scores = Scores(state, target_accuracy=0.8)
        fold(state, [started(0), progress(0, 10, wall_time=1000.0), report(0, 1), evaluation(0, 50, 0.7)])
        assert math.isnan(scores.metrics(local_step=50)["bytes_to_target"])
        fold(state, [progress(0, 90, wall_time=1030.0), report(0, 2), evaluation(0, 100, 0.8)])
        reached = scores.metrics(local_step=100)
        assert (reached["seconds_to_target"], reached["bytes_to_target"]) == (30.0, 2_000_000)
        fold(state, [report(0, 3)])
        assert scores.metrics(local_step=150)["bytes_to_target"] == 2_000_000

    def test_count_on_from_those_of_the_checkpoint_from_which_the_trial_goes_on(self) -> None:
        first, second = a_swarm(1), a_swarm(1)
        fold(first, [started(0), progress(0, 10, wall_time=1000.0), report(0, 1), evaluation(0, 50, 0.7)])
        fold(first, [progress(0, 60, wall_time=1020.0)])
        before = Scores(first, target_accuracy=0.6).metrics(local_step=50)
        scores = Scores(second, target_accuracy=0.6, before=before)
        assert scores.metrics(local_step=50) | {"live_peers": 1} == pytest.approx(
            before | {"samples_per_s": 0.0, "train_loss": math.nan, "consensus_distance": math.nan}, nan_ok=True
        )
        fold(second, [started(0), progress(0, 70, wall_time=2000.0), report(0, 7), evaluation(0, 100, 0.8)])
        fold(second, [progress(0, 110, wall_time=2005.0)])
        after = scores.metrics(local_step=100)
        assert (after["train_s"], after["bytes_sent"], after["rounds_averaged"]) == (25.0, 2_000_000, 2)
        assert (after["peer_accuracy"], after["seconds_to_target"]) == (0.8, 20.0)


class TestWhatIsBest:
    def test_a_trial_without_a_merged_model_counts_by_its_peers_and_an_unreached_target_is_infinitely_far(self) -> None:
        stopped = {"merged_accuracy": math.nan, "peer_accuracy": 0.4, "bytes_to_target": math.nan}
        assert comparable("merged_accuracy", stopped) == 0.4
        assert comparable("bytes_to_target", stopped) == math.inf
        assert comparable("peer_accuracy", {}) == -math.inf

    def test_a_trial_that_finished_comes_before_one_that_was_stopped(self) -> None:
        outcomes = [
            an_outcome("stopped", "stopped_early", 0.99),
            an_outcome("worse", "finished", 0.8),
            an_outcome("better", "finished", 0.9),
            an_outcome("failed", "failed", 0.95),
        ]
        assert [each.name for each in rank(outcomes, "merged_accuracy")] == ["better", "worse", "stopped", "failed"]

    def test_a_trial_that_ended_without_agreement_comes_after_those_that_have_a_merged_model(self) -> None:
        merged, without = an_outcome("merged", "finished", 0.8), an_outcome("without", "finished", 0.99)
        without.metrics.update(merged_accuracy=math.nan, peer_accuracy=0.99)
        names = [each.name for each in rank([without, merged], "merged_accuracy")]
        assert names == ["merged", "without"]

    def test_the_pareto_front_holds_trials_that_nothing_beats_without_losing_something(self) -> None:
        outcomes = [
            an_outcome("accurate", "finished", 0.95, 10),
            an_outcome("thrifty", "finished", 0.90, 1),
            an_outcome("beaten", "finished", 0.90, 5),
            an_outcome("as good as thrifty", "finished", 0.90, 1),
            an_outcome("stopped", "stopped_early", 0.99, 0.5),
        ]
        front = pareto(outcomes, ["merged_accuracy", "bytes_sent"])
        assert [each.name for each in front] == ["accurate", "thrifty", "as good as thrifty"]

    def test_the_key_that_matters_is_told_from_the_one_that_does_not(self) -> None:
        sweep = a_sweep("space.optimizer.lr.uniform=[0.01, 0.2]", "space.seed.choice=[0, 1]")
        outcomes = [
            Outcome(
                **{
                    **vars(an_outcome(f"{i}", "finished", 0.5 + i / 40)),
                    "point": {"optimizer.lr": i / 100, "seed": i % 2},
                }
            )
            for i in range(1, 17)
        ]
        shares = importance(sweep, outcomes)
        assert next(iter(shares)) == "optimizer.lr"
        assert shares["optimizer.lr"] > 0.8
        assert importance(sweep, outcomes[:3]) == {}

    def test_pictures_are_drawn_of_whatever_there_is(self) -> None:
        sweep = a_sweep("space.optimizer.lr.loguniform=[0.01, 0.2]")
        some = [an_outcome("best", "finished", 0.9), an_outcome("stopped", "stopped_early", 0.4, lr=0.02)]
        assert set(plots.draw(sweep, some, best=some[0], front=[])) == set(plots.NAMES)
        assert plots.draw(sweep, [], best=None, front=[]) == {}
        begun = Outcome("begun", {"optimizer.lr": 0.1}, "unfinished", {"local_step": 0}, [], cause="", num_failures=0)
        plots.draw(sweep, [begun], best=None, front=[])  # without a warning


class TestWhoIsStoppedEarly:
    def test_asha_stops_the_hopeless_but_no_baseline_and_nobody_before_the_first_evaluation(self) -> None:
        asha: Any = scheduler(
            a_sweep("space.seed.choice=[0]", "tune.baselines=all", "tune.scheduler=asha"), max_steps=400, num_at_once=4
        )
        good, bad, baseline = (ATrial(name) for name in ("good", "bad", "all"))
        for trial in (good, bad, baseline):
            asha.on_trial_add(None, trial)
        assert asha.on_trial_result(None, good, result(50, 0.9)) == "CONTINUE"
        assert asha.on_trial_result(None, bad, result(0, math.nan)) == "CONTINUE"
        assert asha.on_trial_result(None, baseline, result(50, 0.1)) == "CONTINUE"
        assert asha.on_trial_result(None, bad, result(50, 0.2)) == "STOP"
        asha.on_trial_complete(None, baseline, result(400, 0.99, merged=0.99))

    @pytest.mark.parametrize("name", ["asha", "median"])
    @pytest.mark.parametrize("lost", [math.inf, math.nan])
    def test_a_trial_that_diverged_keeps_nobody_else_from_being_stopped(self, name: str, lost: float) -> None:
        words = (
            "space.seed.choice=[0]",
            "tune.objectives=merged_loss",
            f"tune.scheduler={name}",
            "tune.grace_steps=50",
        )
        rule: Any = scheduler(a_sweep(*words), max_steps=400, num_at_once=9)
        controller = SimpleNamespace(get_live_trials=lambda: [])
        losses = (0.1, lost, 0.2, 0.3, 5.0, 1e30)
        trials = [ATrial(str(number)) for number in range(len(losses))]
        decisions = []
        for trial, loss in zip(trials, losses, strict=True):
            rule.on_trial_add(controller, trial)
            decisions.append(rule.on_trial_result(controller, trial, result(50, 0.5) | {"peer_loss": loss}))
        assert [decisions[0], *decisions[-2:]] == ["CONTINUE", "STOP", "STOP"]

    def test_the_median_rule_never_pauses_and_is_not_misled_by_what_is_unknown(self) -> None:
        median: Any = scheduler(a_sweep("space.seed.choice=[0]", "tune.scheduler=median"), max_steps=400, num_at_once=4)
        controller = SimpleNamespace(get_live_trials=lambda: [SimpleNamespace(status="PENDING")])
        trials = [ATrial(name) for name in "abcd"]
        for trial in trials:
            median.on_trial_add(controller, trial)
            assert median.on_trial_result(controller, trial, result(0, math.nan)) == "CONTINUE"
        for trial, accuracy in zip(trials[:3], (0.9, 0.8, 0.7), strict=True):
            assert median.on_trial_result(controller, trial, result(50, accuracy)) == "CONTINUE"
        assert median.on_trial_result(controller, trials[3], result(50, 0.1)) == "STOP"


class TestAPopulation:
    words = (
        "tune.scheduler=pbt",
        "tune.perturb_steps=50",
        "tune.num_samples=3",
        "space.optimizer.lr.uniform=[0.09, 0.1]",
        "space.gossip.group_size.choice=[2, 4]",
        "space.gossip.min_group_size.choice=[2, 4]",
        "space.gossip.steps.randint=[1, 3]",
    )

    def test_changes_values_within_the_space_and_to_those_that_go_together(self) -> None:
        sweep = a_sweep(*self.words)
        population: Any = scheduler(sweep, max_steps=400, num_at_once=3)
        ahead: Any = ATrial("ahead")
        ahead.config = {
            "optimizer.lr": 0.1,
            "gossip.group_size": 4,
            "gossip.min_group_size": 4,
            "gossip.steps": 3,
        }
        found = [population._get_new_config(ATrial("behind"), ahead)[0] for _ in range(100)]
        assert len({str(point) for point in found}) > 10
        for point in found:
            sweep.config(point)
            assert 0.09 <= point["optimizer.lr"] <= 0.1
            assert point["gossip.steps"] in (1, 2, 3)

    @pytest.mark.parametrize(("num_at_once", "decision"), [(1, "PAUSE"), (2, "CONTINUE")])
    def test_takes_turns_only_where_the_cluster_does_not_hold_all_at_once(
        self, num_at_once: int, decision: str
    ) -> None:
        population: Any = scheduler(a_sweep(*self.words), max_steps=400, num_at_once=num_at_once)
        trials = [ATrial("running"), ATrial("waiting")]
        controller = SimpleNamespace(get_trials=lambda: trials, get_live_trials=lambda: trials)
        for trial in trials:
            population.on_trial_add(controller, trial)
        trials[1].status = "PAUSED"
        assert population.on_trial_result(controller, trials[0], result(0, math.nan)) == "CONTINUE"
        assert population.on_trial_result(controller, trials[0], result(50, 0.5)) == decision

    def test_counts_the_turn_of_a_trial_that_was_started_again_from_its_checkpoint(self) -> None:
        population: Any = scheduler(a_sweep(*self.words), max_steps=400, num_at_once=1)
        trial = ATrial("again")
        trial.latest_checkpoint_result = SimpleNamespace(metrics=result(100, 0.5))
        trials = [trial, ATrial("waiting")]
        controller = SimpleNamespace(get_trials=lambda: trials, get_live_trials=lambda: trials)
        for each in trials:
            population.on_trial_add(controller, each)
        trials[1].status = "PAUSED"
        assert population.on_trial_result(controller, trial, result(100, 0.5)) == "CONTINUE"
        assert population.on_trial_result(controller, trial, result(150, 0.5)) == "PAUSE"

    def test_leaves_baselines_alone(self) -> None:
        sweep = a_sweep(*self.words, "tune.baselines=all")
        population: Any = scheduler(sweep, max_steps=400, num_at_once=1)
        baseline = ATrial("all")
        baseline.config |= sweep.baselines()[0]
        controller = SimpleNamespace(get_trials=lambda: [baseline], get_live_trials=lambda: [baseline])
        population.on_trial_add(controller, baseline)
        assert population.on_trial_result(controller, baseline, result(100, 0.1)) == "CONTINUE"
        assert population.last_scores([baseline]) == []


class TestWhichTrialComesNext:
    def test_known_points_in_their_order_then_nothing(self) -> None:
        sweep = a_sweep("space.seed.grid=[3, 1, 2]")
        points: Any = searcher(sweep, sweep.points()[0])
        assert [points.suggest(name) for name in "abc"] == [{"seed": 3}, {"seed": 1}, {"seed": 2}]
        assert points.suggest("d") == "FINISHED"

    def test_optuna_follows_the_baselines_and_what_it_suggests_is_a_config(self, tmp_path: Any) -> None:
        sweep = a_sweep(
            "space.gossip.group_size.choice=[2, 4]",
            "space.gossip.min_group_size.choice=[2, 3, 4]",
            "tune.searcher=optuna",
            "tune.baselines=hivemind",
        )
        points: Any = searcher(sweep, sweep.points()[0])
        assert points.suggest("first")["baseline"] == "hivemind"
        points.on_trial_complete("first", result(400, 0.9, merged=0.9))
        for number in range(12):
            point = points.suggest(f"trial {number}")
            assert point["baseline"] == "none"
            sweep.config(point)
            points.on_trial_complete(f"trial {number}", result(50, 0.5))
        points.save(str(tmp_path / "state"))
        again: Any = searcher(sweep, sweep.points()[0])
        again.restore(str(tmp_path / "state"))
        assert again.suggest("another")["baseline"] == "none"


@pytest.mark.parametrize(
    ("peers", "placement", "nodes", "fit"),
    [
        (2, "PACK", [8, 8], 8),
        (3, "PACK", [8, 8], 5),
        (2, "STRICT_SPREAD", [8, 1], 1),
        (2, "STRICT_SPREAD", [8, 3, 3], 6),
        (4, "STRICT_SPREAD", [8, 8], 0),
    ],
)
def test_as_many_trials_run_at_once_as_their_bundles_fit(
    peers: int, placement: str, nodes: list[int], fit: int
) -> None:
    swarm = a_config().swarm.model_copy(
        update={"num_peers": peers, "placement": placement, "cpus_per_peer": 1, "gpus_per_peer": 1}
    )
    assert num_that_fit(swarm, [{"CPU": 64.0, "GPU": float(gpus)} for gpus in nodes]) == fit


class ATrial:
    """What a scheduler sees of one; `all` is a baseline."""

    def __init__(self, name: str) -> None:
        self.trial_id = self.experiment_tag = name
        self.config: dict[str, Any] = {"baseline": "all" if name == "all" else "none"}
        self.status = "RUNNING"
        self.evaluated_params: dict[str, Any] = {}
        self.latest_checkpoint_result: Any = None
        self.run_metadata = SimpleNamespace(
            checkpoint_manager=SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        )

    def is_finished(self) -> bool:
        return self.status == "TERMINATED"


def result(step: int, accuracy: float, *, merged: float = math.nan) -> dict[str, float]:
    return {"local_step": step, "peer_accuracy": accuracy, "merged_accuracy": merged}
