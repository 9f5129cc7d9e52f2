"""What a run writes, read back the way a person's tools would."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ray_gossip.config import Config, load, parse
from ray_gossip.records import (
    AveragedTensor,
    Evaluation,
    Notice,
    Outcome,
    PeerFinished,
    PeerLost,
    PeerStarted,
    Progress,
    Record,
    RoundReport,
)
from ray_gossip.telemetry import RunLog, SwarmRound, SwarmState

NUM_PEERS, TOTAL_STEPS = 4, 40
AVERAGED = (
    AveragedTensor(name="head.weight", shape=(100, 49), kind="parameter", num_bytes=19_600),
    AveragedTensor(name="norm.running_var", shape=(100,), kind="statistic", num_bytes=400),
)
Sketch = tuple[float, ...]


def started(peer: int, *, wall_time: float = 1000.0) -> PeerStarted:
    return PeerStarted(
        peer_index=peer,
        wall_time=wall_time,
        peer_id=f"Qm{peer}",
        multiaddrs=(f"/ip4/127.0.0.1/tcp/{4000 + peer}/p2p/Qm{peer}",),
        pid=100 + peer,
        node="node-a",
        device="cpu",
        num_parameters=9_000,
        averaged_bytes=20_000,
        averaged=AVERAGED if peer == 0 else (),
        num_samples=359,
    )


def progress(peer: int, step: int, *, loss: float = 1.0, wall_time: float = 1001.0) -> Progress:
    return Progress(
        peer_index=peer,
        wall_time=wall_time,
        local_step=step,
        samples=32 * step,
        data_epoch=step / 11,
        loss=loss,
        lr=0.05,
        samples_per_s=100.0,
    )


def evaluation(peer: int, step: int, accuracy: float, *, merged: bool = False) -> Evaluation:
    return Evaluation(
        peer_index=peer,
        wall_time=1002.0,
        local_step=step,
        model="merged" if merged else "peer",
        accuracy=accuracy,
        loss=0.5,
    )


def report(
    peer: int,
    number: int,
    *,
    before: Sketch = (),
    after: Sketch = (),
    outcome: Outcome = "averaged",
    local_step: int | None = None,
) -> RoundReport:
    return RoundReport(
        peer_index=peer,
        wall_time=1003.0,
        round=number,
        outcome=outcome,
        cause="" if outcome == "averaged" else "a groupmate died",
        group=(peer, peer ^ 1) if peer < peer ^ 1 else (peer ^ 1, peer),
        local_step=10 * number if local_step is None else local_step,
        staleness_steps=2,
        matchmaking_s=0.25,
        allreduce_s=0.5,
        blocked_s=0.125,
        bytes_sent=1_000_000,
        moved=0.75,
        sketch_before=before,
        sketch_after=after,
    )


def finished(peer: int, *, bytes_sent: int = 0, sketch: Sketch = (), outcome: Outcome = "averaged") -> PeerFinished:
    return PeerFinished(
        peer_index=peer,
        wall_time=1010.0,
        local_step=TOTAL_STEPS,
        samples=1280,
        train_s=4.0,
        bytes_sent=bytes_sent,
        final_outcome=outcome,
        final_cause="",
        sketch=sketch,
    )


def lost(peer: int, cause: str = "its process died") -> PeerLost:
    return PeerLost(peer_index=peer, wall_time=1004.0, cause=cause)


def sketches(num: int, *, seed: int) -> list[Sketch]:
    rng = random.Random(seed)
    return [tuple(rng.gauss(0, 1) for _ in range(256)) for _ in range(num)]


def ends_of_four() -> list[Sketch]:
    """Where four peers end that agree, but for rounding."""
    mean, *errors = sketches(5, seed=12)
    return [tuple(m + 1e-6 * e for m, e in zip(mean, error, strict=True)) for error in errors]


def distance(*of: Sketch) -> float:
    """The definition, written out."""
    mean = [sum(column) / len(of) for column in zip(*of, strict=True)]
    squares = [sum((x - m) ** 2 for x, m in zip(sketch, mean, strict=True)) for sketch in of]
    return math.sqrt(sum(squares) / len(of))


def a_config(num_peers: int = NUM_PEERS) -> Config:
    return parse({"swarm": {"num_peers": num_peers}, "train": {"local_steps": TOTAL_STEPS}})


def a_swarm(num_peers: int = NUM_PEERS) -> SwarmState:
    """Everybody is up."""
    state = SwarmState(peers=range(num_peers), total_steps=TOTAL_STEPS)
    fold(state, map(started, range(num_peers)))
    return state


def fold(state: SwarmState, records: Iterable[Record]) -> list[SwarmRound]:
    return [complete for record in records for complete in state.fold(record)]


Write = Callable[[Iterable[Record]], RunLog]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes records as a whole run of four peers; returns the closed log."""

    def of(records: Iterable[Record]) -> RunLog:
        with RunLog(tmp_path / "run", a_config(), run_id="a-run", started_at=990.0) as log:
            for record in records:
                log.write(record)
        return log

    return of


