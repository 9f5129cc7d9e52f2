"""Where a run may find itself: odd folders, a full disk, output that nobody reads, a cluster on IPv6."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.job.forked import COMMANDS, WORKERS
from tests.job.runs import COMMAND, ROOT, RUN_S, Run, finish_in
from tests.job.waiting import wait_for
from tests.published import write_tiny_imagenet

SHORT = ("swarm.num_peers=2", "train.local_steps=60")


def test_a_run_needs_neither_home_nor_short_nor_plain_names_nor_a_reader(tmp_path: Path) -> None:
    """Below a TMPDIR of 150 characters, without HOME, on an ASCII terminal that is closed after one line."""
    folder = tmp_path / "größe 1"
    temporary = tmp_path / ("t" * 150)
    folder.mkdir()
    temporary.mkdir()
    kept = {name: os.environ[name] for name in os.environ if not name.startswith(("RAY_", "HOME", "TMPDIR"))}
    environment = {**kept, "TMPDIR": str(temporary), "HOME": "/dev/null", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "ray_gossip.cli", "train", *SHORT, "--run-dir", "my run"]
    environment["PYTHONPATH"] = str(ROOT)
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=RUN_S) == 0, told
    summary = json.loads((folder / "my run" / "summary.json").read_text())
    assert summary["final_outcome"] == ["averaged", "averaged"]


IN_A_FOLDER_OF = """
import os, sys, tempfile
with tempfile.TemporaryDirectory(prefix="rg-", dir="/tmp", ignore_cleanup_errors=True) as short:
    room = 107 - len(f"/ray/session_2026-11-26_00-59-43_934724_{os.getpid()}/sockets/plasma_store")
    folder = os.path.join(short, "x" * (room + int(sys.argv[1]) - len(short) - 1))
    os.mkdir(folder)
    os.environ["RAY_TMPDIR"] = folder
    from ray_gossip.swarm.local import local_ray
    with local_ray():
        print("it runs")
"""


@pytest.mark.parametrize(("too_many", "answer"), [(0, "it runs"), (1, "is too long for Ray's sockets: name a folder")])
def test_the_longest_folder_that_sockets_allow_will_do_and_one_letter_more_is_refused(
    too_many: int, answer: str
) -> None:
    done = finish_in(ROOT, [sys.executable, "-c", IN_A_FOLDER_OF, str(too_many)])
    assert (done.returncode == 0) == (too_many == 0), done
    assert answer in done.stdout + done.stderr


@contextlib.contextmanager
def full_disk(pid: int, *, num_bytes: int) -> Iterator[None]:
    """As if the disk were full for this process: no file of it grows beyond this."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (num_bytes, hard))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


def test_a_run_outlives_a_full_disk_and_writes_again_when_there_is_room(ray: str, tmp_path: Path) -> None:
    with Run(tmp_path / "run", "swarm.num_peers=2", "train.local_steps=1000", address=ray) as run:
        run.wait_until_training()
        log = run.run_dir / "events.jsonl"
        limit = log.stat().st_size + 4000
        with full_disk(run.pid, num_bytes=limit):
            wait_for(lambda: log.stat().st_size > limit - 600, within_s=30.0, what="a full disk")
            curves = next((run.run_dir / "swarm").iterdir())
            before = curves.stat().st_size
            wait_for(lambda: curves.stat().st_size >= min(limit - 600, before + 500), within_s=30.0, what="more curves")
        assert run.finish().code == 0, run
    assert run.events("PeerFinished")  # every line of the log is whole
    assert run.summary["merged_accuracy"] > 0.9
    assert run.stderr.count("File too large; the run goes on, and what does not fit is lost") == 1


SMALL_DISK = 'mount -t tmpfs -o size=20m tmpfs "$1" && shift && exec "$@"'


@pytest.mark.skipif(
    subprocess.run(["unshare", "--map-root-user", "--mount", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs a kernel that lets this user make a mount namespace",
)
def test_a_disk_without_room_for_decoded_images_is_one_line_and_kills_nobody(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    (tmp_path / "cache").mkdir()
    words = ["data", "prepare", "configs/tiny_imagenet.yaml", f"data.root={tmp_path}", f"data.cache={tmp_path}/cache"]
    on_it = ["unshare", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK, "sh", f"{tmp_path}/cache"]
    done = finish_in(ROOT, [*on_it, *COMMAND, *words])
    assert (done.returncode, done.stdout) == (2, ""), done
    (line,) = done.stderr.splitlines()
    assert "tiny-imagenet-200.npy on " in line
    assert line.endswith("No space left on device; set data.cache to a folder with room")


NAMESPACE = ["unshare", "--map-root-user", "--net"]


@pytest.mark.skipif(
    shutil.which("ip") is None
    or subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode != 0,
    reason="needs the command ip (iproute2), and a kernel that lets this user make a network namespace",
)
def test_a_swarm_trains_on_a_cluster_on_ipv6(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # whoever forks for other tests is not in that namespace
    alone = ["env", f"--unset={WORKERS}", f"--unset={COMMANDS}"]
    done = finish_in(ROOT, [*alone, *NAMESPACE, sys.executable, "-m", "tests.job.on_ipv6", str(run_dir)])
    assert done.returncode == 0, done
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["final_outcome"] == ["averaged", "averaged"]
    records = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    for peer in (record for record in records if record["event"] == "PeerStarted"):
        assert all(address.startswith("/ip6/fd00::2/tcp/") for address in peer["multiaddrs"])
