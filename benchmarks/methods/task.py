"""What every method trains: the same network, data, batches, learning rates and number of local steps."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from paced import Paced
from torch import Tensor, nn

from ray_gossip import data, models
from ray_gossip.config import Config, parse

TELL_S = 0.5
FIND_S, POLL_S = 180.0, 0.05


@dataclass(frozen=True)
class Task:
    """Of one process; on its command line as JSON."""

    folder: str  # where it tells what it does
    rank: int
    world: int
    seed: int
    steps: int  # local steps of each; more than anybody does where the run is ended from outside
    interval: int  # local steps between two rounds
    step_s: float  # the time that a local step takes besides its arithmetic, and no processor
    slowness: float  # of the last rank: how many times longer that takes
    marks: int  # how often it saves its parameters, to be evaluated later
    data_factory: str  # empty: the digits
    model: str
    shards: str
    lr: float
    batch_size: int
    ip_address: str = "127.0.0.1"
    interface: str = ""  # of a network of this process's own, whose bytes the kernel counts; empty: it has none
    method: str = ""  # which of those of a program

    @property
    def own_step_s(self) -> float:
        return self.step_s * (self.slowness if self.rank == self.world - 1 else 1.0)

    def text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Task:
        return cls(**json.loads(text))

    def config(self) -> Config:
        """What our own data sets and models are named by."""
        source = {"factory": self.data_factory} if self.data_factory else {"name": "digits"}
        augment = "standard" if self.data_factory else "none"
        return parse(
            {
                "seed": self.seed,
                "data": {**source, "augment": augment, "shards": self.shards, "batch_size": self.batch_size},
                "model": {"name": self.model},
            }
        )

    def tell_all(self, name: str, text: str) -> None:
        """Say something that the others wait for, such as an address."""
        path = Path(self.folder) / name
        fresh = path.with_suffix(".fresh")
        fresh.write_text(text)
        fresh.rename(path)

    def hear(self, name: str) -> str:
        """Raises SystemExit when nobody says it in time."""
        path, deadline = Path(self.folder) / name, time.monotonic() + FIND_S
        while not path.exists():
            if time.monotonic() > deadline:
                raise SystemExit(f"nobody has said {name} within {FIND_S:g} s")
            time.sleep(POLL_S)
        return path.read_text()


class Course:
    """A training that tells what it does: a line of JSON now and then, and its parameters at each mark."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(1)  # as Ray does for an actor that has one CPU or less
        self.task, config = task, task.config()
        dataset = data.load(config.data)
        network = models.build(config.model, in_shape=dataset.in_shape, num_classes=dataset.num_classes, seed=task.seed)
        self.network, self.model = network, Paced(network, task.own_step_s)
        self.optimizer = torch.optim.SGD(network.parameters(), lr=task.lr, momentum=0.9, weight_decay=5e-4)
        shard = data.deal(dataset.train_labels, task.world, config=config.data, seed=task.seed)[task.rank]
        self._batches = data.Batches(
            dataset.train_inputs[shard],
            dataset.train_labels[shard],
            batch_size=task.batch_size,
            seed=1000 * task.seed + task.rank,
            device=torch.device("cpu"),
            augmentation=data.augmentation(config.data, in_shape=dataset.in_shape),
            scale=dataset.scale,
        )
        self._folder = Path(task.folder)
        self._log = (self._folder / f"log-{task.rank}.jsonl").open("a")
        self._at = {math.ceil(task.steps * (mark + 1) / task.marks): mark for mark in range(task.marks)}
        self._step, self._told_at = 0, -math.inf

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One for each local step. Who asks for the next has done the last."""
        self._tell()
        while self._step < self.task.steps:
            share = (1 + math.cos(math.pi * self._step / self.task.steps)) / 2
            for group in self.optimizer.param_groups:
                group["lr"] = self.task.lr * share
            yield next(self._batches)
            self._step += 1
            if self._step in self._at:
                self._save(self._at[self._step])
            elif time.monotonic() - self._told_at > TELL_S or self._step == 1:
                self._tell()

    def finish(self) -> None:
        """Whatever the method does in the end is done."""
        self._save(self.task.marks)

    def _save(self, mark: int) -> None:
        state = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        torch.save(state, self._folder / f"state-{self.task.rank}-{mark}.pt")
        self._tell(mark)

    def _tell(self, mark: int | None = None) -> None:
        self._told_at = time.monotonic()
        samples = self._step * self.task.batch_size
        line = {"at": time.time(), "pid": os.getpid(), "step": self._step, "samples": samples, "mark": mark}
        self._log.write(f"{json.dumps({**line, 'sent': self._sent()})}\n")
        self._log.flush()

    def _sent(self) -> int | None:
        """Bytes, by this process and what belongs to it."""
        if not self.task.interface:
            return None
        return int(Path(f"/sys/class/net/{self.task.interface}/statistics/tx_bytes").read_text())


def loss_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(inputs), labels)
