"""A plain training script with the README's lines added, as three processes."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

PLAIN = Path(__file__).parent / "plain_loop" / "train.py"
README = Path(__file__).parents[2] / "README.md"
DEADLINE_S = 120.0


def apply(diff: str, text: str) -> str:
    """`text` with the changes of a unified diff, each of whose hunks must fit at one place."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE)[1:]:
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if not line.startswith("+"))
        after = "".join(line[1:] for line in lines if not line.startswith("-"))
        assert text.count(before) == 1, f"the hunk does not fit: {before!r}"
        text = text.replace(before, after)
    return text


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The plain script with the README's lines."""
    (diff,) = re.findall(r"^```diff\n(.*?)^```", README.read_text(), re.M | re.S)
    plain = PLAIN.read_text()
    changed = apply(diff, plain)
    files = (plain.splitlines(keepends=True), changed.splitlines(keepends=True))
    assert diff == "".join(difflib.unified_diff(*files, "tests/swarm/plain_loop/train.py", "train.py", n=2))
    assert sorted(line[0] for line in difflib.ndiff(*files) if line[0] != " ") == ["+"] * 4  # an import, three lines
    (tmp_path / "train.py").write_text(changed)
    return tmp_path / "train.py"


class Script:
    """One process that runs the script; it writes its model into a folder of its own."""

    def __init__(self, script: Path, folder: Path, *words: str) -> None:
        folder.mkdir()
        self.folder = folder
        with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, str(script), *words],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads of several peers wait for each other on few cores
                stdout=stdout,
                stderr=stderr,
            )

    def address(self) -> str:
        """Where it says that others join it."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := re.search(r"as initial_peers: (/\S+)\n", self.stderr)):
            assert self._process.poll() is None, self.stderr
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found[1]

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def accuracy(self) -> float:
        """Wait for its end."""
        assert self._process.wait(timeout=DEADLINE_S) == 0, self.stderr
        return float((self.folder / "stdout").read_text().rpartition(" ")[2])

    def model(self) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = torch.load(self.folder / "model.pt", weights_only=True)
        return state

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def started() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_the_plain_script_with_the_readmes_lines_is_a_peer_and_three_of_them_agree(
    script: Path, tmp_path: Path, started: ExitStack
) -> None:
    def start(name: str, *words: str) -> Script:
        steps = "1500"  # a few hundred are over before peers on busy cores have met
        process = Script(script, tmp_path / name, steps, *words)
        started.callback(process.kill)
        return process

    first = start("first")
    address = first.address()
    scripts = [first, start("second", address), start("third", address)]
    accuracies = [each.accuracy() for each in scripts]
    assert min(accuracies) > 0.95
    models = [each.model() for each in scripts]
    for other in models[1:]:
        for name, tensor in models[0].items():
            if tensor.is_floating_point():
                torch.testing.assert_close(other[name], tensor, atol=1e-5, rtol=0.0)
