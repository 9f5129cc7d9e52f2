"""A peer whose process is stopped, like one on a machine that hangs: nobody waits for it for ever."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.job.networks import PACED
from tests.job.processes import family, wait_until_gone
from tests.job.runs import Run


def test_a_peer_whose_process_is_stopped_is_lost_and_the_run_ends_without_it(ray: str, tmp_path: Path) -> None:
    """Long before `swarm.silent_s` is over; where none is to take its place."""
    words = (*PACED, "swarm.num_peers=3", "swarm.final_s=10", "train.local_steps=1200")
    with Run(tmp_path / "run", *words, "swarm.max_replacements=0", address=ray) as run:
        run.wait_until_training()
        victim = next(peer for peer in run.events("PeerStarted") if peer["peer_index"] == 1)
        stopped = family(victim["pid"])
        os.kill(victim["pid"], signal.SIGSTOP)
        (lost,) = run.wait_for("PeerLost", within_s=20.0)
        assert lost["peer_index"] == 1
        assert lost["cause"].startswith("its process is stopped, and has not answered for ")
        wait_until_gone(stopped, within_s=15.0)
        assert run.finish().code == 0, run
    assert not lost["is_replaced"]
    assert len(run.events("PeerStarted")) == 3
    assert {finished["peer_index"] for finished in run.events("PeerFinished")} == {0, 2}
    assert run.summary["merged_accuracy"] > 0.9


def test_neither_a_long_evaluation_nor_a_driver_that_stood_still_makes_a_peer_hang(ray: str, tmp_path: Path) -> None:
    words = (
        "model.factory=tests.job.networks:Slow",
        "model.args={batch_s: 4, step_s: 0.01}",  # at full speed one is through before the other has begun
        "swarm.num_peers=2",
        "swarm.silent_s=2",
        "train.local_steps=400",
    )
    with Run(tmp_path / "run", *words, "train.eval_every=200", "train.eval_samples=32", address=ray) as run:
        run.wait_until_training()
        run.send(signal.SIGSTOP)
        run.look()  # its peers go on
        time.sleep(6.0)
        run.send(signal.SIGCONT)
        assert run.finish().code == 0, run
    assert run.events("PeerLost") == []
    assert len(run.events("Evaluation")) == 6
