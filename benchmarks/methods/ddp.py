"""torch's DistributedDataParallel with gloo. `method`: ddp, or post-local (gradients are averaged while the first tenth
lasts, and parameters at each interval after that)."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

from methods.task import Course, Task, loss_of

TIMEOUT = timedelta(seconds=60)


def main() -> None:
    task = Task.parse(sys.argv[1])
    course = Course(task)
    store: Any = dist.FileStore(  # type: ignore[attr-defined]
        f"{task.folder}/store", task.world
    )
    dist.init_process_group("gloo", store=store, rank=task.rank, world_size=task.world, timeout=TIMEOUT)
    train(course, DistributedDataParallel(course.model), is_local=task.method == "post-local")
    dist.destroy_process_group()


def train(course: Course, model: DistributedDataParallel, *, is_local: bool) -> None:
    optimizer: Any = course.optimizer
    if is_local:
        warm_up = course.task.steps // 10
        subgroup, _ = dist.new_subgroups(group_size=1)  # each process is a node of its own
        state = PostLocalSGDState(  # type: ignore[no-untyped-call]
            process_group=None, subgroup=subgroup, start_localSGD_iter=warm_up
        )
        model.register_comm_hook(state, post_localSGD_hook)
        averager = PeriodicModelAverager(period=course.task.interval, warmup_steps=warm_up)
        optimizer = PostLocalSGDOptimizer(optim=course.optimizer, averager=averager)
    for inputs, labels in course.batches():
        optimizer.zero_grad()
        loss_of(model, inputs, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    course.finish()


if __name__ == "__main__":
    main()
