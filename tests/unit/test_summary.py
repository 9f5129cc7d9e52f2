"""The consensus distance of a swarm, and the summary of its run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_gossip.records import Record
from ray_gossip.telemetry import Observer, RunLog
from tests.unit.telemetry_records import (
    TOTAL_STEPS,
    Write,
    a_config,
    a_swarm,
    distance,
    ends_of_four,
    evaluation,
    finished,
    fold,
    lost,
    progress,
    report,
    sketches,
    started,
)


class TestTheConsensusDistance:
    def test_is_that_of_all_live_peers_once_all_have_reported_the_round(self) -> None:
        state, before, after = a_swarm(), sketches(4, seed=4), sketches(4, seed=5)
        reports = [report(i, 1, before=before[i], after=after[i]) for i in range(4)]
        assert fold(state, reports[:3]) == []
        (complete,) = fold(state, reports[3:])
        assert complete.num_peers == 4
        assert complete.consensus_distance_before == pytest.approx(distance(*before))
        assert complete.consensus_distance == pytest.approx(distance(*after))
        assert state.last_round == complete

    def test_takes_a_peer_whose_round_was_not_averaged_where_it_stayed(self) -> None:
        state, (x, y) = a_swarm(2), sketches(2, seed=6)
        (complete,) = fold(state, [report(0, 1, before=x, outcome="failed"), report(1, 1, before=y, outcome="alone")])
        assert complete.consensus_distance == complete.consensus_distance_before == pytest.approx(distance(x, y))

    def test_does_not_wait_for_a_peer_that_skipped_the_round(self) -> None:
        state, (x, y, z) = a_swarm(3), sketches(3, seed=7)
        assert fold(state, [report(0, 1, before=x), report(1, 1, before=y)]) == []
        (complete,) = fold(state, [report(2, 2, before=z)])
        assert (complete.round, complete.num_peers) == (1, 2)

    def test_leaves_out_a_peer_that_died_and_does_not_wait_for_it(self) -> None:
        state, (x, y, z) = a_swarm(3), sketches(3, seed=8)
        assert fold(state, [report(2, 1, before=z), report(0, 1, before=x), lost(2)]) == []
        (complete,) = fold(state, [report(1, 1, before=y)])
        assert complete.consensus_distance == pytest.approx(distance(x, y))

    def test_is_completed_by_a_death(self) -> None:
        state, (x, y) = a_swarm(3), sketches(2, seed=9)
        (complete,) = fold(state, [report(0, 1, before=x), report(1, 1, before=y), lost(2)])
        assert complete.num_peers == 2

    def test_counts_a_late_joiner_from_its_first_round(self) -> None:
        state, (x, y, z) = a_swarm(2), sketches(3, seed=10)
        first = fold(state, [report(0, 1, before=x), report(1, 1, before=y), started(2)])
        later = fold(state, [report(0, 2, before=x), report(1, 2, before=y), report(2, 2, before=z)])
        assert [complete.num_peers for complete in first + later] == [2, 3]

    def test_says_nothing_when_only_one_of_several_peers_gave_a_sketch(self) -> None:
        assert fold(a_swarm(2), [report(0, 1, before=(1.0, 2.0)), report(1, 1)]) == []

    def test_of_one_peer_is_zero(self) -> None:
        (complete,) = fold(a_swarm(1), [report(0, 1, before=(1.0, 2.0), outcome="alone")])
        assert (complete.consensus_distance, complete.contraction) == (0.0, None)

    def test_of_a_peer_that_diverged_is_not_a_number_and_no_crash(self) -> None:
        (complete,) = fold(a_swarm(2), [report(0, 1, before=(math.inf, 0.0)), report(1, 1, before=(0.0, 0.0))])
        assert math.isnan(complete.consensus_distance)

    def test_forgets_old_sketches_when_a_peer_stops_reporting(self) -> None:
        state, (x, y) = a_swarm(3), sketches(2, seed=11)
        complete = fold(state, (r for n in range(500) for r in (report(0, n, before=x), report(1, n, before=y))))
        assert len(complete) > 400


class TestTheSummary:
    def whole_run(self) -> list[Record]:
        ends = ends_of_four()
        return [
            *map(started, range(4)),
            *(progress(i, TOTAL_STEPS) for i in range(4)),
            *(report(i, 1) for i in range(4)),
            *(evaluation(i, TOTAL_STEPS, 0.9 + i / 100) for i in range(4)),
            *(evaluation(i, TOTAL_STEPS, 0.97, merged=True) for i in range(4)),
            *(finished(i, bytes_sent=1_500_000, sketch=ends[i]) for i in range(4)),
        ]

    def test_of_a_whole_run_has_every_key_that_scripts_read(self, write: Write) -> None:
        log = write(self.whole_run())
        summary = log.write_summary(model=log.run_dir / "model.pt")
        assert summary == json.loads((log.run_dir / "summary.json").read_text())
        assert summary.pop("wall_s") > 0
        assert summary.pop("consensus_distance") == pytest.approx(distance(*ends_of_four()))
        assert summary == {
            "run_id": "a-run",
            "engine": "gossip",
            "num_peers": 4,
            "merged_accuracy": 0.97,
            "merged_loss": 0.5,
            "reported": {},
            "peer_reported": [{}] * 4,
            "merged_metrics": {},
            "merged_batch_norm": "none",
            "peer_accuracy": [0.9, 0.91, 0.92, 0.93],
            "peer_loss": [0.5] * 4,
            "rounds": {"averaged": 4, "partial": 0, "alone": 0, "failed": 0},
            "causes": {},
            "final_outcome": ["averaged"] * 4,
            "troubles": [],
            "samples_per_s": 4 * 1280 / 4.0,
            "bytes_sent": 6_000_000,
            "averaged_tensors": 2,
            "averaged_bytes": 20_000,
            "averaged": [
                {"name": "head.weight", "shape": [100, 49], "kind": "parameter", "num_bytes": 19_600},
                {"name": "norm.running_var", "shape": [100], "kind": "statistic", "num_bytes": 400},
            ],
            "time_to_first_step_s": 11.0,
            "peers_joined": 0,
            "peers_lost": [],
            "recovery": None,
            "run_dir": str(log.run_dir),
            "model": str(log.run_dir / "model.pt"),
        }

    def test_counts_why_rounds_did_not_average(self, write: Write) -> None:
        causes = ["scheduled alone", "scheduled alone", "", "the moon is full"]
        causes.append("no group of 3: peer-01 could not be reached; peer-02 did not come within 2.5 s")
        rounds = [replace(report(0, number, outcome="alone"), cause=cause) for number, cause in enumerate(causes)]
        log = write([started(0), *rounds])
        assert log.write_summary()["causes"] == {
            "scheduled alone": 2,
            "for another cause": 1,
            "could not be reached": 1,
            "did not come within": 1,
        }

    def test_names_a_lost_peer_and_its_cause(self, write: Write) -> None:
        log = write([*map(started, range(4)), evaluation(2, 10, 0.5), report(2, 1, outcome="failed"), lost(2)])
        summary = log.write_summary()
        assert summary["peers_lost"] == [{"peer_index": 2, "cause": "its process died", "is_replaced": False}]
        assert summary["peer_accuracy"] == [None] * 4
        assert summary["rounds"]["failed"] == 1
        assert summary["bytes_sent"] == 1_000_000, "bytes of a failed round were sent all the same"

    def test_takes_the_merged_accuracy_from_a_peer_that_was_in_the_final_round(self, tmp_path: Path) -> None:
        ends = [
            started(0),
            started(1),
            evaluation(0, 40, 0.5, merged=True),
            evaluation(1, 40, 0.9, merged=True),
        ]
        with RunLog(tmp_path, Observer(a_config()), run_id="a-run") as log:
            for record in [*ends, finished(0, outcome="failed"), finished(1)]:
                log.write(record)
            assert log.write_summary()["merged_accuracy"] == 0.9

    def test_of_an_interrupted_run_says_what_is_known(self, write: Write) -> None:
        x, y = sketches(2, seed=13)
        records = [started(0), started(1), progress(0, 10), report(0, 1, before=x), report(1, 1, before=y)]
        summary = write([*records, finished(0, sketch=x)]).write_summary()
        assert summary["merged_accuracy"] is None
        assert summary["model"] is None
        assert summary["consensus_distance"] == pytest.approx(distance(x, y)), "one end is no distance"

    def test_of_a_run_in_which_nothing_happened_is_valid_too(self, write: Write) -> None:
        summary = write([]).write_summary()
        assert summary["time_to_first_step_s"] is None
        assert summary["samples_per_s"] == 0

    def test_writes_what_is_not_finite_as_null(self, write: Write) -> None:
        log = write([started(0), evaluation(0, 10, 0.1), finished(0, sketch=(math.nan, 0.0))])
        assert log.write_summary()["consensus_distance"] is None

    def test_counts_the_bytes_of_a_replaced_peer_as_well(self, write: Write) -> None:
        log = write([started(0), report(0, 1), lost(0), started(0), report(0, 2), finished(0, bytes_sent=1_500_000)])
        assert log.write_summary()["bytes_sent"] == 2_500_000


def test_the_sketch_distance_agrees_with_numpy() -> None:
    """The definition above is itself held against an independent one."""
    of = sketches(5, seed=14)
    stacked = np.array(of)
    assert distance(*of) == pytest.approx(math.sqrt(stacked.var(axis=0).sum()))
