"""The methods that `compare.py` compares, and the conditions under which it does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from links import Link


@dataclass(frozen=True)
class Method:
    program: str  # of `methods/`
    variant: str = ""
    needs: str = ""  # a module that `.[dev]` does not bring
    is_one_process: bool = False  # which does the local steps of all
    starts_its_ranks: bool = False  # one program for all of them, at one address: what it sends is not counted

    def why_not(self, extras: Path | None) -> str:
        """Why it cannot run here; empty: it can."""
        if not self.needs or (extras is not None and (extras / self.needs).is_dir()):
            return ""
        return f"{self.needs} is not installed: see benchmarks/compare.txt"


METHODS = {
    "ours": Method("gossip", "default"),
    "ours, all": Method("gossip", "all"),
    "no communication": Method("alone"),
    "one process": Method("alone", is_one_process=True),
    "hivemind, local updates": Method("hivemind_optimizer", "local"),
    "hivemind, gradients": Method("hivemind_optimizer", "gradients"),
    "DDP": Method("ddp", "ddp"),
    "Ray Train, DDP": Method("ray_train", starts_its_ranks=True),
    "post-local SGD": Method("ddp", "post-local"),
    "torchft, LocalSGD": Method("torchft_local", "local", needs="torchft"),
    "torchft, DiLoCo": Method("torchft_local", "diloco", needs="torchft"),
}


FAST = Link()


@dataclass(frozen=True)
class Condition:
    name: str
    slowness: float = 1.0  # of the last process
    kills: bool = False  # the second process, a third of the way
    link: Link = FAST

    @property
    def counts_samples(self) -> bool:
        """For so many seconds, and not for so many local steps: its processes do not all keep one pace."""
        return self.kills or self.slowness != 1.0


CONDITIONS = {
    each.name: each
    for each in (
        Condition("quiet"),
        Condition("slow 3", slowness=3.0),
        Condition("slow 10", slowness=10.0),
        Condition("killed", kills=True),
        Condition("100 Mbit", link=Link(mbit_per_s=100.0)),
        Condition("10 Mbit", link=Link(mbit_per_s=10.0)),
        Condition("10 Mbit far", link=Link(mbit_per_s=10.0, delay_ms=20.0, loss=0.01)),
    )
}
