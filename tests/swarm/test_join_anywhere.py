"""`join` works wherever a training loop runs: in any thread, with every start method, in a notebook, under torchrun."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent / "anywhere"
ROOT = Path(__file__).parents[2]
DEADLINE_S = 120.0
GONE_S = 2.0


class Program:
    """A program of this folder, as a child; what it and its sidecars write to standard error goes into one file."""

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        self._errors = folder / "stderr"
        self._before = set(Path("/tmp").glob("ray_gossip-*"))  # of others: process ids come again
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self._errors.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *words], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
            )

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def pids(self) -> list[int]:
        """Of all processes that write to that file: it, and sidecars with all that they have forked."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    if (folder / "fd" / "2").samefile(self._errors):
                        found.append(int(folder.name))
        return found

    def has_sidecar(self) -> bool:
        """Whether one is there; a child between fork and exec is none."""
        words = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                words.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        return any(b"sidecar.nursery" in each for each in words)

    def wait_until_gone(self) -> None:
        deadline = time.monotonic() + GONE_S
        while left := [*map(str, self.pids()), *map(str, self._folders() - self._before)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.02)

    def _folders(self) -> set[Path]:
        return set(Path("/tmp").glob(f"ray_gossip-{self.process.pid}-*"))


Start = type[Program]


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[list[Program]]:
    started: list[Program] = []
    yield started
    for program in started:
        program.process.kill()
        program.process.communicate()


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "tests.swarm.anywhere.two_peers"],
        ["-m", "tests.swarm.anywhere.two_peers", "spawn"],
        ["-m", "tests.swarm.anywhere.two_peers", "forkserver"],
        ["-m", "tests.swarm.anywhere.no_fork"],
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(FOLDER / "under_torchrun.py")],
    ],
    ids=["threads beside DataLoader workers", "spawn", "forkserver", "no fork, as after CUDA", "torchrun"],
)
def test_peers_average_in_any_thread_with_every_start_method_and_under_torchrun(
    words: list[str], tmp_path: Path, programs: list[Program]
) -> None:
    program = Program(tmp_path, words)
    programs.append(program)
    output, _ = program.process.communicate(timeout=DEADLINE_S)
    assert program.process.returncode == 0, program.errors
    assert "agreed" in output
    program.wait_until_gone()


def test_peers_average_in_a_notebook(tmp_path: Path) -> None:
    cells = [
        f"import sys; sys.path.insert(0, {str(ROOT)!r})",
        "from tests.swarm.anywhere.two_peers import enter, train",
        "(first, model), ended = enter(1.0), []",
        "second, other = enter(2.0, first.multiaddrs)",
        "import threading; thread = threading.Thread(target=train, args=(second, ended)); thread.start()",
        "train(first, ended); thread.join(); print(ended, model.weight.tolist() == other.weight.tolist())",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=int(DEADLINE_S), resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.text for output in notebook.cells[-1].outputs if output.get("name") == "stdout")
    assert printed == "['averaged', 'averaged'] True\n"


@pytest.mark.parametrize("after_s", [0.2, 0.6, 1.0, 1.4, 2.5])
def test_a_training_process_that_is_killed_at_any_moment_leaves_nothing(
    after_s: float, tmp_path: Path, programs: list[Program]
) -> None:
    """Counted from when its first sidecar is there."""
    program = Program(tmp_path, ["-m", "tests.swarm.anywhere.two_peers"])
    programs.append(program)
    deadline = time.monotonic() + DEADLINE_S
    while not program.has_sidecar():
        assert time.monotonic() < deadline, program.errors
        time.sleep(0.01)
    time.sleep(after_s)
    assert program.has_sidecar(), program.errors
    program.process.kill()
    program.process.wait()
    program.wait_until_gone()
    assert not re.search("Traceback", program.errors), program.errors


def test_a_program_that_forks_shadows_modules_and_dies_after_its_nursery_leaves_nothing_but_its_own_child(
    tmp_path: Path, programs: list[Program]
) -> None:
    """The child has all sockets of its parent open, so that only the parent's end tells the sidecar of it."""
    (tmp_path / "hivemind.py").write_text("raise ImportError('this is a module of the user')\n")
    shutil.copy(FOLDER / "odd.py", tmp_path)
    program = Program(tmp_path, ["odd.py"])
    programs.append(program)
    assert program.process.stdout is not None
    told = program.process.stdout.readline().split()
    assert told, program.errors
    nursery, child = map(int, told)
    try:
        assert "has joined, not this one, which was forked from it" in (tmp_path / "told").read_text()
        os.kill(nursery, signal.SIGKILL)
        program.process.kill()
        program.process.wait()
        deadline = time.monotonic() + GONE_S
        while set(program.pids()) - {child}:
            assert time.monotonic() < deadline, program.pids()
            time.sleep(0.02)
    finally:
        os.kill(child, signal.SIGKILL)
