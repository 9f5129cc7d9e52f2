"""One method under one condition: its processes, what they told, and how good their parameters became."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import links
import psutil
import torch
from harness import MARK, left_of, living, new_mark
from links import Link, Links, Place

from methods.catalogue import Condition, Method
from methods.task import Task
from ray_gossip import data, models
from ray_gossip.secret_file import TEXT
from ray_gossip.training.modes import evaluating

HERE = Path(__file__).parent.parent
START_S, LOOK_S = 240.0, 0.2
MEMORY_S = 5.0  # from one look at the memory to the next
SLOWEST = 30.0  # times as long as the local steps alone take: then it is not waited for any more
REAL_STEP_S = 5.0  # where nobody knows how long they take
ADDRESS = re.compile(r"initial_peers: (/ip[46]/\S+)")
LIBRARIES = re.compile(r"/\S+/site-packages/")  # where they are is nobody's business
NOWHERE = Place("", "127.0.0.1", "lo")
FOREVER = 10**9
GLANCE = 1000  # samples of the test split: what is saved on the way is evaluated on these, the end on all


@dataclass(frozen=True)
class Mark:
    """How far training was at one moment, by all processes."""

    seconds: float  # since all had begun, mean
    samples: int  # of all
    megabytes: float | None  # sent by all so far
    own: tuple[float, ...]  # accuracy of each process's own model
    merged: float  # accuracy of their mean


@dataclass(frozen=True)
class Outcome:
    why_not: str = ""
    start_s: float = math.nan  # from the start of the processes to the first local step of the last one
    seconds: float = math.nan  # of training, of the slowest
    samples_per_s: float = math.nan  # of all
    megabytes: float | None = None  # sent by all
    memory_mb: float = math.nan  # of a process and what belongs to it, mean; the most at once
    marks: tuple[Mark, ...] = ()
    ended: str = ""  # of those that were not killed, the first that ended all the same, and its last words


class Failed(Exception):
    """A method that does not come to an end, and why."""


def perform(method: Method, task: Task, condition: Condition, *, seconds: float, extras: Path | None) -> Outcome:
    """Train, and evaluate.

    Args:
        task: of rank 0.
        seconds: how long, where a condition counts samples.
        extras: a folder with what a method needs that the others do not.
    """
    world = 1 if method.is_one_process else task.world
    # Ray Train's ranks and all that serves them are at one address
    places_needed = 1 if method.starts_its_ranks else world
    if condition.link != Link() and (method.starts_its_ranks or method.is_one_process):
        return Outcome(why_not="its processes are at one address here: it has no links")
    if (why_not := links.why_not(condition.link)) and condition.link != Link():
        return Outcome(why_not=why_not)
    if condition.counts_samples and method.is_one_process:
        return Outcome(why_not="it is one process")
    if condition.kills and method.starts_its_ranks:
        return Outcome(why_not="see against_ray_train.py: it begins again from a checkpoint")
    steps = FOREVER if condition.counts_samples else task.steps * task.world // world
    task = replace(task, world=world, steps=steps, slowness=condition.slowness)
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        places = [NOWHERE] * places_needed
        if not why_not:
            places = opened.enter_context(Links(places_needed, condition.link)).places
        task = replace(task, folder=str(folder))
        processes = opened.enter_context(Processes(method, task, places, extras))
        try:
            return _measured(processes, task, condition, seconds=seconds)
        except Failed as why:
            return Outcome(why_not=str(why))


class Processes:
    """Of one method."""

    def __init__(self, method: Method, task: Task, places: Sequence[Place], extras: Path | None) -> None:
        self._method, self._task, self.places = method, task, places
        self._mark, self._folder = new_mark(), Path(task.folder)
        self._counts_bytes = not method.starts_its_ranks
        self._memory_mb, self._looked_at = math.nan, -math.inf
        self._paths = [str(HERE), *([str(extras)] if method.needs else []), *sys.path]
        self.started_at = time.time()
        self.all: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Processes:
        secret = secrets.token_hex(32)
        for rank, place in enumerate(self.places):
            interface = place.interface if place.namespace and self._counts_bytes else ""
            task = replace(self._task, rank=rank, ip_address=place.ip_address, interface=interface)
            words = [sys.executable, "-m", f"methods.{self._method.program}", task.text()]
            with (self._folder / f"output-{rank}").open("wb") as output:
                self.all.append(
                    subprocess.Popen(
                        place.command(words) if place.namespace else words,
                        cwd=HERE,
                        env={
                            **os.environ,
                            **(place.environment if place.namespace else {}),
                            MARK: self._mark,
                            TEXT: secret,
                            "PYTHONPATH": os.pathsep.join(self._paths),
                        },
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                    )
                )
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.all:
            if process.poll() is None:
                process.terminate()  # Ray takes what it has started along
        for process in self.all:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10.0)
        for each in [*living(self._mark)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        for process in self.all:
            process.kill()
            process.wait()
        if left := left_of(self._mark):
            raise RuntimeError(f"processes are left: {', '.join(left)}")

    def ended_badly(self, *, but: int | None = None) -> str:
        """The first that has, and its last words."""
        for rank, process in enumerate(self.all):
            if process.poll() and rank != but:
                return f"rank {rank} ended with {process.returncode}: {self._last_words(rank)}"
        return ""

    def pass_on(self) -> None:
        """Whoever founds a swarm of ours says where: others are told, as a person would."""
        address = self._folder / "address"
        if self._method.program == "gossip" and not address.exists():
            found = ADDRESS.search((self._folder / "output-0").read_text(errors="replace"))
            if found is not None:
                self._task.tell_all("address", json.dumps([found[1]]))

    def _last_words(self, rank: int) -> str:
        lines = (self._folder / f"output-{rank}").read_text(errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        return LIBRARIES.sub("", said[-1])[:300] if said else "it said nothing"

    def lines(self) -> dict[int, list[dict[str, Any]]]:
        """What each rank has told so far."""
        found = {}
        for rank in range(self._task.world):
            path = self._folder / f"log-{rank}.jsonl"
            whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
            found[rank] = [json.loads(line) for line in whole.splitlines()]
        return found

    def memory_mb(self) -> float:
        """Of one rank, with what belongs to it, the most so far: proportional, where memory is shared."""
        if time.monotonic() < self._looked_at + MEMORY_S:
            return self._memory_mb
        total, self._looked_at = 0, time.monotonic()
        for process in living(self._mark):
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        mean = total / self._task.world / 1e6
        self._memory_mb = mean if math.isnan(self._memory_mb) else max(mean, self._memory_mb)
        return self._memory_mb

    def megabytes(self) -> float | None:
        if not all(place.namespace for place in self.places) or not self._counts_bytes:
            return None
        return sum(place.bytes_sent() for place in self.places) / 1e6


def _measured(processes: Processes, task: Task, condition: Condition, *, seconds: float) -> Outcome:
    for _ in _until(processes, time.monotonic() + START_S, "not every process has done a local step"):
        if all(told and told[-1]["step"] > 0 for told in processes.lines().values()):
            break
    lines = processes.lines()
    began = max(told[0]["at"] for told in lines.values())
    start_s = began - processes.started_at
    if condition.counts_samples:
        return _counted(processes, condition, seconds=seconds, start_s=start_s)
    longest_s = task.steps * (SLOWEST * task.step_s if task.step_s else REAL_STEP_S)
    memory_mb = math.nan
    for _ in _until(processes, time.monotonic() + START_S + longest_s, "it is not done"):
        # whoever has ended its training serves others at most: how long it takes to end is not measured
        if all(told[-1]["mark"] == task.marks for told in processes.lines().values()):
            break
        memory_mb = processes.memory_mb()
    sent = processes.megabytes()
    lines = processes.lines()
    ended = max(told[-1]["at"] for told in lines.values())
    done = sum(told[-1]["samples"] for told in lines.values())
    return Outcome(
        start_s=start_s,
        seconds=ended - began,
        samples_per_s=done / (ended - began),
        megabytes=sent,
        memory_mb=memory_mb,
        marks=tuple(_marks(task, lines, began)),
    )


def _counted(processes: Processes, condition: Condition, *, seconds: float, start_s: float) -> Outcome:
    """Samples a second in a stretch of time, after which nobody is left to end in order."""
    since, killed, memory_mb, ended = time.time(), None, math.nan, ""
    while time.time() < since + seconds:
        if condition.kills and killed is None and time.time() > since + seconds / 3:
            killed = processes.lines()[1][0]["pid"]
            os.kill(killed, signal.SIGKILL)
        ended = ended or processes.ended_badly(but=None if killed is None else 1)
        if ended and killed is None:
            raise Failed(ended)
        memory_mb = processes.memory_mb()
        time.sleep(LOOK_S)
    seen = 0
    for told in processes.lines().values():
        inside = [line["samples"] for line in told if since <= line["at"] <= since + seconds]
        seen += inside[-1] - inside[0] if inside else 0
    return Outcome(start_s=start_s, seconds=seconds, samples_per_s=seen / seconds, memory_mb=memory_mb, ended=ended)


def _until(processes: Processes, deadline: float, why: str) -> Iterator[None]:
    """Look again and again. Raises Failed."""
    began = time.monotonic()
    while True:
        processes.pass_on()
        if ended := processes.ended_badly():
            raise Failed(ended)
        yield
        if time.monotonic() > deadline:
            raise Failed(f"{why} within {deadline - began:.0f} s")
        time.sleep(LOOK_S)


def _marks(task: Task, lines: dict[int, list[dict[str, Any]]], began: float) -> Iterator[Mark]:
    """Of those that all ranks have saved."""
    config = task.config()
    dataset = data.load(config.data)
    network = models.build(config.model, in_shape=dataset.in_shape, num_classes=dataset.num_classes, seed=0)
    inputs = data.Normaliser(dataset.scale, device=torch.device("cpu"))(dataset.test_inputs)

    def accuracy(state: dict[str, torch.Tensor], every: int) -> float:
        network.load_state_dict(state)
        some = inputs[::every], dataset.test_labels[::every]
        batches = zip(*(torch.split(each, 500) for each in some), strict=True)
        with evaluating(network), torch.no_grad():
            right = [(network(some).argmax(dim=1) == labels).float() for some, labels in batches]
        return torch.cat(right).mean().item()

    by_mark: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for told in lines.values():
        for line in told:
            if line["mark"] is not None:
                by_mark[line["mark"]].append(line)
    for mark, reached in sorted(by_mark.items()):
        if len(reached) < task.world:
            continue
        paths = [Path(task.folder) / f"state-{rank}-{mark}.pt" for rank in range(task.world)]
        states = [torch.load(path, weights_only=True) for path in paths]
        every = 1 if mark == task.marks else math.ceil(len(inputs) / GLANCE)
        mean = {
            name: torch.stack([state[name] for state in states]).mean(dim=0) if value.is_floating_point() else value
            for name, value in states[0].items()
        }
        yield Mark(
            seconds=statistics.fmean(line["at"] for line in reached) - began,
            samples=sum(line["samples"] for line in reached),
            megabytes=sum(line["sent"] for line in reached) / 1e6 if reached[0]["sent"] is not None else None,
            own=tuple(accuracy(state, every) for state in states),
            merged=accuracy(mean, every),
        )
