"""Trouble of a run's end, and where a person sees any."""

from __future__ import annotations

import inspect
import io
import json
import re
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ray_gossip.config import Config, parse
from ray_gossip.console import LiveView, PlainView
from ray_gossip.lines import print_summary
from ray_gossip.records import BEGAN_APART, Notice, PeerLeft, Record
from ray_gossip.telemetry import RunLog, advice, ending, watch
from tests.unit.test_telemetry import curve, evaluation, events, finished, lost, progress, started
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
        assert "3 of 4 rounds did not average: no group of 2: peer-00 does not answer; " in told[0]

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
        with RunLog(tmp_path / "run", self.config(), run_id="a") as log:
            with LiveView(terminal) as table, PlainView(plain) as lines:
                for record in self.sick():
                    log.write(record)
                    table.update(log.state)
                    lines.update(log.state)
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
        assert notice["text"] == f"trouble: {text}"
        assert json.loads((log.run_dir / "summary.json").read_text())["troubles"] == summary["troubles"]
        assert [value for _, value in curve(log, "swarm", "swarm/trouble")] == [0, 1, 1]
        assert live.getvalue().count("trouble: ") >= 2, "where it scrolls by, and under the table"
        assert plain.getvalue().count("did not average") == 1
        assert "TROUBLE: rounds" in plain.getvalue()
        assert f"trouble   {text}\n" in end.getvalue()

    def test_of_a_run_that_is_well_is_nothing(self, tmp_path: Path) -> None:
        stream = io.StringIO()
        with RunLog(tmp_path / "run", self.config(), run_id="a") as log, PlainView(stream) as lines:
            for record in [*map(started, range(2)), *(r for n in range(30) for r in rounds_of(range(2), n))]:
                log.write(record)
                lines.update(log.state)
            assert log.write_summary()["troubles"] == []
        assert "rouble" not in stream.getvalue() + (log.run_dir / "events.jsonl").read_text()

    def test_names_only_keys_that_there_are(self) -> None:
        config = Config().model_dump()
        for module, at_least in ((watch, 10), (advice, 10), (ending, 4)):
            keys = re.findall(rf"\b({'|'.join(config)})\.([a-z_]+[a-z])", inspect.getsource(module))
            assert len(keys) >= at_least
            for section, key in keys:
                assert key in config[section], f"{section}.{key}"
