"""Ray Train's TorchTrainer, whose `prepare_model` is DDP: one program for all ranks."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import ray
import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model

from methods.ddp import train
from methods.task import Course, Task


def loop(config: dict[str, str]) -> None:
    rank = ray.train.get_context().get_world_rank()
    course = Course(replace(Task.parse(config["task"]), rank=rank))
    train(course, prepare_model(course.model), is_local=False)


def main() -> None:
    task = Task.parse(sys.argv[1])
    ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    TorchTrainer(
        loop,
        train_loop_config={"task": task.text()},
        scaling_config=ScalingConfig(num_workers=task.world, resources_per_worker={"CPU": 0.1}),
        run_config=RunConfig(name="ddp", storage_path=str(Path(task.folder) / "results")),
    ).fit()


if __name__ == "__main__":
    main()
