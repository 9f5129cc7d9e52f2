"""The real command line on real Ray, as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "ray_gossip.cli"]
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}, "RAY_AUTH_MODE": "disabled"}
RUN_S = 170.0  # a run of seconds, on machines that are busy


def finish(*words: str, timeout: float = RUN_S, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `ray-gossip` to its end."""
    return subprocess.run(
        [*COMMAND, *words],
        cwd=ROOT,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def train(run_dir: Path, *words: str) -> dict[str, Any]:
    """A run that must succeed; returns the last line of its standard output."""
    done = finish("train", *words, "--run-dir", str(run_dir), "--json")
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def events(run_dir: Path, kind: str = "") -> list[dict[str, Any]]:
    """The records of a run so far, or those of one kind."""
    path = run_dir / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in records if record["event"] == kind or not kind]


def wait_for(condition: Callable[[], Any], *, within_s: float, what: str) -> Any:
    """Wait until the condition holds, at most until the deadline."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {within_s} s"
        time.sleep(0.05)
    return value


class Process:
    """`ray-gossip` in the foreground of a session of its own, as on a terminal."""

    def __init__(self, run_dir: Path, *words: str) -> None:
        self.run_dir = run_dir
        self.process = subprocess.Popen(
            [*COMMAND, "train", *words, "--run-dir", str(run_dir), "--json"],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_until_training(self) -> None:
        """Until every peer has done local steps and the swarm has averaged."""
        wait_for(lambda: events(self.run_dir, "SwarmRound"), within_s=RUN_S, what="a round of the swarm")

    def interrupt(self) -> None:
        """Ctrl-C: the signal goes to the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, within_s: float) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=within_s)
        return self.process.returncode, out, err

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def descendants(pid: int) -> set[int]:
    """All living processes below this one."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found: set[int] = set()
    open_pids = [pid]
    while open_pids:
        for child in children.get(open_pids.pop(), []):
            found.add(child)
            open_pids.append(child)
    return found


def alive(pids: set[int]) -> dict[int, str]:
    """Which of these processes live, with their command lines. Zombies do not count."""
    living = {}
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            living[pid] = command.strip()
    return living


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            yield int(entry.name), int(fields[1])
