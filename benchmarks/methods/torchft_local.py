"""torchft's LocalSGD and DiLoCo with gloo (`method`), one replica group of one process for each rank. The first also
runs the lighthouse."""

from __future__ import annotations

import contextlib
import sys
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torchft import Manager, ProcessGroupGloo
from torchft.coordination import LighthouseServer
from torchft.local_sgd import DiLoCo, LocalSGD

from methods.task import Course, Task, loss_of

TIMEOUT = timedelta(seconds=10)  # of its operations; its default of 60 s would hold all up for that long
WAITS_S, FEWEST = 5.0, 2  # for those who are there, and that go on without the others
OUTER_LR, OUTER_MOMENTUM = 0.7, 0.9  # as in the paper on DiLoCo


def main() -> None:
    task = Task.parse(sys.argv[1])
    course = Course(task)
    lighthouse: Any = None
    if task.rank == 0:
        lighthouse = LighthouseServer(
            bind="[::]:0",
            min_replicas=FEWEST,
            join_timeout_ms=int(1000 * WAITS_S),
            quorum_tick_ms=100,
            heartbeat_timeout_ms=int(1000 * WAITS_S),
        )
        task.tell_all("lighthouse", f"http://{task.ip_address}:{lighthouse.address().rpartition(':')[2]}")
    model: nn.Module = course.model
    with contextlib.ExitStack() as open_until_the_end:
        store = TCPStore(task.ip_address, 0, is_master=True, wait_for_workers=False)  # open while kept
        manager = _manager(task, model, course.optimizer, store.port)
        open_until_the_end.callback(manager.shutdown)
        options = {"sync_every": task.interval}
        if task.method == "diloco":
            outer = torch.optim.SGD(model.parameters(), lr=OUTER_LR, momentum=OUTER_MOMENTUM, nesterov=True)
            synchronised: Any = DiLoCo(manager, [model], course.optimizer, outer, **options)
        else:
            synchronised = LocalSGD(manager, model, course.optimizer, **options)
        open_until_the_end.enter_context(synchronised)
        for inputs, labels in course.batches():
            course.optimizer.zero_grad()
            loss_of(model, inputs, labels).backward()  # type: ignore[no-untyped-call]
            course.optimizer.step()  # here it synchronises
        course.finish()
        task.tell_all(f"done-{task.rank}", "")
        for rank in range(task.world):  # the lighthouse of the first
            task.hear(f"done-{rank}")
    if lighthouse is not None:
        lighthouse.shutdown()


def _manager(task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, store_port: int) -> Manager:
    def load(state: dict[str, Any]) -> None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    return Manager(
        pg=ProcessGroupGloo(timeout=TIMEOUT),
        load_state_dict=load,
        state_dict=lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
        min_replica_size=FEWEST,
        use_async_quorum=False,
        timeout=TIMEOUT,
        rank=0,
        world_size=1,
        store_addr=task.ip_address,
        store_port=store_port,
        replica_id=f"replica_{task.rank}",
        hostname=task.ip_address,
        lighthouse_addr=task.hear("lighthouse"),
    )


if __name__ == "__main__":
    main()
