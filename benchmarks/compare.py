"""What would a user pick instead? One task, and every method that trains it on several processes, on this machine.

The same network, data, batches, learning rates and local steps for all; each method through its own public interface
(`methods/`). A local step takes a fixed time besides, and no processor, as on a GPU (`--step_s 0`: none). Each process
has a network address of its own, so that the kernel counts what it sends, and links can be slow; that needs root.

    quiet      so many local steps: seconds, bytes, accuracy of each process's own model and of their mean
    slow 3     the last process is 3 times slower: samples a second, against what each does without communication
    slow 10    10 times
    killed     the second process is killed (-9) a third of the way: samples a second, the same
    100 Mbit   as quiet, and every link carries 100 Mbit/s; 10 Mbit: ten times less
    10 Mbit far    the same with 20 ms more each way and 1 % of the packets lost, where the kernel can (`netem`)

Data: the digits of scikit-learn, or `--data module:function`, as `data.factory`. What needs more than `.[dev]` has a
row that says so; `benchmarks/compare.txt` says how to get it, for `--extras`.

    python benchmarks/compare.py                                         one seed, quiet, slow 3 and killed
    python benchmarks/compare.py --seeds 3 --only ours DDP               two methods, with deviations
    python benchmarks/compare.py --out all.json --resume                 goes on with what is there
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import conclude, print_table
from methods.catalogue import CONDITIONS, METHODS, Condition
from methods.run import Outcome, perform
from methods.tables import table_of
from methods.task import Task

VERSIONS = ("ray_gossip", "torch", "hivemind", "ray", "torchft")
KEPT = ("peers", "steps", "step_s", "seconds", "interval", "data", "model", "lr", "shards", "batch_size")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--conditions", nargs="+", choices=list(CONDITIONS), default=["quiet", "slow 3", "killed"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=600, help="local steps of a process")
    parser.add_argument("--step_s", type=float, default=0.05, help="seconds of a local step besides its arithmetic")
    parser.add_argument("--seconds", type=float, default=30.0, help="where samples a second are counted")
    parser.add_argument("--interval", type=int, default=20, help="local steps between two rounds")
    parser.add_argument("--data", default="", help="module:function instead of the digits")
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--shards", default="iid", choices=["iid", "dirichlet"])
    parser.add_argument("--extras", type=Path, help="folder with what some methods need and the others do not")
    parser.add_argument("--out", type=Path, default=Path("compare.json"))
    parser.add_argument("--resume", action="store_true", help="leave out what OUT has already")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # it removes its networks then
    if options.out.exists() and not options.resume:
        parser.error(f"{options.out} is there already: --resume goes on with it, --out names another")
    return compare(options)


def compare(options: argparse.Namespace) -> int:
    found = _load(options)
    for condition in (CONDITIONS[name] for name in options.conditions):
        for seed in range(options.seeds):
            for name in options.only:
                wanted = {"method": name, "condition": condition.name, "seed": seed}
                if not any(wanted.items() <= row.items() for row in found["rows"]):
                    outcome = _perform(name, condition, seed, found["settings"], options.extras)
                    found["rows"].append({**wanted, **asdict(outcome)})
                    options.out.write_text(json.dumps(found, indent=1))
                    print(f"{condition.name}, seed {seed}, {name}: {outcome.why_not or 'done'}", flush=True)
    for condition in options.conditions:
        table = table_of(condition, found["rows"])
        print_table(condition, table.header, table.rows)
        for name, why in table.missing.items():
            print(f"  {name}: {why}")
    return conclude({"rows": len(found["rows"]), "out": str(options.out)}, [])


def _load(options: argparse.Namespace) -> dict[str, Any]:
    """What is there already, or the beginning of it."""
    settings = {key: getattr(options, key) for key in KEPT}
    if options.out.exists():
        found: dict[str, Any] = json.loads(options.out.read_text())
        if found["settings"] != settings:
            raise SystemExit(f"{options.out} has other settings, {found['settings']}: name another file")
        return found
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: _version(name, options.extras) for name in VERSIONS},
        "settings": settings,
        "rows": [],
    }


def _version(name: str, extras: Path | None) -> str | None:
    paths = [*sys.path, *([str(extras)] if extras is not None else [])]
    return next((each.version for each in importlib.metadata.distributions(name=name, path=paths)), None)


def _perform(name: str, condition: Condition, seed: int, settings: dict[str, Any], extras: Path | None) -> Outcome:
    method = METHODS[name]
    if why_not := method.why_not(extras):
        return Outcome(why_not=why_not)
    task = Task(
        folder="",
        rank=0,
        world=settings["peers"],
        seed=seed,
        steps=settings["steps"],
        interval=settings["interval"],
        step_s=settings["step_s"],
        slowness=1.0,
        marks=12,
        data_factory=settings["data"],
        model=settings["model"],
        shards=settings["shards"],
        lr=settings["lr"],
        batch_size=settings["batch_size"],
        method=method.variant,
    )
    return perform(method, task, condition, seconds=settings["seconds"], extras=extras)


if __name__ == "__main__":
    sys.exit(main())
