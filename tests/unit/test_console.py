"""What a person sees, read from the stream that it was written to."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ray_gossip.console import LiveView, PlainView, open_view, table
from ray_gossip.lines import duration, print_summary, status_line, time_left
from ray_gossip.records import Notice
from ray_gossip.telemetry import SwarmState
from tests.unit.telemetry_records import (
    TOTAL_STEPS,
    a_swarm,
    evaluation,
    finished,
    fold,
    lost,
    progress,
    report,
    sketches,
    started,
)


class Clock:
    """Time that passes when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def a_terminal(stream: io.StringIO) -> Console:
    return Console(file=stream, width=80, height=30, force_terminal=True, legacy_windows=False, _environ={})


def training(num_peers: int = 4) -> SwarmState:
    """A swarm in the middle of a run, one round done."""
    state = a_swarm(num_peers)
    fold(state, (progress(peer, 20, loss=0.5) for peer in range(num_peers)))
    fold(state, (evaluation(peer, 20, 0.875) for peer in range(num_peers)))
    x = sketches(num_peers, seed=1)
    fold(state, (report(peer, 1, before=x[peer], after=x[0]) for peer in range(num_peers)))
    return state


def rows(state: SwarmState, *, width: int = 80) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, _environ={}).print(table(state))
    return stream.getvalue().splitlines()


class TestTheTable:
    def test_shows_every_peer_with_its_last_round_and_groupmates(self) -> None:
        header, *peers = rows(training())
        assert header.split()[:5] == ["peer", "state", "device", f"step/{TOTAL_STEPS}", "loss"]
        assert " ".join(peers[2].split()) == "2 training cpu 20 0.500 0.875 100 1 averaged 3"

    def test_shows_the_test_loss_where_there_is_no_accuracy(self) -> None:
        state = training()
        fold(state, (evaluation(peer, 20, None) for peer in range(4)))
        header, *peers = rows(state)
        assert "test loss" in header
        assert "accuracy" not in header
        assert " ".join(peers[2].split()) == "2 training cpu 20 0.500 0.500 100 1 averaged 3"
        assert "; test loss 0.500;" in status_line(state)

    def test_fits_eighty_columns_with_the_longest_values(self) -> None:
        state = a_swarm(64)
        fold(state, (progress(peer, 12_345, loss=12.5) for peer in range(64)))
        fold(state, (report(peer, 12_345, outcome="averaged") for peer in range(64)))
        lines = rows(state)
        assert max(len(line) for line in lines) <= 80
        assert not any("…" in line for line in lines)

    def test_marks_a_lost_peer(self) -> None:
        state = training()
        fold(state, [lost(1)])
        assert rows(state)[2].split()[:2] == ["1", "lost"]

    def test_of_a_swarm_that_starts_is_empty_but_whole(self) -> None:
        lines = rows(SwarmState(peers=range(2), total_steps=TOTAL_STEPS))
        assert lines[1].split() == ["0", "starting", "0", "-", "-", "-"]

    def test_sums_up_what_does_not_fit(self) -> None:
        state = training(40)
        fold(state, [lost(39)])
        *_, last = rows(state)
        assert len(rows(state)) == 1 + 16
        assert " ".join(last.split()) == "+25 1 lost mean 20 0.500 0.875 100"


class TestTheLiveView:
    def view(self, clock: Clock | None = None) -> tuple[LiveView, io.StringIO]:
        stream = io.StringIO()
        return LiveView(a_terminal(stream), clock=clock or Clock()), stream

    def test_shows_the_table_the_consensus_distance_and_a_bar(self) -> None:
        view, stream = self.view()
        with view:
            view.update(training())
        seen = stream.getvalue()
        assert "averaged" in seen
        assert "consensus distance" in seen
        assert "in round 1" in seen
        assert "50%" in seen

    def test_says_a_loss_and_a_notice_once_each_and_takes_them_literally(self) -> None:
        view, stream = self.view()
        state = training()
        with view:
            view.update(state)
            fold(state, [lost(2), Notice(peer_index=1, wall_time=0.0, text="[red]momentum is skipped")])
            view.update(state)
            view.update(state)
        assert stream.getvalue().count("peer 2 is lost: its process died") == 1
        assert stream.getvalue().count("peer 1: [red]momentum is skipped") == 1

    def test_builds_its_table_at_most_four_times_a_second_and_shows_the_last_state(self) -> None:
        clock = Clock()
        view, stream = self.view(clock)
        state = training()
        with view:
            view.update(state)
            fold(state, [progress(0, 33)])
            view.update(state)
            assert " 33 " not in stream.getvalue()
        assert " 33 " in stream.getvalue()

    def test_gives_the_terminal_back_when_the_run_fails(self) -> None:
        view, stream = self.view()

        def run() -> None:
            with view:
                view.update(training())
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run()
        assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l"), "cursor shown again"


