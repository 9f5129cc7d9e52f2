"""One replica of torchft's LocalSGD, for `against_torchft.py`: the same network, batches, pace and interval as a peer.

Writes a line of JSON for each synchronisation, and one now and then in between.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import torch
from paced import build
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torchft import Manager, ProcessGroupGloo
from torchft.local_sgd import LocalSGD

from ray_gossip import data
from ray_gossip.config import Config

TELL_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--step_s", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--timeout_s", type=float)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as Ray does for an actor that has one CPU or less
    torch.manual_seed(0)
    config = Config()
    dataset = data.load(config.data)
    assert dataset.num_classes is not None
    model = build(dataset.in_shape, dataset.num_classes, options.step_s)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.optimizer.lr, momentum=config.optimizer.momentum)

    def load(state: dict[str, Any]) -> None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    timeout = timedelta(seconds=options.timeout_s)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=timeout),
        load_state_dict=load,
        state_dict=lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
        min_replica_size=2,
        use_async_quorum=False,
        timeout=timeout,
        connect_timeout=timeout,
        rank=0,
        world_size=1,
        store_addr="localhost",
        store_port=store.port,
        replica_id=f"replica_{options.rank}",
        hostname="localhost",
    )
    batches = data.Batches(
        dataset.train_inputs,
        dataset.train_labels,
        batch_size=config.data.batch_size,
        seed=options.rank,
        device=torch.device("cpu"),
        scale=dataset.scale,
    )
    with options.log.open("a") as log, LocalSGD(manager, model, optimizer, sync_every=options.steps):
        train(model, optimizer, manager, batches, log)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, manager: Manager, batches: data.Batches, log: IO[str]
) -> None:
    """Until somebody ends this process."""
    committed, samples, told_at = manager.current_step(), 0, time.monotonic()
    for inputs, labels in batches:
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()  # here it synchronises
        samples += len(labels)
        has_synchronised = manager.current_step() != committed
        if has_synchronised or time.monotonic() - told_at > TELL_S:
            told_at, committed = time.monotonic(), manager.current_step()
            line = {"at": time.time(), "samples": samples, "loss": loss.item(), "has_synchronised": has_synchronised}
            line["participants"] = manager.num_participants() if has_synchronised else 0
            log.write(f"{json.dumps(line)}\n")
            log.flush()
            samples = 0


if __name__ == "__main__":
    main()
