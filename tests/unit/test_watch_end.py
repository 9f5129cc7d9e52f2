"""Trouble of a run's end, and where a person sees any."""

from __future__ import annotations

import inspect
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ray_gossip.causes import NOT_FINITE, SCHEDULED_ALONE
from ray_gossip.config import Config, parse
from ray_gossip.console import LiveView, PlainView
from ray_gossip.lines import print_summary
from ray_gossip.records import BEGAN_APART, Notice, Outcome, PeerLeft, Record
from ray_gossip.telemetry import Observer, RunLog, Trouble, advice, ending, watch
from tests.unit.telemetry_records import curve, evaluation, events, finished, lost, progress, started
from tests.unit.test_watch import BUSY, Watched, rounds_of


class TestTheEnd:
    def ended(self, *records: Record, num_peers: int = 2) -> list[str]:
        swarm = Watched(num_peers)
        swarm.see(records)
        told = [notice.text for notice in swarm.watch.end()]
        assert [notice.text for notice in swarm.watch.end()] == [], "nobody is told twice"
        return told

    def merged(self, accuracy: float) -> list[Record]:
        return [evaluation(peer, 40, accuracy, merged=True) for peer in range(2)]

    def own(self, accuracy: float) -> list[Record]:
        return [evaluation(peer, 40, accuracy) for peer in range(2)]

    def test_of_a_run_of_few_rounds_most_of_which_did_not_average_says_so(self) -> None:
        cause = "no group of 2: peer-00 does not answer"
        for spoilt, expected in ((2, 0), (3, 1)):  # of four, by one peer of two
            records = [
                record
                for number in range(4)
                for record in rounds_of([1], number, outcome="alone" if number < spoilt else "averaged", cause=cause)
            ]
            told = self.ended(*records)
            assert len(told) == expected
        assert f"3 of the 4 rounds that should have averaged did not: {cause}; " in told[0]

    def test_tells_when_it_began(self) -> None:
        swarm = Watched(2)
        for number in range(5, 45):  # in less than three seconds
            swarm.see(rounds_of([0, 1], number, interval_s=0.01, outcome="failed", cause="not finite"))
        assert swarm.told == []
        assert len(swarm.watch.end()) == 1
        assert swarm.state.troubles["rounds"].first_round == 5

    def test_without_agreement_is_told_with_the_cause(self) -> None:
        alone = replace(finished(1, outcome="alone"), final_cause="no group of 2: peer-00 does not answer")
        (text,) = self.ended(*self.own(0.9), finished(0), alone)
        assert "no agreement in the end: the final round was alone for peer 1 (no group of 2: peer-00" in text
        assert "swarm.final_s" in text

    def test_without_agreement_because_the_training_diverged_asks_for_no_more_time(self) -> None:
        mine = replace(finished(0, outcome="failed"), final_cause=NOT_FINITE)
        other = replace(
            finished(1, outcome="alone"), final_cause="no group of 2: peer-00 its parameters are not finite"
        )
        (text,) = self.ended(*self.own(0.1), mine, other)
        assert text.endswith("may be one peer's own model; the training has diverged: lower optimizer.lr")
        assert "final_s" not in text

    def test_in_two_halves_is_no_agreement(self) -> None:
        near, far = (1.0, 2.0, 3.0), (1.0, 2.0, 3.1)
        merged = [*self.own(0.9), *self.merged(0.9)]
        assert self.ended(*merged, finished(0, sketch=near), finished(1, sketch=near)) == []
        (text,) = self.ended(*merged, finished(0, sketch=near), finished(1, sketch=far))
        assert "no agreement in the end: the peers averaged in parts" in text

    def test_alone_is_no_agreement_while_others_are_there(self) -> None:
        ends = (finished(0, outcome="alone"), finished(1, outcome="alone"))
        assert len(self.ended(*self.merged(0.9), *ends)) == 1

    def test_alone_is_an_agreement_for_the_only_one(self) -> None:
        one = [evaluation(0, 40, 0.9, merged=True), finished(0, outcome="alone")]
        assert self.ended(*one, num_peers=1) == []
        assert self.ended(lost(1), *one) == []
        assert self.ended(PeerLeft(peer_index=1, wall_time=1.0, local_step=3), *one) == []
        assert len(self.ended(finished(0, outcome="alone"), num_peers=1)) == 1, "it has no merged model: it was cut off"

    def test_of_a_run_that_was_interrupted_is_no_trouble(self) -> None:
        assert self.ended(*self.own(0.9)) == []

    def test_says_when_the_merged_model_is_worse_than_the_peers_mean(self) -> None:
        ends = (finished(0), finished(1))
        assert self.ended(*self.own(0.9), *self.merged(0.875), *ends) == []
        (text,) = self.ended(*self.own(0.9), *self.merged(0.865), *ends)
        assert "the merged model is worse than the peers: accuracy 0.865, their mean 0.900" in text
        assert "lower gossip.steps" in text

    def test_of_peers_that_began_apart_says_so_as_over(self) -> None:
        swarm = Watched()
        (text,) = swarm.see([Notice(peer_index=1, wall_time=1.0, text=f"{BEGAN_APART} peer-00, and ...")])
        assert "model.factory" in text
        assert (swarm.present(), swarm.state.troubles["apart"].is_over) == ([], True)


