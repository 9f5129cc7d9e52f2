"""What a peer takes of its machine, what is left there, and what is said when that is little."""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ray_gossip import usage as usages
from ray_gossip.config import GossipConfig
from ray_gossip.errors import ResourceError
from ray_gossip.gossip.memory import Memory
from ray_gossip.telemetry import SwarmState
from ray_gossip.telemetry.scarcity import KINDS, scarce
from ray_gossip.telemetry.watch import Watch
from ray_gossip.usage import Meter, allow_many_files, check_memory, memory
from tests.unit.telemetry_records import GB, lost, started, usage

NOBODY = 999_999_999  # above any process id
WELL = usage(0)
SHORT = {
    "memory": {"memory_free_bytes": GB},
    "disk": {"disk_free_bytes": 10_000_000},
    "shared memory": {"shared_free_bytes": 10_000_000},
    "open files": {"open_files": 1000},
}


def test_a_process_and_those_that_it_has_started_are_measured(tmp_path: Path) -> None:
    size = 100_000_000
    hold = f"kept = bytearray(b'1') * {size}; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as helper:
        assert helper.stdout is not None
        helper.stdout.readline()
        now = [0.0]
        meter = Meter(
            network_pid=lambda: NOBODY, place=str(tmp_path / "later"), device_bytes=lambda: 7, clock=lambda: now[0]
        )
        (found,) = meter.take(peer_index=3, local_step=5)
        assert meter.take(peer_index=3, local_step=6) == []
        (as_network,) = Meter(network_pid=lambda: helper.pid, place="s3://a/b", device_bytes=None).take(
            peer_index=3, local_step=5
        )
        now[0] += 31.0
        helper.communicate("\n")
        (later,) = meter.take(peer_index=3, local_step=9)
    took = found.helper_bytes - later.helper_bytes
    assert size < took < 2 * size
    assert found.network_bytes == 0
    assert as_network.network_bytes == pytest.approx(took, rel=0.1)
    assert as_network.helper_bytes == pytest.approx(later.helper_bytes, rel=0.1)
    rss = psutil.Process().memory_info().rss
    assert 0.2 * rss < found.trainer_bytes <= 1.1 * rss
    assert found.disk_free_bytes == pytest.approx(psutil.disk_usage(str(tmp_path)).free, rel=0.05)
    assert (as_network.disk_free_bytes, as_network.device_bytes, found.device_bytes) == (None, None, 7)
    assert found.open_files == pytest.approx(len(list(Path("/proc/self/fd").iterdir())), abs=3)


def test_a_container_has_what_it_may_take_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = psutil.virtual_memory()
    monkeypatch.setattr(usages, "_GROUP", tmp_path)
    assert memory()[1] == machine.total
    (tmp_path / "memory.max").write_text("max\n")
    assert memory()[1] == machine.total
    (tmp_path / "memory.max").write_text("400000000\n")
    (tmp_path / "memory.current").write_text("300000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 50000000\n")
    assert memory() == (150_000_000, 400_000_000)
    with pytest.raises(ResourceError, match=r"^it takes 0\.2 GB of this machine's memory, which has 0\.1 GB left: "):
        check_memory(151_000_000, what="it")
    check_memory(149_000_000, what="it")
    with pytest.raises(ResourceError, match="averaging 80 MB takes"):
        Memory(20_000_000, num_kept=0)
    Memory(1000, num_kept=0).close_file()


def test_as_many_files_may_be_open_as_the_system_admits() -> None:
    words = "import resource; from ray_gossip.usage import allow_many_files; resource.setrlimit(7, (64, 2000)); "
    words += "allow_many_files(); print(*resource.getrlimit(7))"
    assert resource.RLIMIT_NOFILE == 7
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "2000 2000\n"
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_many_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= before[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("kind", KINDS)
def test_what_runs_out_is_told_once_and_is_over_when_there_is_enough(kind: str) -> None:
    state = SwarmState(peers=range(2), total_steps=10)
    watch = Watch(state, GossipConfig())
    assert scarce(WELL) == {}
    assert watch.see(WELL) == []
    short = replace(WELL, **SHORT[kind])
    (notice,) = watch.see(short)
    assert notice.text.startswith("trouble: ")
    assert "peer-00 has" in notice.text
    assert watch.see(replace(short, peer_index=1)) == []
    watch.see(WELL)
    assert [trouble.kind for trouble in state.present_troubles()] == [kind], "the other machine is short of it still"
    watch.see(lost(1))
    watch.see(WELL)
    assert state.present_troubles() == []


def test_shared_memory_matters_to_those_that_have_workers() -> None:
    assert scarce(replace(WELL, helper_bytes=0, shared_free_bytes=0)) == {}


def test_a_peer_that_starts_again_is_measured_anew() -> None:
    state = SwarmState(peers=range(2), total_steps=10)
    watch = Watch(state, GossipConfig())
    watch.see(replace(WELL, peer_index=1, open_files=1000))
    watch.see(started(1))
    watch.see(WELL)
    assert state.present_troubles() == []
