"""Models as people have them, trained by two peers from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_gossip.causes import IS_DONE
from tests.job.runs import Run, train

WORDS = (
    *("swarm.num_peers=2", "gossip.steps=10", "gossip.overlap=false", "gossip.matchmaking_s=20"),
    *("train.local_steps=60", "train.eval_every=1000"),
)


@pytest.mark.parametrize(
    ("kind", "at_least", "averaged_bytes"),
    [("Frozen", 0.85, 4 * 650), ("TiedByData", 0.9, 4 * 4746), ("Masked", 0.9, 4 * 4746), ("Growing", 0.9, 4 * 4746)],
)
def test_a_merged_model_is_as_good_as_its_peers(
    kind: str, at_least: float, averaged_bytes: int, ray: str, tmp_path: Path
) -> None:
    run: Run = train(tmp_path / "run", *WORDS, f"model.factory=tests.zoo:{kind}", address=ray)
    summary = run.summary
    assert summary["merged_accuracy"] >= at_least, summary
    assert summary["merged_accuracy"] >= max(summary["peer_accuracy"]) - 0.03
    assert summary["rounds"]["averaged"] >= 12
    # a peer that was called to its rounds early may have one more due when its groupmate is done
    spoilt = [report["cause"] for report in run.events("RoundReport") if report["outcome"] != "averaged"]
    assert all(IS_DONE in cause for cause in spoilt), spoilt
    assert summary["averaged_bytes"] == averaged_bytes
