"""A disk that is full while a checkpoint is saved: a real one, of a few MB, in a mount namespace of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ray_gossip.checkpoints.keeper import Keeper
from ray_gossip.checkpoints.manifest import all_in, wrong_with
from ray_gossip.checkpoints.writer import Writer
from ray_gossip.config import Config
from tests.unit.telemetry_records import progress, started

ROOT = Path(__file__).parents[2]
NAMESPACE = ["unshare", "--map-root-user", "--mount"]
SMALL_DISK = 'mount -t tmpfs -o size=5m tmpfs "$1" && shift && exec "$@"'


def save_twice(place: str) -> None:
    """Four MB a peer: the second does not fit. Prints what is told, and which checkpoints are sound."""
    keeper = Keeper(Config(), place=place, run_id="r", ask=lambda mark: None, measured=dict)
    told = [notice.text for notice in keeper.see(started(0))]
    writer = Writer(place, peer_index=0)
    for mark in (100, 200):
        list(keeper.see(progress(0, mark)))
        writer.write(mark, {"local_step": mark, "samples": mark, "values": torch.rand(1_000_000)})
        writer.wait()
        told += [notice.text for notice in keeper.see(writer.told.get())]
    sound = [manifest.mark for manifest in all_in(place) if not wrong_with(place, manifest)]
    files = sorted(path.name for path in Path(place, "000000200").iterdir())
    print(json.dumps({"told": told, "sound": sound, "left_of_the_second": files}))


@pytest.mark.skipif(
    subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode != 0,
    reason="needs a kernel that lets this user make a mount namespace",
)
def test_the_checkpoint_that_does_not_fit_is_told_and_the_one_before_stays_sound(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.unit.test_full_disk", str(tmp_path)]
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", SMALL_DISK, "sh", str(tmp_path), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done
    found = json.loads(done.stdout)
    (told,) = found["told"]
    assert told == (
        "checkpoint 200 is incomplete and does not count: could not be saved: No space left on device; the one before, "
        "100, counts; training goes on"
    )
    assert (found["sound"], found["left_of_the_second"]) == ([100], [])


if __name__ == "__main__":
    save_twice(sys.argv[1])
