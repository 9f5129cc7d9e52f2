"""hivemind.Optimizer as its quickstart has it. `method`: local (updates, then states are averaged), or gradients."""

from __future__ import annotations

import json
import sys

import hivemind

from methods.task import Course, Task, loss_of


def main() -> None:
    task = Task.parse(sys.argv[1])
    course = Course(task)
    dht = hivemind.DHT(
        initial_peers=json.loads(task.hear("address")) if task.rank else [],
        host_maddrs=[f"/ip4/{task.ip_address}/tcp/0"],
        start=True,
    )
    if task.rank == 0:
        task.tell_all("address", json.dumps([str(address) for address in dht.get_visible_maddrs()]))
    is_local = task.method == "local"
    optimizer = hivemind.Optimizer(
        dht=dht,
        run_id="compared",
        batch_size_per_step=task.batch_size,
        target_batch_size=task.batch_size * task.world * (task.interval if is_local else 1),
        optimizer=course.optimizer,
        use_local_updates=is_local,
        matchmaking_time=1.5,
        averaging_timeout=15.0,
        averager_opts={"target_group_size": task.world},
        tracker_opts={"min_refresh_period": 0.1, "default_refresh_period": 0.3, "max_refresh_period": 1.0},
    )
    task.tell_all(f"ready-{task.rank}", "")
    for rank in range(task.world):
        task.hear(f"ready-{rank}")
    for inputs, labels in course.batches():
        optimizer.zero_grad()
        loss_of(course.model, inputs, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    course.finish()
    task.tell_all(f"done-{task.rank}", "")
    for rank in range(task.world):  # its node of the DHT serves the others until they are done
        task.hear(f"done-{rank}")
    optimizer.shutdown()
    dht.shutdown()


if __name__ == "__main__":
    main()