def curve(log: RunLog, run: str, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in scalars(log, run, tag)]


def scalars(log: RunLog, run: str, tag: str) -> Any:
    accumulator = accumulated(log, run)
    return accumulator.Scalars(tag) if tag in accumulator.Tags()["scalars"] else []


def accumulated(log: RunLog, run: str) -> Any:
    accumulator = EventAccumulator(str(log.run_dir / run))
    accumulator.Reload()
    return accumulator


def events(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


class TestTheEventLog:
    def test_holds_every_record_in_order_as_one_json_object_a_line(self, write: Write) -> None:
        log = write([started(0), progress(0, 10), report(0, 1, outcome="failed"), lost(0)])
        lines = events(log.run_dir)
        assert [line["event"] for line in lines] == ["PeerStarted", "Progress", "RoundReport", "PeerLost"]
        assert lines[2]["cause"] == "a groupmate died"
        assert lines[3] == {
            "event": "PeerLost",
            "peer_index": 0,
            "wall_time": 1004.0,
            "cause": "its process died",
        }

    def test_holds_the_consensus_distance_but_no_sketches(self, write: Write) -> None:
        x, y = sketches(2, seed=1)
        log = write([started(0), started(1), report(0, 1, before=x, after=x), report(1, 1, before=y, after=x)])
        assert not any(key.startswith("sketch") for line in events(log.run_dir) for key in line)
        complete = events(log.run_dir)[-1]
        assert complete["event"] == "SwarmRound"
        assert complete["consensus_distance_before"] == pytest.approx(distance(x, y))
        assert complete["contraction"] == 0.0

    def test_writes_a_loss_that_is_not_finite_as_null(self, write: Write) -> None:
        log = write([started(0), progress(0, 10, loss=math.nan), progress(0, 20, loss=math.inf)])
        assert [line["loss"] for line in events(log.run_dir)[1:]] == [None, None]

    def test_is_readable_to_the_last_record_while_the_run_goes_on(self, tmp_path: Path) -> None:
        with RunLog(tmp_path, a_config(), run_id="a-run") as log:
            for step in range(50):  # nothing is left in a buffer that a kill -9 could take along
                log.write(progress(0, step))
                assert events(tmp_path)[-1]["local_step"] == step

    def test_stands_beside_the_resolved_config(self, write: Write) -> None:
        assert load(write([]).run_dir / "config.yaml") == a_config()


class TestTensorBoard:
    def test_shows_a_curve_per_peer_over_its_local_steps(self, write: Write) -> None:
        log = write([*map(started, range(2)), progress(0, 10, loss=2.0), progress(1, 12), progress(0, 20, loss=1.5)])
        assert curve(log, "peer-00", "train/loss") == [(10, 2.0), (20, 1.5)]
        assert curve(log, "peer-01", "train/samples_per_s") == [(12, 100.0)]
        assert scalars(log, "peer-00", "train/loss")[0].wall_time == 1001.0

    def test_is_readable_within_seconds_while_the_run_goes_on(self, tmp_path: Path) -> None:
        with RunLog(tmp_path / "run", a_config(), run_id="a-run") as log:
            for step in (10, 20, 30):
                log.write(progress(0, step))
                deadline = time.monotonic() + 5.0
                while curve(log, "peer-00", "train/loss")[-1:] != [(step, 1.0)]:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)

    def test_draws_mean_and_extremes_of_the_swarm_under_the_same_tags(self, write: Write) -> None:
        log = write(
            [
                *map(started, range(2)),
                progress(0, 10, loss=1.0),
                progress(0, 20, loss=2.0),  # the newest counts
                progress(1, 10, loss=4.0),
                evaluation(0, 20, 0.5),
                evaluation(1, 20, 0.75),
            ]
        )
        assert curve(log, "swarm", "train/loss") == [(15, 3.0)]
        assert curve(log, "swarm", "train/loss_min") == [(15, 2.0)]
        assert curve(log, "swarm", "train/loss_max") == [(15, 4.0)]
        assert curve(log, "swarm", "eval/accuracy") == [(20, 0.625)]
        assert curve(log, "swarm", "swarm/samples_per_s") == [(15, 200.0)]

    def test_shows_what_each_round_was(self, write: Write) -> None:
        log = write([started(0), report(0, 1), report(0, 2, outcome="failed")])
        expected = {"matchmaking_s": 0.25, "allreduce_s": 0.5, "blocked_s": 0.125, "staleness_steps": 2.0}
        expected |= {"group_size": 2.0, "moved": 0.75, "sent_mb": 1.0}
        for tag, value in expected.items():
            assert curve(log, "peer-00", f"round/{tag}") == [(10, value), (20, value)]
        assert curve(log, "peer-00", "round/outcome") == [(10, 1.0), (20, -2.0)]

    def test_shows_the_consensus_distance_before_and_after_a_round(self, write: Write) -> None:
        x, y = sketches(2, seed=2)
        half = tuple(value / 2 for value in y)
        log = write(
            [
                *map(started, range(2)),
                report(0, 1, before=x, after=x, local_step=10),
                report(1, 1, before=y, after=half, local_step=14),
            ]
        )
        before, after = distance(x, y), distance(x, half)
        expected = {"consensus_distance_before": before, "consensus_distance": after}
        expected["contraction"] = (after / before) ** 2
        for tag, value in expected.items():
            ((step, drawn),) = curve(log, "swarm", f"swarm/{tag}")
            assert step == 12
            assert drawn == pytest.approx(value)

    def test_survives_a_loss_that_is_not_finite(self, write: Write) -> None:
        log = write([*map(started, range(2)), progress(0, 10, loss=math.nan), progress(1, 10, loss=2.0)])
        assert math.isnan(curve(log, "peer-00", "train/loss")[0][1])
        assert curve(log, "swarm", "train/loss") == [(10, 2.0)]

    def test_goes_on_with_the_swarm_curves_when_a_peer_is_lost(self, write: Write) -> None:
        log = write(
            [
                *map(started, range(2)),
                progress(0, 10),
                lost(1),
                progress(0, 20),
                started(1),  # a replacement, which begins at step 0
                progress(1, 2),
                progress(0, 30),
            ]
        )
        assert curve(log, "swarm", "swarm/peers") == [(0, 1), (0, 2), (10, 1), (20, 1), (20, 2), (20, 2)]
        steps = [step for step, _ in curve(log, "swarm", "train/loss")]
        assert steps == [20, 20], "the swarm's x axis never goes back"

    def test_has_every_tag_in_the_table(self, write: Write) -> None:
        from ray_gossip.telemetry import curves

        x, y = sketches(2, seed=3)
        log = write(
            [
                *map(started, range(2)),
                *(record for peer in range(2) for record in (progress(peer, 10), evaluation(peer, 10, 0.9))),
                report(0, 1, before=x, after=x),
                report(1, 1, before=y, after=y),
                *(evaluation(peer, 10, 0.9, merged=True) for peer in range(2)),
            ]
        )
        assert curves.__doc__ is not None
        for run in ("peer-00", "swarm"):
            for tag in accumulated(log, run).Tags()["scalars"]:
                stem = tag.removesuffix("_min").removesuffix("_max")
                stem = stem if not stem.startswith("swarm/rounds_") else "swarm/rounds_averaged"
                assert f"`{stem}`" in curves.__doc__

    def test_shows_the_classes_in_all_shards_once_every_peer_has_started_or_is_lost(self, write: Write) -> None:
        def classes(records: list[Record]) -> Any:
            board = accumulated(write(records), "swarm")
            tag = "swarm/classes_of_peers"
            return board.Images(tag) if tag in board.Tags()["images"] else []

        three = [dataclasses.replace(started(i), class_counts=(10 * i, 5, 0)) for i in range(3)]
        assert classes(list(three)) == []
        (picture,) = classes([*three, lost(3), lost(2)])
        assert picture.encoded_image_string.startswith(b"\x89PNG")
        assert picture.step == 0


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