class TestTheRoundsOfTheWholeRun:
    def ended(self, swarm: Watched, *, final_cause: str = "") -> Trouble:
        outcome: Outcome = "failed" if final_cause else "averaged"
        swarm.see(replace(finished(peer, outcome=outcome), final_cause=final_cause) for peer in swarm.state.peers)
        swarm.watch.end()
        trouble = replace(swarm.state.troubles["rounds"])
        swarm.watch.end()
        assert swarm.state.troubles["rounds"] == trouble, "the same however often it is asked"
        return trouble

    def few(self, *spoilt: bool) -> Watched:
        swarm = Watched(2)
        for number, is_spoilt in enumerate(spoilt):
            swarm.round(number, interval_s=0.01, **({"outcome": "failed", "cause": NOT_FINITE} if is_spoilt else {}))
        assert swarm.told == []
        return swarm

    def test_are_over_when_the_last_averaged_and_the_final_round_did(self) -> None:
        assert self.ended(self.few(True, True, True, False)).is_over
        assert not self.ended(self.few(False, True, True, True)).is_over

    def test_are_over_when_only_peers_that_are_gone_ended_badly(self) -> None:
        swarm = Watched(3)
        for number in range(4):
            swarm.see(rounds_of([1, 2], number, interval_s=0.01, outcome="failed", cause=NOT_FINITE))
        swarm.see(rounds_of([0], 3))
        swarm.see([lost(1), PeerLeft(peer_index=2, wall_time=1.0, local_step=3)])
        assert self.ended(swarm).is_over

    def test_are_not_over_when_a_final_round_ended_for_the_same_cause(self) -> None:
        assert not self.ended(self.few(True, True, True, False), final_cause=NOT_FINITE).is_over
        assert self.ended(self.few(True, True, True, False), final_cause="peer-00 does not answer").is_over

    def test_that_were_told_and_over_are_back_with_a_final_round_of_the_same_cause(self) -> None:
        for final_cause, is_over in (("", True), (BUSY, False)):
            swarm = Watched(2)
            for number in range(20):
                swarm.round(number, **({"outcome": "alone", "cause": BUSY} if number < 10 else {}))
            assert swarm.state.troubles["rounds"].is_over
            assert self.ended(swarm, final_cause=final_cause).is_over == is_over

    def test_leave_out_those_that_nobody_expected_to_average_and_say_so(self) -> None:
        swarm = self.few(True, True, True, False)
        swarm.round(4, outcome="alone", cause=SCHEDULED_ALONE)
        text = self.ended(swarm).text
        assert text.startswith("6 of the 8 rounds that should have averaged did not: "), "two more are in the table"

    def test_are_counted_in_the_end_though_they_were_told_long_before(self) -> None:
        swarm = Watched(2)
        for number in range(200):
            swarm.round(number, outcome="failed", cause=NOT_FINITE)
        assert "5 of the last 5 rounds" in swarm.told[0]
        trouble = self.ended(swarm)
        assert trouble.text.startswith(f"400 of the 400 rounds that should have averaged did not: {NOT_FINITE}; ")
        assert trouble.count == 400

    def test_say_whose_they_are_where_most_are_of_a_few_peers(self) -> None:
        swarm = Watched(8)
        for number in range(50):
            swarm.see(rounds_of({0, 1, 2, 4, 5, 6, 7}, number))
            swarm.see(rounds_of([3], number, outcome="failed", cause=NOT_FINITE))
        text = self.ended(swarm).text
        assert text.startswith("50 of the 400 rounds that should have averaged did not, most of them of peer 3: ")


