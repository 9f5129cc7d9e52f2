"""Ray Train's configs: what they mean here, and a line for what has no meaning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from ray_gossip import GossipTrainer
from ray_gossip.errors import ConfigError, ResourceError
from ray_gossip.ray_train import run_dir_of, swarm_of


def loop(config: dict[str, Any]) -> None:
    """Trains nothing."""


def test_a_scaling_config_is_the_swarm() -> None:
    scaling = ScalingConfig(
        num_workers=3,
        use_gpu=True,
        resources_per_worker={"CPU": 2, "fast": 1},
        placement_strategy="SPREAD",
        accelerator_type="H100",
    )
    swarm = GossipTrainer(loop, train_loop_config={"lr": 0.1}, scaling_config=scaling).config.swarm
    assert (swarm.num_peers, swarm.gpus_per_peer, swarm.cpus_per_peer, swarm.placement) == (3, 1, 2, "SPREAD")
    assert (swarm.accelerator_type, swarm.resources_per_peer) == ("H100", {"fast": 1})
    assert swarm_of(ScalingConfig(num_workers=2)) == {
        "num_peers": 2,
        "gpus_per_peer": 0.0,
        "cpus_per_peer": 1.0,
        "placement": "PACK",
    }
    assert swarm_of(None) == {}


def test_a_swarm_that_does_not_fit_is_told_in_the_words_in_which_it_was_given(tmp_path: Path) -> None:
    trainer = GossipTrainer(loop, scaling_config=ScalingConfig(num_workers=1000), run_dir=tmp_path / "run")
    with pytest.raises(ResourceError, match=r"needs 1000 CPUs .*resources_per_worker=\{'CPU': 0\.25\}$"):
        trainer.fit()


def test_a_run_config_is_the_folder() -> None:
    assert run_dir_of(None) is None
    assert run_dir_of(RunConfig(name="a")) == Path.home() / "ray_results" / "a"
    assert run_dir_of(RunConfig(name="a", storage_path="/data")) == Path("/data/a")


@pytest.mark.parametrize(("most", "replacements"), [(0, 0), (2, 2), (-1, 1_000_000_000)])
def test_max_failures_is_how_often_a_peer_is_replaced(most: int, replacements: int) -> None:
    run = RunConfig(name="a", failure_config=FailureConfig(max_failures=most))
    assert GossipTrainer(loop, run_config=run).config.max_replacements == replacements


def test_an_elastic_number_of_workers_is_the_least_and_the_most_of_peers() -> None:
    run = RunConfig(name="a", failure_config=FailureConfig(max_failures=3))
    swarm = GossipTrainer(loop, scaling_config=ScalingConfig(num_workers=(1, 4)), run_config=run).config.swarm
    assert (swarm.min_peers, swarm.num_peers) == (1, 4)


def test_a_checkpoint_config_says_which_are_kept() -> None:
    best = CheckpointConfig(num_to_keep=5, checkpoint_score_attribute="loss", checkpoint_score_order="min")
    checkpoint = GossipTrainer(loop, run_config=RunConfig(name="a", checkpoint_config=best)).config.checkpoint
    assert (checkpoint.keep, checkpoint.best_by) == (5, "min:loss")
    checkpoint = GossipTrainer(loop, run_config=RunConfig(name="a")).config.checkpoint
    assert (checkpoint.keep, checkpoint.best_by) == (2, None)


def test_the_loop_and_its_argument_stand_in_the_config_where_they_are_plain() -> None:
    plain = GossipTrainer(loop, train_loop_config={"lr": 0.1}).config.train
    assert (plain.loop, plain.loop_args) == ("tests.unit.test_ray_train:loop", {"lr": 0.1})
    other = GossipTrainer(loop, train_loop_config={"data": object()}).config.train
    assert (other.loop, other.loop_args) == ("tests.unit.test_ray_train:loop", {})


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            {"scaling_config": ScalingConfig(use_tpu=True)},
            r"scaling_config\.use_tpu=True: it has no meaning for a swarm",
        ),
        ({"scaling_config": 4}, "scaling_config is a int, not Ray Train's ScalingConfig"),
        (
            {"run_config": RunConfig(failure_config=FailureConfig(controller_failure_limit=3))},
            r"failure_config\.controller_failure_limit=3: it has no meaning for a swarm; leave it out",
        ),
        (
            {"scaling_config": ScalingConfig(num_workers=(1, 4))},
            r"swarm\.min_peers needs swarm\.max_replacements: peers come in while the swarm runs",
        ),
        ({"run_config": RunConfig(name="a", storage_path="s3://b")}, r"is a URI, which only a sweep writes to"),
        ({"run_config": RunConfig(name="a"), "run_dir": "b"}, "keep one of them"),
        ({"model": "a:b"}, "model=a:b is for runs without a loop of their own"),
        ({"config": {"engine": "hivemind"}}, "engine=hivemind needs the optimizer, which train.loop keeps to itself"),
    ],
)
def test_what_has_no_meaning_is_refused_in_a_line(arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as error:
        GossipTrainer(loop, **arguments)
    assert "\n" not in str(error.value)


async def coroutine(config: dict[str, Any]) -> None:
    """Is never run."""


def generator(config: dict[str, Any]) -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "arguments", "line"),
    [
        (coroutine, {}, "coroutine has async or yield in it"),
        (generator, {}, "generator has async or yield in it"),
        (lambda a, b: None, {}, r"has the parameters \(a, b\), but is called with \(config\)"),
        (None, {"train_loop_config": {"lr": 1}}, "train_loop_config is for a train_loop_per_worker"),
        (loop, {"scaling_config": RunConfig()}, "scaling_config is a RunConfig, not Ray Train's ScalingConfig"),
        (loop, {"scaling_config": ScalingConfig}, "scaling_config is a type, not Ray Train's ScalingConfig"),
        (loop, {"run_config": RunConfig(name=3)}, r"run_config\.name=3 is no text"),
        (loop, {"run_config": RunConfig(name="../x", storage_path="/data")}, "is no name of one folder"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(function: Any, arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        GossipTrainer(function, **arguments)


def test_the_argument_of_a_loop_may_be_anything() -> None:
    for argument in (torch.ones(3), np.ones(3)):
        assert GossipTrainer(loop, train_loop_config=argument).config.train.loop_args == {}


def test_a_loop_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="train_loop_per_worker is a int, not a function that trains"):
        GossipTrainer(3)  # type: ignore[arg-type]