class TestThePicture:
    def test_follows_a_peer_from_start_to_end(self) -> None:
        state = SwarmState(peers=range(1), total_steps=TOTAL_STEPS)
        seen = [state.peers[0].status]
        for record in (started(0), progress(0, 10), progress(0, TOTAL_STEPS), finished(0), lost(0)):
            state.fold(record)
            seen.append(state.peers[0].status)
        assert seen == ["starting", "starting", "training", "final", "finished", "lost"]

    def test_knows_the_groupmates_and_the_outcome_of_the_last_round(self) -> None:
        state = a_swarm()
        fold(state, [report(3, 1), report(3, 2, outcome="partial")])
        peer = state.peers[3]
        assert peer.round is not None
        assert (peer.round.outcome, peer.groupmates) == ("partial", (2,))

    def test_a_lost_peer_stays_lost_until_it_is_replaced(self) -> None:
        state = a_swarm()
        fold(state, [progress(2, 10), lost(2), progress(2, 20)])  # the last words of the dead may come late
        assert state.peers[2].status == "lost"
        fold(state, [started(2)])
        assert (state.peers[2].status, state.peers[2].local_step) == ("starting", 0)

    def test_news_are_what_a_person_should_read(self) -> None:
        state = SwarmState(peers=range(2), total_steps=TOTAL_STEPS)
        fold(state, [started(0), progress(0, 1), Notice(peer_index=-1, wall_time=0.0, text="no GPU"), lost(0)])
        assert [type(news) for news in state.news] == [PeerStarted, Notice, PeerLost]
        assert sorted(state.peers) == [0, 1], "a notice of the swarm is no peer"


