"""Ray workers that are forked from one process for each node: each is a process like any other to whoever starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_gossip.forking import launcher

PROGRAM = """
import atexit, json, os, random, sys, time
import numpy, torch
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "argv": sys.argv, "path": sys.path[0], "cwd": os.getcwd(),
    "own": os.environ.get("RAY_OWN"), "threads": torch.get_num_threads(), "cpu_s": time.process_time(),
    "drawn": [random.random(), float(numpy.random.rand()), torch.rand(()).item()],
    "hivemind": "hivemind" in sys.modules, "ray": "ray" in sys.modules,
}), flush=True)
atexit.register(print, "it is over")
if sys.argv[1] == "wait":
    time.sleep(1000)
sys.exit(int(sys.argv[1]))
"""


class Worker:
    """What a launcher has started."""

    def __init__(self, folder: Path, word: str, environment: Mapping[str, str]) -> None:
        self.program = folder / "program.py"
        self.program.write_text(PROGRAM)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", launcher.__file__, sys.executable, str(self.program), word],
            env={**os.environ, **environment},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        self.said: dict[str, Any] = json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def first(folder: Path) -> Iterator[Worker]:
    """One that keeps the server alive."""
    worker = Worker(folder, "wait", {"RG_NUMBER": "1"})
    yield worker
    worker.end()


def test_a_worker_begins_as_python_would_start_it(folder: Path, first: Worker) -> None:
    worker = Worker(folder, "3", {"RAY_OWN": "its own", "OMP_NUM_THREADS": "2"})
    said = worker.said
    assert worker.process.wait(10.0) == 3
    assert worker.process.stdout is not None
    assert worker.process.stdout.read() == "it is over\n"
    assert said["argv"] == [str(worker.program), "3"]
    assert said["path"] == said["cwd"] == str(folder)
    assert (said["own"], said["threads"]) == ("its own", 2)
    assert said["parent"] == first.said["parent"] != worker.process.pid
    assert not said["hivemind"]
    assert not said["ray"]
    assert said["cpu_s"] < 0.5, "torch alone costs more"
    for mine, its in zip(said["drawn"], first.said["drawn"], strict=True):
        assert mine != its
    worker.end()


def test_a_signal_reaches_the_worker_and_a_launcher_that_dies_takes_it_along(folder: Path, first: Worker) -> None:
    for number, expected in ((signal.SIGTERM, None), (signal.SIGKILL, -signal.SIGKILL)):
        worker = Worker(folder, "wait", {})
        pid = psutil.Process(worker.said["pid"])
        worker.process.send_signal(number)
        code = worker.process.wait(10.0)
        assert code == expected or expected is None
        pid.wait(10.0)
        worker.end()


def test_a_worker_that_is_killed_ends_its_launcher(folder: Path, first: Worker) -> None:
    worker = Worker(folder, "wait", {})
    os.kill(worker.said["pid"], signal.SIGKILL)
    assert worker.process.wait(10.0) != 0
    worker.end()


def test_another_environment_has_another_server(folder: Path, first: Worker) -> None:
    worker = Worker(folder, "0", {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"})
    assert worker.said["parent"] != first.said["parent"]
    assert worker.process.wait(10.0) == 0
    server = psutil.Process(worker.said["parent"])
    worker.end()
    server.terminate()  # it would end by itself, in a minute
    server.wait(10.0)


def test_where_the_server_cannot_start_a_worker_imports_by_itself(folder: Path) -> None:
    broken = folder / "broken"
    broken.mkdir()
    (broken / "yaml.py").write_text("raise ImportError('it is broken')")
    worker = Worker(folder, "7", {"PYTHONPATH": str(broken)})
    assert worker.said["pid"] == worker.process.pid
    _, errors = worker.process.communicate(timeout=30.0)
    assert worker.process.returncode == 7
    assert "ray_gossip: this worker imports everything by itself: ImportError: it is broken" in errors


def test_a_server_that_hangs_forks_for_nobody_who_has_not_waited_and_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "\0ray_gossip.workers.test that hangs"
    assert not launcher.start_server("ray_gossip.forking.workers", name, python=sys.executable, within_s=60.0)
    monkeypatch.setattr(launcher, "name_of", lambda *_: name)
    first = launcher._ready_server(sys.executable)
    server = psutil.Process(launcher.other_end(first)[0])
    server.suspend()
    first.close()
    given_up = launcher._connected(name)
    assert given_up is not None
    given_up.close()
    server.resume()
    launcher._ready_server(sys.executable).close()
    assert not server.children()
    server.suspend()
    monkeypatch.setattr(launcher, "_START_S", 0.5)
    with pytest.raises(TimeoutError, match="has not answered for"):
        launcher._ready_server(sys.executable)
    server.wait(10.0)


def test_a_server_ends_when_nobody_needs_it(folder: Path) -> None:
    name, (report, its_end) = "@ray_gossip.workers.test", os.pipe()
    code = f"from ray_gossip.forking.workers import main; main({name!r}.replace('@', chr(0)), {its_end}, idle_s=0.5)"
    with subprocess.Popen([sys.executable, "-c", code], pass_fds=[its_end]) as process, os.fdopen(report, "rb") as told:
        os.close(its_end)
        assert told.read() == launcher.READY
        assert process.wait(10.0) == 0
