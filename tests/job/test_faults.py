"""Faults on purpose, on a real swarm, by the command that is there for them."""

from __future__ import annotations

import pytest

from tests.job.networks import PACED
from tests.job.runs import Run

PLAN = (
    "{kind: sidecar, peer: 1, at_s: 1}",
    "{kind: drop, peer: 0, at_s: 2, for_s: 2}",
    "{kind: slow, peer: 1, at_s: 5, for_s: 2}",
    "{kind: kill, peer: 2, at_round: 1}",
    "{kind: p2pd, peer: 0, at_s: 6}",
)


@pytest.fixture(scope="module")
def chaos(ray: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    words = (f"faults.plan=[{', '.join(PLAN)}]", "--minutes", "0.15", *PACED, "train.local_steps=1000000")
    folder = tmp_path_factory.mktemp("chaos") / "run"
    with Run(folder, *words, "swarm.num_peers=3", command="chaos", address=ray) as run:
        assert run.finish().code == 0, run
    return run


def test_what_is_planned_happens_and_the_run_gets_over_it(chaos: Run) -> None:
    happened = [(fault["kind"], fault["peer_index"]) for fault in chaos.events("Fault")]
    assert sorted(happened) == [("drop", 0), ("kill", 2), ("p2pd", 0), ("sidecar", 1), ("slow", 1)]
    recovery = chaos.summary["recovery"]
    assert (recovery["faults"], recovery["back"]) == (5, 5)
    assert recovery["by_kind"]["kill"]["samples_lost"] > 0
    assert recovery["by_kind"]["sidecar"]["noticed_median_s"] < 2.0
    assert 0 < recovery["participation"] <= 1
    assert 0 < recovery["throughput"] < 1.1
    (lost,) = chaos.events("PeerLost")
    assert lost["peer_index"] == 2


def test_it_ends_in_order_after_its_minutes(chaos: Run) -> None:
    notices = [notice["text"] for notice in chaos.events("Notice")]
    assert any("0.15 minutes are over" in notice for notice in notices)
    assert any("is saved; to go on" in notice for notice in notices)
    assert "faults    kill: 1 of 1 back" in chaos.stderr