class TestAModelThatIsNotFinite:
    def told(self, *records: Record, is_saved: bool = True) -> list[str]:
        swarm = Watched(2)
        swarm.see(records)
        return [notice.text for notice in swarm.watch.end(is_saved=is_saved) if "is not finite:" in notice.text]

    def test_is_told_by_its_parameters(self) -> None:
        for value in (math.nan, math.inf):
            (text,) = self.told(finished(0, sketch=(1.0, value)), finished(1, sketch=(1.0, value)))
            assert text.endswith(
                "its parameters have become nan or infinite; the training has diverged: lower optimizer.lr"
            )

    @pytest.mark.parametrize("merged", [True, False])
    def test_is_told_by_its_loss_too(self, merged: bool) -> None:
        own = evaluation(0, 40, 0.1)
        last = replace(evaluation(0, 40, 0.1, merged=merged), loss=math.nan)
        (text,) = self.told(own, last, finished(0, sketch=(1.0,)), finished(1, sketch=(1.0,)))
        assert "its loss on the test split is nan" in text

    def test_is_not_said_of_one_that_is_well_or_was_measured_on_nothing(self) -> None:
        ends = finished(0, sketch=(1.0,)), finished(1, sketch=(1.0,))
        assert self.told(evaluation(0, 40, 0.9), *ends) == []
        assert self.told(replace(evaluation(0, 40, math.nan), loss=math.nan), *ends) == []

    def test_is_told_by_its_loss_where_there_is_no_accuracy(self) -> None:
        ends = finished(0, sketch=(1.0,)), finished(1, sketch=(1.0,))
        own = [evaluation(peer, 40, None) for peer in range(2)]
        assert self.told(*own, *ends) == []
        (text,) = self.told(*own, replace(evaluation(0, 40, None, merged=True), loss=math.nan), *ends)
        assert "its loss on the test split is nan" in text

    def test_is_not_said_of_a_peer_whose_model_is_not_saved(self) -> None:
        sick, well = finished(0, sketch=(math.nan,), outcome="failed"), finished(1, sketch=(1.0,))
        assert self.told(sick, well) == []
        assert self.told(replace(sick, final_outcome="averaged"), well) != []
        assert self.told(replace(sick, final_outcome="averaged"), well, is_saved=False) == []