class TestTheEndOfTheSwarmsCurves:
    def test_has_the_totals_and_what_each_peer_ended_with_though_one_was_done_first(self, write: Write) -> None:
        records: list[Record] = [*map(started, range(4)), *(progress(peer, 100) for peer in range(4))]
        records += [evaluation(0, 200, 0.6), progress(0, 200)]  # the others evaluate later, when it reports no more
        records += [record for peer in (1, 2, 3) for record in (progress(peer, 200), report(peer, 9))]
        records += [evaluation(peer, 200, 0.4) for peer in (1, 2, 3)]
        ends = ends_of_four()
        records += [finished(peer, bytes_sent=1_500_000, sketch=ends[peer]) for peer in range(4)]
        log = write(records)
        last_points = {
            "swarm/sent_mb": 6.0,
            "swarm/rounds_averaged": 3,
            "eval/accuracy": 0.45,
            "swarm/consensus_distance": distance(*ends),  # after the final rounds
        }
        for tag, value in last_points.items():
            step, last = curve(log, "swarm", tag)[-1]
            assert step == 200
            assert last == pytest.approx(value), tag

    def test_has_the_distance_of_the_end_last_though_the_last_peer_completes_a_round_with_its_end(
        self, write: Write
    ) -> None:
        x, y = sketches(2, seed=3)
        ends = ends_of_four()[:3]
        log = write(
            [
                *map(started, range(3)),
                report(0, 1, before=x, after=x, local_step=190),
                report(1, 1, before=y, after=y, local_step=190),
                *(finished(peer, sketch=ends[peer]) for peer in range(3)),
            ]
        )
        of_the_round, of_the_end = (value for _, value in curve(log, "swarm", "swarm/consensus_distance"))
        assert of_the_round == pytest.approx(distance(x, y))
        assert of_the_end == pytest.approx(distance(*ends))


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
            "merged_batch_norm": "none",
            "peer_accuracy": [0.9, 0.91, 0.92, 0.93],
            "rounds": {"averaged": 4, "partial": 0, "alone": 0, "failed": 0},
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
            "run_dir": str(log.run_dir),
            "model": str(log.run_dir / "model.pt"),
        }

    def test_names_a_lost_peer_and_its_cause(self, write: Write) -> None:
        log = write([*map(started, range(4)), evaluation(2, 10, 0.5), report(2, 1, outcome="failed"), lost(2)])
        summary = log.write_summary()
        assert summary["peers_lost"] == [{"peer_index": 2, "cause": "its process died"}]
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
        with RunLog(tmp_path, a_config(), run_id="a-run") as log:
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
