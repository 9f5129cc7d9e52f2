"""What does a GPU spend beside its arithmetic? One program, without Ray, on one GPU.

    trainer    images a second of `training.Trainer`, against a loop in plain PyTorch on one batch that lies ready
    state      the averaged part of the model, copied out of the GPU and a difference back in
    batches    images a second, made on the device
    peers      processes that share the GPU, each with a model of its own, with rounds and without

    python benchmarks/gpu.py             ResNet-18 on CIFAR-shaped batches of 512 in bf16: about 6 minutes
    python benchmarks/gpu.py --tiny      without a GPU, to see that it works: sizes for a CPU, no bounds

Holds on a GPU when the trainer makes 0.95 of the plain loop's images a second with nothing to augment, and peers that
share it do 0.97 of the local steps that they do without communication.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from harness import BenchmarkPeer, all_at_once, conclude, print_table, start_peers

from ray_gossip import data, models
from ray_gossip.config import Config, parse
from ray_gossip.records import RoundReport
from ray_gossip.training.trainer import Trainer

SCALE = data.Scale(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
WARM_UP, TURNS, WAIT_S = 10, 3, 300.0
TRAINER, PEERS = 0.95, 0.97


@dataclass(frozen=True)
class Size:
    """Of everything that is measured."""

    model: str
    num_images: int
    batch_size: int
    precision: str
    steps: int  # of a turn
    seconds: float  # that peers train, with rounds and without
    round_s: float  # from one round to the next
    peers: tuple[int, ...]
    compiles: bool


FULL = Size("resnet18", 50_000, 512, "bf16", 100, 30.0, 2.0, (1, 2, 4), compiles=True)
TINY = Size("resnet20", 64, 4, "fp32", 3, 8.0, 0.5, (1, 2), compiles=False)


@dataclass(frozen=True)
class Shared:
    """How one peer got on with a GPU that it shares."""

    steps_per_s: float
    reports: tuple[RoundReport, ...]
    in_rounds: float  # share of the time in which its training thread was busy with rounds, or waited for the device
    device_mb: float  # the most at once, of this process's tensors; of a CPU: 0
    host_mb: float  # the most at once, of this process


def config_of(
    size: Size, *, augment: str = "none", compiled: bool = False, gossip: Any = None, peers: int = 1
) -> Config:
    return parse(
        {
            "swarm": {"num_peers": peers},
            "gossip": gossip or {"group_size": 1},
            "data": {"name": "cifar10", "root": "made here", "augment": augment, "batch_size": size.batch_size},
            "model": {"name": size.model},
            "train": {
                "local_steps": 10**9,
                "precision": size.precision,
                "compile": compiled,
                "recalibrate_samples": 0,
            },
        }
    )


def dataset_of(size: Size) -> data.Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size.num_images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (size.num_images,), generator=generator)
    return data.Dataset(
        train_inputs=images,
        train_labels=labels,
        test_inputs=images[: size.batch_size],
        test_labels=labels[: size.batch_size],
        num_classes=10,
        scale=SCALE,
    )


def trainer_of(config: Config, dataset: data.Dataset, device: torch.device) -> Trainer:
    model = models.build(config.model, in_shape=dataset.in_shape, num_classes=10, seed=0)
    return Trainer(config, model=model, dataset=dataset, shard=torch.arange(dataset.num_train), device=device)


def plain_loop(config: Config, dataset: data.Dataset, device: torch.device) -> Callable[[], None]:
    """A local step as PyTorch's own tutorials write it, on a batch that is there already."""
    model: Any = models.build(config.model, in_shape=dataset.in_shape, num_classes=10, seed=0).to(device)
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
    network = torch.compile(model) if config.train.compile else model
    wanted = config.optimizer
    optimizer = torch.optim.SGD(
        model.parameters(), lr=wanted.lr, momentum=wanted.momentum, weight_decay=wanted.weight_decay
    )
    count = config.data.batch_size
    inputs = data.Normaliser(SCALE, device=device)(dataset.train_inputs[:count].to(device))
    labels = dataset.train_labels[:count].to(device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.train.precision == "bf16"):
            outputs = network(inputs)
        torch.nn.functional.cross_entropy(outputs.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_per_call(call: Callable[[], object], calls: int, device: torch.device) -> float:
    wait_for(device)
    started = time.perf_counter()
    for _ in range(calls):
        call()
    wait_for(device)
    return (time.perf_counter() - started) / calls


def trainers(size: Size, device: torch.device) -> dict[str, dict[str, float]]:
    """Images a second, in turns; what is compiled is compared with what is compiled."""
    dataset, found = dataset_of(size), {}
    for compiled in (False, True) if size.compiles else (False,):
        config = config_of(size, compiled=compiled)
        augmented = config_of(size, compiled=compiled, augment="standard")
        steps = {
            "plain loop": plain_loop(config, dataset, device),
            "trainer": trainer_of(config, dataset, device).step,
            "trainer, augments": trainer_of(augmented, dataset, device).step,
        }
        took: dict[str, list[float]] = {name: [] for name in steps}
        for step in steps.values():
            seconds_per_call(step, WARM_UP, device)
        for _ in range(TURNS):
            for name, step in steps.items():
                took[name].append(seconds_per_call(step, size.steps, device))
        rates = {name: size.batch_size / statistics.median(seconds) for name, seconds in took.items()}
        found["compiled" if compiled else "as it is"] = rates
    rows = [
        [kind, name, rate, rate / rates["plain loop"]] for kind, rates in found.items() for name, rate in rates.items()
    ]
    print_table(f"{size.model}, batches of {size.batch_size}, {size.precision}", ["", "", "images/s", "of plain"], rows)
    return found


def copies(size: Size, device: torch.device) -> dict[str, float]:
    """Seconds of a copy of the state, and images a second that are made."""
    trainer = trainer_of(config_of(size, augment="standard"), dataset_of(size), device)
    out = torch.empty(trainer.averaged.size, pin_memory=device.type == "cuda")
    difference = torch.zeros(trainer.averaged.size)
    calls: dict[str, Callable[[], object]] = {
        "out": lambda: trainer.read_state(out),
        "in": lambda: trainer.add_to_state(difference),
        "batch": lambda: next(trainer.batches),
    }
    for call in calls.values():
        seconds_per_call(call, WARM_UP, device)
    seconds = {name: seconds_per_call(call, size.steps, device) for name, call in calls.items()}
    megabytes = 4 * trainer.averaged.size / 1e6
    print_table(
        f"the state, {megabytes:.1f} MB, and batches with crop, flip and normalisation",
        ["s to copy out", "s to add a difference", "images made a second"],
        [[seconds["out"], seconds["in"], size.batch_size / seconds["batch"]]],
    )
    return {
        "state_mb": megabytes,
        "read_s": seconds["out"],
        "add_s": seconds["in"],
        "batches_per_s": 1 / seconds["batch"],
    }


class GpuPeer(BenchmarkPeer):
    """A peer with a model on the device, which others share."""

    def open(self, config: Config, run_id: str, size: Size, device: str) -> None:
        torch.set_num_threads(1)
        self._device = torch.device(device)
        self._trainer = trainer_of(config, dataset_of(size), self._device)
        for _ in range(WARM_UP):
            self._trainer.step()
        wait_for(self._device)
        self.open_engine(config, run_id, self._trainer, self._trainer.averaged.size)

    def train(self, seconds: float) -> Shared:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        first, in_rounds, reports = self._trainer.local_step, 0.0, list[RoundReport]()
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            self._trainer.step()
            started = time.monotonic()
            reports += self.engine.after_step(self._trainer.local_step - first)
            in_rounds += time.monotonic() - started
        wait_for(self._device)
        took = time.monotonic() - begun
        return Shared(
            steps_per_s=(self._trainer.local_step - first) / took,
            reports=tuple(reports),
            in_rounds=in_rounds / took,
            device_mb=torch.cuda.max_memory_allocated() / 1e6 if self._device.type == "cuda" else 0.0,
            host_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        )

    def close(self) -> None:
        self.close_engine()
        del self._trainer
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def sharing(size: Size, device: torch.device) -> dict[int, dict[str, float]]:
    """By the number of peers."""
    found: dict[int, dict[str, float]] = {}
    rows = []
    for count in size.peers:
        alone = _share(size, device, count, {"group_size": 1})
        figures = {"alone": _mean(each.steps_per_s for each in alone), "of_alone": 1.0, "averaged": 1.0}
        rows.append([count, "no communication", figures["alone"], "-", "-", "-", *_memory(alone)])
        if count > 1:
            together = _share(size, device, count, {"group_size": 2, "steps": None, "seconds": size.round_s})
            reports = [report for each in together for report in each.reports]
            figures["together"] = _mean(each.steps_per_s for each in together)
            figures["of_alone"] = figures["together"] / figures["alone"]
            figures["in_rounds"] = _mean(each.in_rounds for each in together)
            figures["rounds"] = float(len(reports))
            figures["averaged"] = sum(report.outcome == "averaged" for report in reports) / max(1, len(reports))
            blocked_s = statistics.median(report.blocked_s for report in reports) if reports else 0.0
            what = f"pairs, every {size.round_s:g} s"
            cells = [figures["of_alone"], figures["in_rounds"], blocked_s]
            rows.append([count, what, figures["together"], *cells, *_memory(together)])
        found[count] = figures
    header = ["peers", "", "steps/s of each", "of none", "in rounds", "blocked s", "MB on the device", "MB of host"]
    print_table(f"peers on one device, {size.seconds:g} s each", header, rows)
    return found


def _share(size: Size, device: torch.device, count: int, gossip: dict[str, Any]) -> list[Shared]:
    config = config_of(size, augment="standard", gossip=gossip, peers=count)
    with start_peers(GpuPeer, count) as peers:
        all_at_once(peers, GpuPeer.open, config, f"gpu{count}", size, str(device), wait_s=WAIT_S)
        found: list[Shared] = all_at_once(peers, GpuPeer.train, size.seconds, wait_s=WAIT_S)
        all_at_once(peers, GpuPeer.close, wait_s=WAIT_S)
    return found


def _memory(peers: Sequence[Shared]) -> list[float]:
    return [_mean(each.device_mb for each in peers), _mean(each.host_mb for each in peers)]


def _mean(values: Any) -> float:
    return statistics.fmean(values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, and no bounds")
    options = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not options.tiny:
        parser.error("there is no GPU here: --tiny shows on a CPU that the program works")
    size, device = TINY if options.tiny else FULL, torch.device("cuda" if has_gpu else "cpu")
    shared = sharing(size, device)  # first: its processes are forked from one that has not touched the GPU
    torch.backends.cudnn.benchmark = True
    rates = trainers(size, device)
    figures = {
        "device": torch.cuda.get_device_name() if has_gpu else "CPU",
        "torch": torch.__version__,
        "images_per_s": rates,
        **copies(size, device),
        "peers": shared,
    }
    failures = [] if options.tiny else _failures(rates, shared)
    if any(not each["averaged"] for each in shared.values()):
        failures.append("no round was averaged")
    return conclude(figures, failures)


def _failures(rates: dict[str, dict[str, float]], shared: dict[int, dict[str, float]]) -> list[str]:
    found = []
    for kind, own in rates.items():
        if own["trainer"] < TRAINER * own["plain loop"]:
            found.append(
                f"{kind}: the trainer makes {own['trainer'] / own['plain loop']:.3f} of the plain loop's images"
            )
    for count, figures in shared.items():
        if figures["of_alone"] < PEERS:
            found.append(f"{count} peers keep {figures['of_alone']:.3f} of their local steps")
    return found


if __name__ == "__main__":
    sys.exit(main())