class TestWhatAPersonSees:
    def sick(self) -> list[Record]:
        peers = range(2)
        reports = [r for n in range(6) for r in rounds_of(peers, n, outcome="alone", cause=BUSY)]
        return [*map(started, peers), *(progress(i, 1) for i in peers), *reports, *(progress(i, 30) for i in peers)]

    def config(self) -> Config:
        return parse({"swarm": {"num_peers": 2}, "gossip": {"group_size": 2}, "train": {"local_steps": 1000}})

    def test_events_summary_curves_table_and_lines_all_say_it(self, tmp_path: Path) -> None:
        live, plain, end = io.StringIO(), io.StringIO(), io.StringIO()
        terminal = Console(file=live, width=200, height=30, force_terminal=True, legacy_windows=False, _environ={})
        observer = Observer(self.config())
        with RunLog(tmp_path / "run", observer, run_id="a") as log:
            with LiveView(terminal) as table, PlainView(plain) as lines:
                for record in self.sick():
                    log.write(record)
                    table.update(observer.state)
                    lines.update(observer.state)
            summary = log.write_summary()
        print_summary(summary, log.run_dir, stream=end)
        text = summary["troubles"][0]["text"]
        assert {**summary["troubles"][0], "text": ""} == {
            "kind": "rounds",
            "text": "",
            "first_round": 0,
            "count": 12,
            "is_over": False,
        }
        (notice,) = [event for event in events(log.run_dir) if event["event"] == "Notice"]
        assert notice["text"].startswith("trouble: 10 of the last 10 rounds of peers 0, 1 did not average: no group")
        assert text.startswith("12 of the 12 rounds that should have averaged did not: no group")
        assert json.loads((log.run_dir / "summary.json").read_text())["troubles"] == summary["troubles"]
        assert [value for _, value in curve(log, "swarm", "swarm/trouble")] == [0, 1, 1]
        assert live.getvalue().count("trouble: ") >= 2, "where it scrolls by, and under the table"
        assert plain.getvalue().count("did not average") == 1
        assert "TROUBLE: rounds" in plain.getvalue()
        assert f"trouble   {text}\n" in end.getvalue()

    def test_of_a_run_that_diverged_is_in_summary_screen_events_and_the_end_of_the_curve(self, tmp_path: Path) -> None:
        peers, end = range(2), io.StringIO()
        rounds = [r for n in range(4) for r in rounds_of(peers, n, interval_s=0.01, outcome="failed", cause=NOT_FINITE)]
        last = finished(0, outcome="failed", sketch=(math.nan,))
        ends = [replace(last, peer_index=peer, final_cause=NOT_FINITE) for peer in peers]
        observer = Observer(self.config())
        with RunLog(tmp_path / "run", observer, run_id="a") as log:
            for record in [*map(started, peers), *(progress(i, 1000) for i in peers), *rounds, *ends]:
                log.write(record)
            summary = log.write_summary(model=log.save("model.pt", b"nan"))
        print_summary(summary, log.run_dir, stream=end)
        assert [(each["kind"], each["is_over"]) for each in summary["troubles"]] == [
            ("rounds", False),
            ("diverged", False),
            ("agreement", False),
        ]
        notices = [event["text"] for event in events(log.run_dir) if event["event"] == "Notice"]
        assert notices == [f"trouble: {each['text']}" for each in summary["troubles"]]
        assert "\ntrouble   the saved model is not finite: " in end.getvalue()
        assert "over in the end" not in end.getvalue()
        assert [value for _, value in curve(log, "swarm", "swarm/trouble")] == [0, 0, 3], "what is told at the end too"

    def test_of_a_run_that_is_well_is_nothing(self, tmp_path: Path) -> None:
        stream = io.StringIO()
        observer = Observer(self.config())
        with RunLog(tmp_path / "run", observer, run_id="a") as log, PlainView(stream) as lines:
            for record in [*map(started, range(2)), *(r for n in range(30) for r in rounds_of(range(2), n))]:
                log.write(record)
                lines.update(observer.state)
            assert log.write_summary()["troubles"] == []
        assert "rouble" not in stream.getvalue() + (log.run_dir / "events.jsonl").read_text()

    def test_names_only_keys_that_there_are(self) -> None:
        config = Config().model_dump()
        for module, at_least in ((watch, 10), (advice, 10), (ending, 4)):
            keys = re.findall(rf"\b({'|'.join(config)})\.([a-z_]+[a-z])", inspect.getsource(module))
            assert len(keys) >= at_least
            for section, key in keys:
                assert key in config[section], f"{section}.{key}"