class TestPlainLines:
    def test_tell_each_event_once(self) -> None:
        stream, state = io.StringIO(), SwarmState(peers=range(2), total_steps=TOTAL_STEPS)
        with PlainView(stream) as view:
            for record in (started(0), started(1), progress(0, 1), lost(1), finished(0)):
                state.fold(record)
                view.update(state)
        first, second, third, status = stream.getvalue().splitlines()
        assert "peer 0 is up on node-a: cpu, 9,000 parameters, 0.02 MB averaged, 359 samples" in first
        assert "peer 1 is up" in second
        assert "peer 1 is lost: its process died" in third
        assert "1 of 2 peers" in status

    def test_give_a_status_every_few_seconds(self) -> None:
        clock, stream = Clock(), io.StringIO()
        with PlainView(stream, clock=clock) as view:
            state = training()
            view.update(state)
            told = stream.getvalue()
            for clock.now in (1.0, 4.9, 5.0, 5.1, 9.9):
                view.update(state)
            (status,) = stream.getvalue().removeprefix(told).splitlines()
        assert status.startswith("   5.0 s  4 of 4 peers; step 20/40; loss 0.500; accuracy 0.875; 400 samples/s;")
        assert "rounds: 4 averaged; 4.0 MB sent; consensus distance" in status

    def test_say_how_long_it_will_take_at_the_speed_so_far(self) -> None:
        state = SwarmState(peers=range(2), total_steps=100)
        assert time_left(state) == []
        fold(state, [started(0), started(1)])
        fold(state, [progress(0, 10, wall_time=1000.0), progress(1, 5, wall_time=1000.0)])
        assert time_left(state) == []
        fold(state, [progress(0, 50, wall_time=1010.0), progress(1, 25, wall_time=1010.0)])
        assert time_left(state) == ["38 s left"]  # the slower one: half a second a step, 75 steps
        fold(state, [lost(1)])
        assert time_left(state) == ["12 s left"]
        fold(state, [progress(0, 100, wall_time=1020.0)])
        assert time_left(state) == []
        assert [duration(seconds) for seconds in (8, 89, 90, 5399, 11_100)] == [
            "8 s",
            "89 s",
            "2 min",
            "1 h 30 min",
            "3 h 5 min",
        ]

    def test_name_no_speed_when_nobody_trains_any_more(self) -> None:
        state = training()
        assert "; 400 samples/s; " in status_line(state)
        fold(state, (finished(peer) for peer in range(4)))
        assert "samples/s" not in status_line(state)

    def test_keep_a_long_notice_to_one_line(self) -> None:
        stream, state = io.StringIO(), SwarmState(peers=range(0), total_steps=TOTAL_STEPS)
        state.fold(Notice(peer_index=-1, wall_time=0.0, text="it broke\nTraceback ...\n"))
        PlainView(stream).update(state)
        assert stream.getvalue().strip() == "0.0 s  it broke (the whole text is in events.jsonl)"

    def test_are_chosen_where_there_is_no_terminal(self) -> None:
        assert isinstance(open_view(io.StringIO()), PlainView)

    def test_are_chosen_on_a_terminal_that_cannot_move_its_cursor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(open_view(Terminal()), PlainView)

    def test_give_way_to_the_live_table_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "xterm-256color")
        assert isinstance(open_view(Terminal()), LiveView)


class TestTheSummary:
    def text(self, run_dir: Path, **changes: Any) -> str:
        summary = {
            "merged_accuracy": 0.9694,
            "merged_loss": 0.1234,
            "merged_metrics": {},
            "reported": {},
            "peer_accuracy": [0.95, None, 0.94],
            "peer_loss": [0.25, None, 0.5],
            "rounds": {"averaged": 80, "partial": 0, "alone": 0, "failed": 2},
            "consensus_distance": 0.00123,
            "samples_per_s": 4321.0,
            "bytes_sent": 12_300_000,
            "averaged_tensors": 4,
            "averaged_bytes": 264_192,
            "wall_s": 48.21,
            "troubles": [],
            "peers_lost": [{"peer_index": 1, "cause": "its process died"}],
            "model": str(run_dir / "model.pt"),
        }
        stream = io.StringIO()
        print_summary(summary | changes, run_dir, stream=stream)
        return stream.getvalue()

    def test_says_how_good_the_model_is_and_where_to_look_next(self) -> None:
        text = self.text(Path("runs/a-run"))
        assert "merged model 0.9694, peers 0.940 to 0.950" in text
        assert "80 averaged, 0 partial, 0 alone, 2 failed" in text
        assert "4 tensors, 0.264 MB" in text
        assert "peer 1: its process died" in text
        assert "tensorboard --logdir runs\n" in text
        assert 'torch.load("runs/a-run/model.pt", weights_only=True)' in text

    def test_names_the_loss_where_there_is_no_accuracy_and_the_metrics_of_ones_own(self) -> None:
        found = {"merged_accuracy": None, "peer_accuracy": [None] * 3, "merged_metrics": {"mae": 0.61}}
        assert "\nloss      merged model 0.1234, mae 0.61, peers 0.250 to 0.500\n" in self.text(Path("a"), **found)

    def test_says_what_loops_of_ones_own_reported(self) -> None:
        assert "\nreported  loss 0.25, f1 0.5: mean over the peers\n" in self.text(
            Path("a"), reported={"loss": 0.25, "f1": 0.5}
        )

    def test_points_tensorboard_at_the_run_itself_when_it_lies_elsewhere(self) -> None:
        assert "tensorboard --logdir /data/mine\n" in self.text(Path("/data/mine"))

    def test_of_a_run_that_came_to_nothing_is_short_and_whole(self) -> None:
        nothing: dict[str, Any] = {"averaged_tensors": None, "averaged_bytes": None}
        nothing |= {"merged_accuracy": None, "peer_accuracy": [None], "peer_loss": [None]}
        nothing |= {"consensus_distance": None, "model": None}
        text = self.text(Path("runs/a-run"), **nothing)
        assert "merged model -, no peer was evaluated" in text
        assert "torch.load" not in text
