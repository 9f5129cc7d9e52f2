"""What do checkpoints cost the local steps of the peer that saves them?

One peer's training, on a GPU if there is one, of a model that makes so large a checkpoint (parameters and Adam's
memory), in turns of as many seconds: without one, with one at the beginning, and with `torch.save` between two steps,
as in a loop without this. What a turn with one has fewer local steps, in seconds, is what it costs: the copy to host
memory as well as what writing in the background takes away. Set against the seconds between two checkpoints.

    python benchmarks/checkpoints.py                              500 MB every 600 s, which is the default
    python benchmarks/checkpoints.py --megabytes 2000 --every_s 60

Holds when checkpoints take at most 2 % of the time of local steps, and each is on disk before its turn ends.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import conclude, print_table
from torch import nn

from ray_gossip import data
from ray_gossip.checkpoints.saving import Saving
from ray_gossip.config import Config, parse
from ray_gossip.training.trainer import Trainer
from ray_gossip.training.whole import whole_state

AT_MOST = 0.02  # of the time of local steps
COPIES = 3  # of each parameter in a checkpoint: itself, and Adam's two
WARM_UP = 5


def make_trainer(megabytes: float, device: torch.device) -> Trainer:
    """Of the digits, with a network far too wide for them."""
    dataset = data.load(Config().data)
    width = int((megabytes * 1e6 / 4 / COPIES) ** 0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, 10))
    config = parse({"optimizer": {"name": "Adam", "lr": 1e-5}, "train": {"local_steps": 10**9}})
    shard = torch.arange(len(dataset.train_labels))
    return Trainer(config, model=model, dataset=dataset, shard=shard, device=device)


def step(trainer: Trainer) -> None:
    trainer.step()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()  # a queued step is not yet done


def steps_in(
    seconds: float, trainer: Trainer, saving: Saving, begin: Callable[[], Any], *, state: Callable[[], dict[str, Any]]
) -> float:
    """Local steps in a turn of so many seconds, which opens with `begin`."""
    started, num_steps = time.monotonic(), 0
    begin()
    while (elapsed := time.monotonic() - started) < seconds:
        step(trainer)
        saving.after_step(trainer.local_step, state)
        num_steps += 1
    return num_steps * seconds / elapsed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=500.0, help="of one peer's checkpoint")
    parser.add_argument("--every_s", type=float, default=Config().checkpoint.every_s, help="between two checkpoints")
    parser.add_argument("--turn_s", type=float, default=20.0)
    parser.add_argument("--turns", type=int, default=5, help="of each kind")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = make_trainer(options.megabytes, device)
    for _ in range(WARM_UP):
        step(trainer)

    def state() -> dict[str, Any]:
        started = time.monotonic()
        copied = whole_state(trainer, kept=torch.empty(0))
        copy_s.append(time.monotonic() - started)
        return copied

    copy_s: list[float] = []
    num_bytes, failures = 0, []
    with tempfile.TemporaryDirectory() as folder:
        saving = Saving(folder, every_steps=None, peer_index=0)
        kinds: dict[str, Callable[[], Any]] = {
            "without": lambda: None,
            "in the background": lambda: saving.ask(trainer.local_step),
            "torch.save": lambda: torch.save(trainer.state(), Path(folder) / "whole.pt"),
        }
        steps: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(options.turns):
            for kind, begin in kinds.items():
                steps[kind].append(steps_in(options.turn_s, trainer, saving, begin, state=state))
                told = saving.told()
                saving.finish()
                if kind == "in the background":
                    num_bytes = sum(saved.num_bytes for saved in told)
                    failures += [] if num_bytes else ["a checkpoint was not on disk when its turn ended"]
                saving.told()
    pace = statistics.median(steps["without"]) / options.turn_s
    lost_s = {
        kind: statistics.median(
            (without - found) / pace for without, found in zip(steps["without"], steps[kind], strict=True)
        )
        for kind in list(kinds)[1:]
    }
    share = {kind: seconds / options.every_s for kind, seconds in lost_s.items()}
    rows = [[kind, lost_s[kind], 100 * share[kind]] for kind in lost_s]
    title = f"{num_bytes / 1e6:.0f} MB every {options.every_s:g} s on {device.type}, {pace:.1f} local steps a second"
    print_table(title, ["", "seconds each", "% of local steps"], rows)
    if share["in the background"] > AT_MOST:
        failures.append(f"checkpoints take {share['in the background']:.3f} of the local steps, more than {AT_MOST}")
    figures = {
        "device": device.type,
        "megabytes": num_bytes / 1e6,
        "every_s": options.every_s,
        "lost_s": lost_s["in the background"],
        "copy_s": statistics.median(copy_s),
        "share": share["in the background"],
        "torch_save_lost_s": lost_s["torch.save"],
        "steps_per_s": pace,
    }
    return conclude(figures, failures)


if __name__ == "__main__":
    sys.exit(main())
