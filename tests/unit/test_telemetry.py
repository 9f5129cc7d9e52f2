"""What a run writes, read back the way a person's tools would: events and curves."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from ray_gossip.config import load, parse
from ray_gossip.records import (
    Notice,
    PeerLost,
    PeerStarted,
    Record,
)
from ray_gossip.telemetry import Observer, RunLog, SwarmState
from ray_gossip.telemetry.layout import custom_scalars
from tests.unit.telemetry_records import (
    TOTAL_STEPS,
    Write,
    a_config,
    a_swarm,
    accumulated,
    curve,
    distance,
    ends_of_four,
    evaluation,
    events,
    finished,
    fold,
    lost,
    progress,
    report,
    reported,
    scalars,
    sketches,
    started,
    usage,
)


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
            "is_replaced": False,
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
        with RunLog(tmp_path, Observer(a_config()), run_id="a-run") as log:
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
        with RunLog(tmp_path / "run", Observer(a_config()), run_id="a-run") as log:
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
        assert curve(log, "swarm", "bands/train/loss_min") == [(15, 2.0)]
        assert curve(log, "swarm", "bands/train/loss_max") == [(15, 4.0)]
        assert curve(log, "swarm", "eval/accuracy") == [(20, 0.625)]
        assert curve(log, "swarm", "swarm/samples_per_s") == [(15, 200.0)]

    def test_has_the_metrics_of_ones_own_and_no_accuracy_where_there_is_none(self, write: Write) -> None:
        log = write(
            [
                *map(started, range(2)),
                evaluation(0, 20, None, metrics={"mae": 0.5}),
                evaluation(1, 20, None, metrics={"mae": 0.75}),
                evaluation(1, 40, None, merged=True, metrics={"mae": 0.25}),
            ]
        )
        assert curve(log, "peer-01", "eval/mae") == [(20, 0.75)]
        assert curve(log, "swarm", "eval/mae") == [(20, 0.625)]
        assert curve(log, "swarm", "bands/eval/mae_max") == [(20, 0.75)]
        assert curve(log, "peer-01", "merged/mae") == [(40, 0.25)]
        assert curve(log, "swarm", "eval/loss") == [(20, 0.5)]
        assert curve(log, "swarm", "eval/accuracy") == curve(log, "peer-01", "merged/accuracy") == []
        summary = log.write_summary()
        assert summary["merged_accuracy"] is None
        assert summary["peer_accuracy"] == [None] * 4
        assert summary["peer_loss"] == [0.5, 0.5, None, None]

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
                stem = tag.removeprefix("bands/").removesuffix("_min").removesuffix("_max")
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

    def test_has_what_each_loop_reported_last_though_nobody_answered_the_reports_of_the_slower_one(
        self, write: Write
    ) -> None:
        records: list[Record] = [*map(started, range(2)), reported(0, 100, 0.8), reported(0, 200, 0.9)]
        records += [reported(1, 100, 0.4), reported(1, 200, 0.5)]
        log = write([*records, progress(0, 200), progress(1, 200), finished(0), finished(1)])
        steps, values = zip(*curve(log, "swarm", "accuracy"), strict=True)
        assert steps == (150, 200)
        assert values == pytest.approx((0.65, 0.7))
        assert [value for _, value in curve(log, "swarm", "bands/accuracy_min")] == pytest.approx([0.4, 0.5])

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


class TestTheLayout:
    def test_names_only_curves_that_there_are(self, write: Write) -> None:
        layouts: dict[str, Layout] = {}
        for train in ({}, {"loss": "mse", "metrics": {"mae": "my:mae"}}):
            value = custom_scalars(parse({"train": train}))
            assert (value.tag, value.metadata.plugin_data.plugin_name) == ("custom_scalars__config__", "custom_scalars")
            layouts["accuracy" if not train else "mae"] = Layout.FromString(value.tensor.string_val[0])
        x, y = sketches(2, seed=5)
        for measure, layout in layouts.items():
            accuracy, metrics = (0.9, {}) if measure == "accuracy" else (None, {"mae": 0.5})
            log = write(
                [
                    *map(started, range(2)),
                    *(progress(peer, 10) for peer in range(2)),
                    *(evaluation(peer, 10, accuracy, metrics=metrics) for peer in range(2)),
                    *(usage(peer, 10) for peer in range(2)),
                    report(0, 1, before=x, after=x),
                    report(1, 1, before=y, after=y),
                ]
            )
            of_swarm, of_peer = (accumulated(log, run).Tags()["scalars"] for run in ("swarm", "peer-01"))
            charts = [chart for category in layout.category for chart in category.chart]
            assert any(measure in chart.title for chart in charts)
            for chart in charts:
                series = [tag for each in chart.margin.series for tag in (each.value, each.lower, each.upper)]
                assert set(series) <= set(of_swarm), chart.title
                for pattern in chart.multiline.tag:
                    tags = of_peer if "by peer" in chart.title else of_swarm
                    assert any(re.search(pattern, tag) for tag in tags), (chart.title, pattern)

    def test_stands_in_the_swarms_run_beside_the_config_and_the_end_as_text(self, tmp_path: Path) -> None:
        with RunLog(tmp_path, Observer(a_config(2)), run_id="a") as log:
            for record in [*map(started, range(2)), evaluation(0, 10, 0.5), lost(1, "a | b")]:
                log.write(record)
            log.write_summary()
        board = accumulated(log, "swarm")
        assert {"custom_scalars__config__", "config", "summary"} <= set(board.Tags()["tensors"])
        config, summary = (board.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in ("config", "summary"))
        assert config.startswith("```yaml\nengine: gossip\n")
        assert "| merged_accuracy | - |" in summary
        assert "| rounds | averaged 0, partial 0, alone 0, failed 0 |" in summary
