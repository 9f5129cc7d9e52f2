"""Are batches made fast enough that no local step waits for them?

    python benchmarks/data.py

On the CPU: CIFAR-shaped batches of 512 with crop, flip, normalisation and cutout, `data.Batches` against torchvision's
transforms in a DataLoader with a worker per core, on the same cores in turns. On a GPU, when there is one: batches
alone, and local steps of a ResNet-18 in bf16 with fresh batches against the same steps on one batch that lies ready.

Holds when Batches makes at least 10 times the images per second of the DataLoader, and on a GPU at least a million a
second with less than 1 % of a step spent on data.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import conclude, print_table

from ray_gossip import data, models
from ray_gossip.config import ModelConfig

BATCH_SIZE = 512
NUM_IMAGES = 50_000  # as many as CIFAR-10 has for training
NUM_TURNS = 5
LOADER_BATCHES = 12  # in a turn
CUTOUT = 8
SCALE = data.Scale(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))

AT_LEAST_TIMES = 10.0
AT_LEAST_ON_GPU = 1e6  # images per second
AT_MOST_WAIT = 0.01  # of a step


def make_batches(device: torch.device) -> data.Batches:
    generator = torch.Generator().manual_seed(0)
    return data.Batches(
        torch.randint(0, 256, (NUM_IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator),
        torch.randint(0, 10, (NUM_IMAGES,), generator=generator),
        batch_size=BATCH_SIZE,
        seed=0,
        device=device,
        augmentation=data.Augmentation(padding=4, flip=True, cutout=CUTOUT),
        scale=SCALE,
    )


class Pictures(torch.utils.data.Dataset[Any]):
    """What torchvision.datasets.CIFAR10 does with an index, on random images."""

    def __init__(self) -> None:
        from torchvision import transforms

        self._images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 32, 32, 3), dtype=np.uint8)
        area = (CUTOUT / 32) ** 2
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(SCALE.mean, SCALE.std),
                transforms.RandomErasing(p=1.0, scale=(area, area), ratio=(1.0, 1.0)),
            ]
        )

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return self._transform(Image.fromarray(self._images[index])), index % 10


def on_cpu(num_cores: int) -> tuple[list[float], list[float]]:
    """Images per second of Batches and of the DataLoader, in turns, so that a busy moment hits both."""
    batches = make_batches(torch.device("cpu"))
    loader = torch.utils.data.DataLoader(
        Pictures(), batch_size=BATCH_SIZE, shuffle=True, num_workers=num_cores, persistent_workers=True
    )
    ours, theirs = [], []
    for _ in range(NUM_TURNS):
        loaded = iter(loader)
        next(loaded)  # the workers are up
        started = time.perf_counter()
        for _ in itertools.islice(loaded, LOADER_BATCHES):
            pass
        theirs.append(LOADER_BATCHES * BATCH_SIZE / (time.perf_counter() - started))
        for _ in loaded:  # to the end: its workers must not run while the other is measured
            pass
        num_batches = 0
        started = time.perf_counter()
        while time.perf_counter() - started < 1.0:
            next(batches)
            num_batches += 1
        ours.append(num_batches * BATCH_SIZE / (time.perf_counter() - started))
    return ours, theirs


def on_gpu() -> tuple[float, float]:
    """Images per second of Batches alone, and the share of a local step that fresh batches cost."""
    device = torch.device("cuda")
    batches = make_batches(device)
    alone_s = _seconds_per_call(lambda: next(batches), num_calls=500)

    model = models.build(ModelConfig(name="resnet18"), in_shape=(3, 32, 32), num_classes=10, seed=0)
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    torch.backends.cudnn.benchmark = True
    ready = next(batches)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = model(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    fresh_s, ready_s = [], []
    for _ in range(NUM_TURNS):
        ready_s.append(_seconds_per_call(lambda: step(*ready), num_calls=100))
        fresh_s.append(_seconds_per_call(lambda: step(*next(batches)), num_calls=100))
    return BATCH_SIZE / alone_s, 1 - statistics.median(ready_s) / statistics.median(fresh_s)


def _seconds_per_call(call: Callable[[], object], *, num_calls: int) -> float:
    for _ in range(10):
        call()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(num_calls):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / num_calls


def main() -> int:
    num_cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(num_cores)
    ours, theirs = on_cpu(num_cores)
    figures: dict[str, Any] = {
        "cores": num_cores,
        "images_per_s": round(statistics.median(ours)),
        "dataloader_images_per_s": round(statistics.median(theirs)),
        "times": round(statistics.median(ours) / statistics.median(theirs), 1),
    }
    print_table(
        f"CIFAR-shaped batches of {BATCH_SIZE} with crop, flip, normalisation and cutout, on {num_cores} cores",
        ["made by", "images/s, median", "worst", "best"],
        [
            ["torchvision in a DataLoader", statistics.median(theirs), min(theirs), max(theirs)],
            ["data.Batches", statistics.median(ours), min(ours), max(ours)],
        ],
    )
    failures = []
    if figures["times"] < AT_LEAST_TIMES:
        failures.append(f"only {figures['times']} times the images per second of a DataLoader")
    if torch.cuda.is_available():
        per_s, wait = on_gpu()
        figures |= {"gpu": torch.cuda.get_device_name(), "gpu_images_per_s": round(per_s), "gpu_wait": round(wait, 4)}
        print_table(
            f"on {figures['gpu']}",
            ["images/s", "share of a ResNet-18 step that waits for data"],
            [[per_s, wait]],
        )
        if per_s < AT_LEAST_ON_GPU:
            failures.append(f"only {per_s:.0f} images per second on the GPU")
        if wait >= AT_MOST_WAIT:
            failures.append(f"{100 * wait:.1f} % of a step waits for data")
    return conclude(figures, failures)


if __name__ == "__main__":
    sys.exit(main())
