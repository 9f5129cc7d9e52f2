"""ours: the README's lines around a loop. `method`: default, or a schedule in groups of all."""

from __future__ import annotations

import json
import sys
from typing import Any

import ray_gossip
from methods.task import Course, Task, loss_of


def main() -> None:
    task = Task.parse(sys.argv[1])
    course = Course(task)
    config: dict[str, Any] = {"gossip": {"steps": task.interval}}
    if task.method != "default":
        config["gossip"] |= {"schedule": task.method, "group_size": task.world}
    peer = ray_gossip.join(
        course.model,
        config=config,
        founders=task.world,
        initial_peers=json.loads(task.hear("address")) if task.rank else [],  # who founds says it on standard error
        host_maddrs=[f"/ip4/{task.ip_address}/tcp/0"],
    )
    for inputs, labels in course.batches():
        course.optimizer.zero_grad()
        loss_of(course.model, inputs, labels).backward()  # type: ignore[no-untyped-call]
        course.optimizer.step()
        peer.step()
    peer.leave()
    course.finish()


if __name__ == "__main__":
    main()
