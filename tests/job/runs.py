"""The real command line on real Ray, as a user types it. What it did is read from its files, never from its log."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.job.forked import Forked
from tests.job.processes import Process, family, left
from tests.job.waiting import wait_for

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "ray_gossip.cli"]
RUN_S = 170.0  # a run of half a minute, on a machine that is busy

# Makes standard input the controlling terminal of its session, then becomes the command.
_ON_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


def finish(*words: str, within_s: float = RUN_S, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `ray-gossip` to its end."""
    return finish_in(ROOT, [*COMMAND, *words], within_s=within_s, environment=environment)


def finish_in(
    folder: Path, command: Sequence[str], *, within_s: float = RUN_S, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run any command to its end."""
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )


def finish_forked(
    folder: Path, words: Sequence[str], *, within_s: float = RUN_S, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `ray-gossip` or a file of Python code to its end, forked from a process that has imported what they need."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        output = (out.fileno(), err.fileno())
        process = Forked(words, cwd=folder, env={**os.environ, **(environment or {})}, output=output)
        try:
            code = process.wait(within_s)
        except BaseException:
            process.kill()
            raise
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess([*words], code, out.read(), err.read())


class _Log:
    """A file of JSON lines that grows, and may make room for a new one."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, (0, 0)
        self._offset, self._records = 0, list[dict[str, Any]]()

    def read(self) -> list[dict[str, Any]]:
        """All whole records; what was there the last time is not read again."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != self._file:
                self._file, self._offset, self._records = (status.st_dev, status.st_ino), 0, []
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole + newline)
        self._records += [json.loads(line) for line in whole.splitlines()]
        return self._records


class Run:
    """`ray-gossip train … --json`, or another command, in the foreground of a session of its own, as in a shell.

    Use as a context manager: leaving it ends every process of the run.

    Args:
        run_dir: where it writes.
        command: another that writes a run.
        program: what stands before the command.
        terminal: give it a terminal with a keyboard; without --json then.
        address: of the Ray cluster to use; None: it starts a local one, or needs none.
        forked: have it forked (`forked.py`), and not started as a user does; None: if it starts no Ray.
    """

    def __init__(
        self,
        run_dir: Path,
        *words: str,
        command: str = "train",
        program: Sequence[str] = COMMAND,
        terminal: bool = False,
        address: str | None = None,
        forked: bool | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.code: int | None = None  # exit code, once it has ended
        self.stdout = self.stderr = ""  # what it wrote; on a terminal, all is in stdout
        self.processes: set[Process] = set()  # of the run, as far as seen; grows by `look`
        self._logs: dict[str, _Log] = {}  # of each trial
        self._keyboard: int | None = None
        self._process: subprocess.Popen[Any] | Forked
        whole = [*program, command, *words, "--run-dir", str(run_dir)]
        environment = os.environ | ({"RAY_ADDRESS": address} if address else {})
        if forked is None:
            forked = program is COMMAND and not terminal and (address is not None or command == "peer")
        if forked:
            self._fork(["ray-gossip", command, *words, "--run-dir", str(run_dir), "--json"], environment)
        elif terminal:
            self._start_on_terminal(whole, environment | {"TERM": "xterm-256color"})
        else:
            self._start([*whole, "--json"], environment)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return summary

    def events(self, kind: str, *, trial: str = "") -> list[dict[str, Any]]:
        """The records of one kind that are in events.jsonl now, of a trial if this is a sweep."""
        log = self._logs.setdefault(trial, _Log(self.run_dir / trial / "events.jsonl"))
        return [record for record in log.read() if record["event"] == kind]

    def wait_for(self, kind: str, *, count: int = 1, within_s: float = RUN_S, trial: str = "") -> list[dict[str, Any]]:
        """Wait until there are so many records of one kind; returns them."""

        def enough() -> list[dict[str, Any]]:
            found = self.events(kind, trial=trial)
            assert self.running or len(found) >= count, f"ended without {count} {kind}: {self.finish()}"
            return found if len(found) >= count else []

        return wait_for(enough, within_s=within_s, what=f"{count} records {kind}")

    def wait_until_training(self) -> None:
        """Until the swarm has averaged, so that every peer has done local steps; then look at its processes."""
        self.wait_for("SwarmRound")
        self.look()

    def wait_for_process(self, command: str) -> None:
        """Until the run has one with this in its command line."""

        def is_there() -> bool:
            found = any(command in process.command for process in self.look())
            assert found or self.running, f"ended without {command}: {self.finish()}"
            return found

        wait_for(is_there, within_s=RUN_S, what=command)

    def look(self) -> set[Process]:
        """Take note of the processes of the run that live now."""
        # a process that was seen between fork and exec has its parent's command line: what is newer goes before
        self.processes = family(self.pid) | self.processes
        for log in self.run_dir.rglob("events.jsonl"):
            for peer in self.events("PeerStarted", trial=str(log.parent.relative_to(self.run_dir))):
                self.processes = family(peer["pid"]) | self.processes  # on a cluster, they are not ours by descent
        return self.processes

    def press_ctrl_c(self) -> None:
        """On a terminal, type it; else do what a terminal does: signal the whole foreground group."""
        if self._keyboard is not None:
            os.write(self._keyboard, b"\x03")
        else:
            os.killpg(self.pid, signal.SIGINT)

    def send(self, number: signal.Signals) -> None:
        """Signal the command itself, and none of the processes that it started."""
        self._process.send_signal(number)

    def finish(self, within_s: float = RUN_S) -> Run:
        """Wait for the end."""
        self.code = self._process.wait(timeout=within_s)
        self._reader.join(timeout=10.0)
        return self

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.look()
            self._process.kill()
            self._process.wait()
            for process in left(self.processes):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        self._reader.join(timeout=10.0)
        if self._keyboard is not None:
            os.close(self._keyboard)

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.stdout}\n{self.stderr}"

    def _start(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._process = process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

        def read() -> None:
            self.stdout, self.stderr = process.communicate()

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()

    def _fork(self, command: list[str], environment: Mapping[str, str]) -> None:
        with contextlib.ExitStack() as files:
            written = [files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)]
            output = (written[0].fileno(), written[1].fileno())
            self._process = process = Forked(command, cwd=ROOT, env=environment, output=output)
            kept = files.pop_all()

        def read() -> None:
            with kept:
                process.wait()
                for each in written:
                    each.seek(0)
                self.stdout, self.stderr = (each.read() for each in written)

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()

    def _start_on_terminal(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._keyboard, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))  # rows, columns
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ON_TERMINAL, *command],
            cwd=ROOT,
            env=environment,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        screen = self._keyboard

        def read() -> None:
            try:
                while seen := os.read(screen, 65536):
                    self.stdout += seen.decode(errors="replace")
            except OSError:  # nobody has the terminal open any more
                return

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()


def train(run_dir: Path, *words: str, address: str, forked: bool | None = None) -> Run:
    """A run on a cluster, which must succeed."""
    with Run(run_dir, *words, address=address, forked=forked) as run:
        assert run.finish().code == 0, run
    return run
