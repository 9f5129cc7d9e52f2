"""Which values a sweep tries, and what it refuses: pure, so that a mistake is answered at once."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest

from ray_gossip import config as configs
from ray_gossip import driver
from ray_gossip.errors import ConfigError
from ray_gossip.tuning import sweep as sweeps
from ray_gossip.tuning.space import Choice, Range
from ray_gossip.tuning.sweep import Sweep

CONFIGS = Path(__file__).parents[2] / "configs"


def sweep(*words: str) -> Sweep:
    return sweeps.load(None, ["train.eval_every=50", *words])


def points(*words: str) -> list[dict[str, Any]]:
    return sweep(*words).points()[0]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("space.gossip.group_siz.choice=[2]", "space: unknown key gossip.group_siz; did you mean gossip.group_size?"),
        ("space.gossip.choice=[2]", "space: gossip is a section; name a key in it, such as gossip.group_size"),
        ("space.gossip.group_size.choice=[]", "space.gossip.group_size: choice is empty; give it at least one value"),
        ("space.gossip.group_size.choice=[2, 4, 0]", "space.gossip.group_size=0 should be greater than or equal to 1"),
        ("space.gossip.schedule.grid=[grid, star]", "space.gossip.schedule='star' should be 'grid', 'random'"),
        ("space.gossip.alpha.uniform=[0.5, 1.5]", "space.gossip.alpha=1.5 should be less than or equal to 1"),
        ("space.gossip.alpha.uniform=[0, 1]", "space.gossip.alpha=0 should be greater than 0"),
        ("space.gossip.alpha.uniform=[1]", "space.gossip.alpha: uniform needs two numbers, not [1]"),
        ("space.gossip.alpha.uniform=[1, 0.5]", "space.gossip.alpha: uniform=[1, 0.5] is empty"),
        ("space.gossip.alpha.unifrom=[0.5, 1]", "says not how to choose; did you mean uniform?"),
        ("space.optimizer.lr.loguniform=[0, 1]", "space.optimizer.lr: loguniform=[0, 1] needs bounds above 0"),
        ("space.gossip.steps.uniform=[5, 50]", "uniform draws fractions, but gossip.steps takes whole numbers"),
        ("space.gossip.steps.randint=[5.5, 50]", "space.gossip.steps: randint needs two whole numbers"),
        ("space.gossip.steps=5", "space.gossip.steps=5 says not how to choose; write {choice: [5]}"),
        ("tune.scheduler=pbt", "space: nothing is swept"),
        ("tune.perturb_steps=50", "tune: perturb_steps is for scheduler=pbt, not auto; leave it out"),
        ("tune.schedular=asha", "unknown key tune.schedular; did you mean tune.scheduler?"),
        ("tune.objectives=bytes_to_target", "objectives=bytes_to_target needs tune.target_accuracy"),
        ("tune.baselines=[everything]", "tune.baselines.0='everything' should be 'all', 'no_averaging'"),
        ("tune.num_samples=3", "space: nothing is swept"),
        ("tune.grace_steps=2000", "tune.grace_steps=2000 is above train.local_steps=1000"),
        (
            "tune.scheduler=asha; train.eval_every=1000",
            "train.eval_every=1000 is not below train.local_steps=1000",
        ),
        ("space.seed.choice=[1, 2, 1]", "space.seed: choice has 1 twice; leave one out"),
        (
            "space.gossip={steps: {choice: [1]}, seconds: {choice: [1]}}",
            "space.gossip.steps and seconds are both swept",
        ),
        ("space={gossip.steps: {choice: [1]}, gossip: {steps: {choice: [2]}}}", "space.gossip.steps is there twice"),
        (
            "tune.scheduler=asha; space.train.local_steps.choice=[60, 2000]",
            "space.train.local_steps=60 is below the 125 local steps at which",
        ),
        ("space.model.args.width.choice=[.nan]", "space.model.args: width=nan is no plain value"),
        ("space.seed.uniform=[0, 1e300]", "space.seed: uniform=[0, 1e+300] goes beyond 1e+15; lower it"),
        (f"space.seed.choice={list(range(2001))}", "space.seed: choice has 2001 values, above 2000; use a range"),
        ("tune={reduction: 4, scheduler: median}", "tune: reduction is for scheduler=asha, not median; leave it out"),
        ("tune={grace_steps: 50, scheduler: none}", "tune: grace_steps is for scheduler=asha, not none; leave it out"),
        ("tune.objectives=[merged_loss, merged_loss]", "tune.objectives: merged_loss is there twice; leave one out"),
        ("tune.baselines=[all, hivemind, all]", "tune.baselines: all is there twice; leave one out"),
        ("tune.num_samples=100000", "tune.num_samples=100000 should be less than or equal to 2000"),
    ],
)
def test_a_mistake_in_a_sweep_is_one_line_that_names_the_key(word: str, line: str) -> None:
    with pytest.raises(ConfigError) as mistake:
        sweep(*word.split("; "))
    assert line in str(mistake.value)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["space.model.name.choice=[cnn, mlp]"], "space.model.name cannot change while a run goes on"),
        (["space.data.shards.choice=[iid, dirichlet]"], "space.data.shards cannot change while a run goes on"),
        (["space.seed.choice=[0, 1]"], "give seed one value, or use scheduler=asha"),
        (["space.engine.choice=[gossip, hivemind]"], "space.engine cannot change"),
        (["space.swarm.num_peers.choice=[2, 4]"], "space.swarm.num_peers cannot change"),
        (["space.train.local_steps.choice=[200, 400]"], "space.train.local_steps cannot change"),
        (["space.optimizer.name.choice=[SGD, AdamW]"], "space.optimizer.name cannot change"),
        (["engine=hivemind"], "engine=hivemind cannot go on from another trial's state"),
        (["tune.searcher=optuna"], "searcher=optuna learns what values lead to, but scheduler=pbt changes them"),
        (["tune.perturb_steps=2000"], "tune.perturb_steps=2000 is above train.local_steps=1000"),
        (["tune.num_samples=1"], "tune.scheduler=pbt has a population of 1"),
        (["tune.max_concurrent=2"], "tune.max_concurrent=2 is below the 4 trials of tune.scheduler=pbt"),
    ],
)
def test_what_no_population_can_do_is_one_line_that_names_the_key(words: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as mistake:
        points("tune.scheduler=pbt", "tune.num_samples=4", "space.optimizer.lr.uniform=[0.01, 0.1]", *words)
    assert line in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_a_population_may_change_whatever_leaves_the_model_the_swarm_and_the_data_as_they_are() -> None:
    population = sweep(
        "tune.scheduler=pbt",
        "tune.baselines=[hivemind]",
        "space.gossip.steps.randint=[5, 50]",
        "space.gossip.schedule.grid=[grid, random]",
        "space.optimizer.lr.loguniform=[0.001, 0.1]",
        "space.data.batch_size.choice=[16, 32]",
        "tune.num_samples=3",
    )
    assert len(population.points()[0]) == 7
    assert population.settings.perturb_steps == population.settings.grace_steps == 125


def test_trials_that_are_evaluated_at_different_steps_are_not_compared(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("space: {train.eval_every: {choice: [50, 100]}}")
    with pytest.raises(
        ConfigError, match=r"^space\.train\.eval_every: tune\.scheduler=asha compares trials at the same"
    ):
        sweeps.load(file, ["tune.scheduler=asha"])
    assert len(sweeps.load(file, ()).points()[0]) == 2


@pytest.mark.parametrize("words", [["{each}.grid={values}"], ["{each}.choice={values}", "tune.searcher=grid"]])
def test_a_million_points_are_refused_by_their_number(words: list[str]) -> None:
    values = list(range(1, 1001))
    swept = [word.format(each=f"space.{key}", values=values) for key in ("seed", "gossip.steps") for word in words[:1]]
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"^space: its grids have 1,000,000 points, above 2,000; lower tune\.num_s"):
        sweep(*swept, *words[1:])
    assert time.monotonic() - started < 2.0


def test_a_grid_without_any_config_is_answered_soon() -> None:
    words = ["space.gossip.group_size.choice=[2, 3]", f"space.seed.grid={list(range(200))}", "tune.num_samples=10"]
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"^space: none of its points is a config: "):
        points(*words, "space.gossip.min_group_size.choice=[4, 5]")
    assert time.monotonic() - started < 5.0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["model.factory=nowhere:build", "space.seed.choice=[1]"],
            "model.factory=nowhere:build: there is no module now",
        ),
        (["space.model.factory.choice=['nowhere:build']"], "model.factory=nowhere:build: there is no module nowhere"),
        (["space.optimizer.name.choice=[SGD, sdg]"], "optimizer.name=sdg is not in torch.optim; did you mean SGD?"),
        (
            ["space.gossip.group_size.choice=[2, 3]", "space.gossip.min_group_size.choice=[4, 5]"],
            "space: none of its points is a config: gossip: min_group_size=",
        ),
    ],
)
@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_base_and_choices_are_checked_whatever_the_searcher(words: list[str], line: str, searcher: str) -> None:
    with pytest.raises(ConfigError) as mistake:
        driver.tune(
            sweep(f"tune.searcher={searcher}", *words), address="", place="/tmp", resume=False, stream=io.StringIO()
        )
    assert str(mistake.value).startswith(line)


def test_keys_of_the_space_may_be_dotted_or_nested(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "train: {eval_every: 50}\nspace:\n  gossip.alpha: {uniform: [0.5, 1]}\n  gossip: {steps: {choice: [5]}}"
    )
    assert sweeps.load(file, ()).space == {"gossip.alpha": Range("uniform", 0.5, 1), "gossip.steps": Choice((5,))}


def test_draws_lie_in_the_space_and_the_same_seed_draws_the_same() -> None:
    words = (
        "space.gossip.group_size.choice=[2, 4]",
        "space.gossip.steps.randint=[5, 7]",
        "space.gossip.alpha.uniform=[0.5, 0.6]",
        "space.optimizer.lr.loguniform=[0.001, 0.1]",
        "tune.num_samples=50",
    )
    drawn = points(*words)
    assert len(drawn) == 50
    assert {point["gossip.group_size"] for point in drawn} == {2, 4}
    assert {point["gossip.steps"] for point in drawn} == {5, 6, 7}
    assert all(0.5 <= point["gossip.alpha"] <= 0.6 for point in drawn)
    assert 10 < sum(point["optimizer.lr"] < 0.01 for point in drawn) < 40
    assert drawn == points(*words)
    assert drawn != points(*words, "seed=1")


def test_a_finite_space_is_drawn_without_repetition_until_it_is_exhausted() -> None:
    drawn = points("space.gossip.group_size.choice=[2, 4]", "space.gossip.steps.choice=[5, 10]", "tune.num_samples=99")
    assert sorted((point["gossip.group_size"], point["gossip.steps"]) for point in drawn) == [
        (2, 5),
        (2, 10),
        (4, 5),
        (4, 10),
    ]


def test_a_grid_is_tried_in_full_with_each_draw() -> None:
    drawn = points(
        "space.gossip.schedule.grid=[grid, ring]", "space.gossip.alpha.uniform=[0.5, 1]", "tune.num_samples=3"
    )
    assert [point["gossip.schedule"] for point in drawn] == ["grid", "ring"] * 3
    assert len({point["gossip.alpha"] for point in drawn}) == 3


def test_searcher_grid_goes_through_choices_and_refuses_ranges() -> None:
    words = ("tune.searcher=grid", "tune.num_samples=1")
    assert len(points("space.gossip.group_size.choice=[2, 4]", "space.seed.choice=[0, 1, 2]", *words)) == 6
    with pytest.raises(ConfigError, match="searcher=grid cannot go through a uniform range"):
        sweep("space.gossip.alpha.uniform=[0.5, 1]", *words)


def test_values_that_do_not_go_together_are_left_out_and_told() -> None:
    tried, told = sweep("space.gossip.group_size.grid=[2, 4]", "space.gossip.min_group_size.grid=[2, 3]").points()
    assert [(point["gossip.group_size"], point["gossip.min_group_size"]) for point in tried] == [(2, 2), (4, 2), (4, 3)]
    assert len(told) == 1
    assert "1 of its points left out" in told[0]
    assert "min_group_size=3 is above group_size=2" in told[0]


def test_a_space_without_any_config_is_refused() -> None:
    with pytest.raises(ConfigError, match="none of its points is a config: gossip: min_group_size"):
        points("space.gossip.group_size.grid=[2, 3]", "gossip.min_group_size=4")


def test_a_key_that_is_overridden_is_not_swept(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("train: {eval_every: 50}\nspace: {gossip.alpha: {uniform: [0.5, 1]}, gossip.steps: {choice: [5]}}")
    pinned = sweeps.load(file, ["gossip.alpha=0.7"])
    assert list(pinned.space) == ["gossip.steps"]
    assert pinned.base.gossip.alpha == 0.7


def test_a_point_is_the_base_config_with_its_values() -> None:
    varied = sweep("space.gossip.seconds.uniform=[1, 2]", "gossip.group_size=4", "gossip.steps=10")
    config = varied.config({"gossip.seconds": 1.5})
    assert (config.gossip.seconds, config.gossip.steps, config.gossip.group_size) == (1.5, None, 4)
    assert configs.replace(config, {"gossip.seconds": None, "gossip.steps": 10}) == varied.base


def test_arguments_of_a_model_of_ones_own_can_be_swept() -> None:
    varied = sweep("model.factory=mine:net", "space.model.args.width.choice=[8, 16]", "tune.baselines=all")
    baseline, *others = varied.points()[0]
    assert varied.config(baseline).model.args == {}
    assert {varied.config(point).model.args["width"] for point in others} == {8, 16}


def test_baselines_come_first_with_the_base_values_of_what_is_swept() -> None:
    first, second, *others = points(
        "space.gossip.group_size.choice=[2, 4]", "tune.baselines=[no_averaging, hivemind]", "gossip.alpha=0.9"
    )
    assert first == {"gossip.group_size": 1, "baseline": "no_averaging"}
    assert second == {"gossip.group_size": 16, "engine": "hivemind", "baseline": "hivemind"}
    assert {point["baseline"] for point in others} == {"none"}


def test_all_swarms_of_a_sweep_are_known_before_it_starts() -> None:
    varied = sweep("space.swarm.num_peers.choice=[2, 8]", "tune.baselines=one_peer", "tune.num_samples=9")
    assert {swarm.num_peers for swarm in varied.swarms(varied.points()[0])} == {1, 2, 8}
    learning = sweep("space.swarm.num_peers.randint=[2, 8]", "tune.searcher=optuna")
    assert {swarm.num_peers for swarm in learning.swarms(learning.points()[0])} == {2, 8}


@pytest.mark.parametrize("name", ["tune_digits.yaml", "tune_cifar10.yaml"])
def test_the_sweeps_that_come_with_the_project_are_sound_and_survive_being_written_down(
    name: str, tmp_path: Path
) -> None:
    shipped = sweeps.load(CONFIGS / name, ())
    (tmp_path / "sweep.yaml").write_text(shipped.dump())
    again = sweeps.load_earlier(str(tmp_path))
    assert again == shipped
    assert again.points() == shipped.points()
    assert len(shipped.points()[0]) >= 8


def test_a_swarm_that_can_be_no_config_need_not_fit() -> None:
    learning = sweep("space.swarm.num_peers.choice=[2, 1434]", "tune.searcher=optuna")
    assert {swarm.num_peers for swarm in learning.swarms([])} == {2}
    tried, told = sweep("space.swarm.num_peers.choice=[2, 1434]").points()
    assert [point["swarm.num_peers"] for point in tried] == [2]
    assert "swarm.num_peers=1434 is above the 1433 training samples of data.name=digits" in told[0]


def test_resume_needs_the_folder_of_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--resume needs --run-dir"):
        sweeps.load_earlier(None)
    with pytest.raises(ConfigError, match="holds no sweep"):
        sweeps.load_earlier(str(tmp_path))
