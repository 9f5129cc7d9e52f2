"""Jobs on a cluster as a user starts it: `ray start --head` with its dashboard and a password, `ray job submit`."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.job.networks import PACED
from tests.job.processes import Process, family, wait_until_gone
from tests.job.runs import COMMAND, ROOT
from tests.job.waiting import wait_for

BIN = Path(sys.executable).parent
JOB_S = 150.0


class Head:
    """A head node of its own, with token authentication."""

    def __init__(self, folder: Path) -> None:
        gcs, dashboard, client, agent = free_ports(4)
        self.address, self.dashboard = f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),  # tests are not uploaded with a job
            "XDG_STATE_HOME": str(folder / "state"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        options = {
            "port": gcs,
            "dashboard-port": dashboard,
            "ray-client-server-port": client,
            "dashboard-agent-listen-port": agent,
            "num-cpus": 8,
            "object-store-memory": 100 * 2**20,
            "temp-dir": folder,
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        self.secrets = folder / "state" / "ray_gossip"
        self.log = (folder / "head.log").open("w")
        self.process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", "--disable-usage-stats", *words],
            env=self.environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        wait_for(self._is_up, within_s=60.0, what="the dashboard")

    def _is_up(self) -> bool:
        assert self.process.poll() is None, Path(self.log.name).read_text()
        return self.job("list").returncode == 0

    def job(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`ray job`, as a user types it."""
        action, *others = words
        command = [str(BIN / "ray"), "job", action, f"--address={self.dashboard}", *others]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=JOB_S, check=False
        )

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.job("submit", "--working-dir=.", "--runtime-env=jobs/runtime_env.yaml", *words)

    def end(self) -> None:
        processes = family(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60.0)
        self.log.close()
        wait_until_gone(processes, within_s=30.0)


def free_ports(count: int) -> list[int]:
    """Of those that the system gives nobody who asks for any: until Ray listens on them, others start as well. Above
    the ports of Ray's workers."""
    first, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    found: list[int] = []
    ports = range(20_000, first)
    for port in random.sample(ports, k=len(ports)):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found


SHOWN = ("actors", "tasks", "workers", "jobs", "runtime-envs", "placement-groups")


def where_found(secrets: Sequence[bytes], head: Head, *folders: Path) -> list[str]:
    """What a run writes, runs and shows that has one of these in it: files, command lines, Ray's lists."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".secret"]
    contents = {path: path.read_bytes() for path in files}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            contents[path] = path.read_bytes()
    for what in SHOWN:
        words = [str(BIN / "ray"), "list", what, "--detail", "--format=json", f"--address={head.dashboard}"]
        listed = subprocess.run(words, env=head.environment, capture_output=True, timeout=60, check=True)
        contents[Path(what)] = listed.stdout
    assert b"PeerActor" in contents[Path("actors")]
    forms = [form for secret in secrets for form in (secret, bytes.fromhex(secret.decode()))]
    return [str(path) for path, content in contents.items() if any(form in content for form in forms)]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    head = Head(Path(os.environ["RAY_TMPDIR"]))
    try:
        yield head
    finally:
        head.end()


def events(folder: Path, kind: str) -> list[dict[str, object]]:
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in records if record["event"] == kind]


@pytest.mark.timeout(2 * JOB_S)
def test_a_sweep_and_a_training_run_side_by_side_and_ray_job_stop_ends_the_sweep_in_order(
    head: Head, tmp_path: Path
) -> None:
    sweep, run = tmp_path / "sweep", tmp_path / "run"
    endless = (*PACED, "swarm.num_peers=2", "train.local_steps=1000000", "train.eval_every=20", "space.seed.grid=[0]")
    words = ("--submission-id=sweep", "--no-wait", "--", "python", "jobs/tune.py", *endless, f"--run-dir={sweep}")
    submitted = head.submit(*words)
    assert submitted.returncode == 0, submitted
    trial = sweep / "trial-001"
    wait_for(
        lambda: events(trial, "SwarmRound"), within_s=90.0, what=lambda: f"a round: {head.job('logs', 'sweep').stdout}"
    )
    peers: set[Process] = set()
    for peer in events(trial, "PeerStarted"):
        peers |= family(int(str(peer["pid"])))

    secrets = [path.read_bytes().strip() for path in head.secrets.glob("*.secret")]
    assert [len(secret) for secret in secrets] == [64]
    assert where_found(secrets, head, sweep, Path(os.environ["RAY_TMPDIR"])) == []

    done = head.submit(
        "--", "python", "jobs/train.py", "swarm.num_peers=2", "train.local_steps=200", f"--run-dir={run}"
    )
    assert done.returncode == 0, done
    assert "accuracy  merged model 0.9" in done.stdout
    assert json.loads((run / "summary.json").read_text())["merged_accuracy"] > 0.9
    assert len([*head.secrets.glob("*.secret")]) == 1, "a run that is over keeps none"

    assert head.job("stop", "sweep").returncode == 0
    assert "was stopped" in head.job("status", "sweep").stdout
    wait_until_gone(peers, within_s=10.0)
    assert "interrupted: stopping the trials" in head.job("logs", "sweep").stdout
    assert json.loads((sweep / "report.json").read_text())["trials"]["unfinished"] == 1
    assert (trial / "summary.json").exists()
    curves = EventAccumulator(str(trial / "peer-00"))
    curves.Reload()
    assert curves.Scalars("train/loss")[-1].step > curves.Scalars("train/loss")[0].step


def test_a_folder_that_the_job_would_lose_is_refused(head: Head) -> None:
    done = head.submit("--", "python", "jobs/train.py")
    assert done.returncode != 0
    assert "name a folder that stays, as an absolute --run-dir" in done.stdout


def test_a_missing_token_is_one_line(head: Head, tmp_path: Path) -> None:
    environment = {name: value for name, value in head.environment.items() if name != "RAY_AUTH_TOKEN"}
    environment |= {"RAY_ADDRESS": head.address, "HOME": str(tmp_path)}
    done = subprocess.run([*COMMAND, "train"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"ray-gossip: cannot connect to the Ray cluster at {head.address}: ")
    assert "token" in line
