"""Ctrl-C and kill -9: nothing is left, nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from tests.job.runs import Process, alive, descendants, events, wait_for

LONG = ("swarm.num_peers=3", "gossip.group_size=2", "train.local_steps=1000000")


def test_ctrl_c_ends_the_run_in_15_s_with_code_130_and_leaves_no_process(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with Process(run_dir, *LONG) as run:
        run.wait_until_training()
        processes = descendants(run.process.pid)
        for peer in events(run_dir, "PeerStarted"):
            processes |= {peer["pid"]} | descendants(peer["pid"])
        assert any("p2pd" in command for command in alive(processes).values())
        run.interrupt()
        code, _, err = run.wait(within_s=15.0)
        assert code == 130, err
        assert "Traceback" not in err
        wait_for(lambda: not alive(processes), within_s=5.0, what=f"end of {alive(processes)}")
    assert json.loads((run_dir / "summary.json").read_text())["rounds"]["averaged"] > 0
    assert len(events(run_dir, "Progress")) > 3


def test_a_killed_peer_is_noticed_in_2_s_and_the_others_finish(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with Process(run_dir, *LONG[:2], "train.local_steps=6000") as run:
        run.wait_until_training()
        victim = next(peer for peer in events(run_dir, "PeerStarted") if peer["peer_index"] == 1)
        processes = {victim["pid"]} | descendants(victim["pid"])
        assert any("p2pd" in command for command in alive(processes).values())
        os.kill(victim["pid"], signal.SIGKILL)
        killed_at = time.time()
        (lost,) = wait_for(lambda: events(run_dir, "PeerLost"), within_s=10.0, what="news of the loss")
        assert lost["peer_index"] == 1
        assert lost["wall_time"] - killed_at < 2.0
        wait_for(lambda: not alive(processes), within_s=5.0, what="end of the dead peer's processes")
        code, out, err = run.wait(within_s=150.0)
    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert [lost["peer_index"] for lost in summary["peers_lost"]] == [1]
    assert summary["peer_accuracy"][0] > 0.9
    assert summary["merged_accuracy"] > 0.9
    later = [r for r in events(run_dir, "RoundReport") if r["wall_time"] > killed_at + 1 and r["outcome"] == "averaged"]
    assert later, "the survivors went on averaging"
