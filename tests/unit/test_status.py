"""`ray-gossip status` and `ray-gossip why`: a run as its folder tells it, and exit codes for a script."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from ray_gossip import cli
from ray_gossip.causes import BUSY, IS_DONE
from ray_gossip.config import parse
from ray_gossip.records import Record, RoundReport
from ray_gossip.telemetry import Observer, RunLog, replay
from tests.unit.telemetry_records import evaluation, finished, lost, progress, report, sketches, started

PEERS = range(4)
CONFIG = parse({"swarm": {"num_peers": 4}, "gossip": {"group_size": 2}, "train": {"local_steps": 40}})


def write(run_dir: Path, records: Iterable[Record], *, ends: bool, is_saved: bool = True) -> None:
    with RunLog(run_dir, Observer(CONFIG), run_id="a") as log:
        for record in records:
            log.write(record)
        if ends:
            log.write_summary(model=log.save("model.pt", b"model") if is_saved else None)


def training(num_rounds: int = 3) -> list[Record]:
    """Rounds in which 0 meets 1 and 2 meets 3."""
    x = sketches(4, seed=1)
    rounds = [report(peer, number, before=x[peer], after=x[0]) for number in range(num_rounds) for peer in PEERS]
    return [*map(started, PEERS), *(progress(peer, 20) for peer in PEERS), *rounds]


def the_end() -> list[Record]:
    merged = [evaluation(peer, 40, 0.97, merged=True) for peer in PEERS]
    return [*(progress(peer, 40) for peer in PEERS), *merged, *(finished(peer, sketch=(1.0,)) for peer in PEERS)]


def spoilt(peer: int, number: int, cause: str) -> RoundReport:
    return replace(report(peer, number, outcome="alone"), cause=cause, wall_time=1003.0 + number)


def test_of_a_run_that_goes_on_and_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "run", training(), ends=False)
    assert cli.main(["status", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert " ".join(shown.splitlines()[3].split()) == "2 training cpu 20 1.000 - 100 2 averaged 3"
    assert "rounds: 12 averaged; 12.0 MB sent\nconsensus distance " in shown
    assert f"\n{tmp_path / 'run'}: runs; its driver wrote " in shown
    assert cli.main(["why", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "every round has averaged whole so far" in shown
    assert [line.split() for line in shown.splitlines()[-5:]] == [
        ["0", "1", "2", "3"],
        ["0", ".", "3", ".", "."],
        ["1", "3", ".", ".", "."],
        ["2", ".", ".", ".", "3"],
        ["3", ".", ".", "3", "."],
    ]


def test_of_a_run_that_has_ended_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "runs" / "first", training(), ends=False)
    write(tmp_path / "runs" / "last", [*training(), *the_end()], ends=True)
    os.utime(tmp_path / "runs" / "first" / "events.jsonl", (0, 0))
    assert cli.main(["status", str(tmp_path / "runs"), "--json"]) == 0  # the latest
    told = json.loads(capsys.readouterr().out)
    assert (told["stands"], told["is_well"], told["rounds"]["averaged"]) == ("has ended", True, 12)
    assert told["run_dir"] == str(tmp_path / "runs" / "last")
    assert [peer["status"] for peer in told["peers"]] == ["finished"] * 4
    assert cli.main(["status", "--watch", str(tmp_path / "runs")]) == 0  # it is over at once


def test_of_a_run_with_a_dead_peer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [*training(), lost(2), spoilt(3, 3, "peer-02 could not be reached")], ends=False)
    assert cli.main(["status", str(tmp_path)]) == 3
    shown = capsys.readouterr().out
    assert "peer 2 is lost: its process died\n" in shown
    assert shown.splitlines()[3].split()[:2] == ["2", "lost"]
    assert cli.main(["why", str(tmp_path)]) == 3
    shown = capsys.readouterr().out
    assert "1 times: could not be reached\n" in shown
    assert "peer 2 is lost: its process died\n" in shown
    assert "\ncommonest: peer-02 could not be reached; " in shown
    assert "\nround 3, peer 3: alone after 0.75 s: peer-02 could not be reached\n" in shown


def test_of_a_run_that_does_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rounds = [spoilt(peer, number, f"peer-0{peer ^ 1} {BUSY}") for number in range(8) for peer in PEERS]
    write(tmp_path, [*training(0), *rounds, *(progress(peer, 30) for peer in PEERS)], ends=False)
    observed = replay(tmp_path)
    (trouble,) = observed.state.present_troubles()
    assert cli.main(["status", str(tmp_path)]) == 3
    assert (
        f"trouble: {trouble.text}".split()
        == capsys.readouterr().out.partition(f"{tmp_path}:")[0].split()[-len(f"trouble: {trouble.text}".split()) :]
    )
    assert cli.main(["why", str(tmp_path), "--peer", "1"]) == 3
    shown = capsys.readouterr().out
    assert f"32 times: {BUSY}\n" in shown
    assert "\nround 7, peer 1: alone after 0.75 s: peer-00 is busy" in shown
    assert "peer 2: alone" not in shown
    assert cli.main(["why", str(tmp_path), "--round", "5", "--peer", "1"]) == 3
    assert capsys.readouterr().out.splitlines()[-1] == "round 5, peer 1: alone after 0.75 s: peer-00 is busy"
    for words, line in (
        (["--round", "500"], "--round 500: it is not known"),
        (["--round", "500", "--peer", "1"], "--round 500: it is not known of peer 1"),
        (["--peer", "9"], "--peer 9: there is none; there are 0, 1, 2, 3"),
    ):
        assert cli.main(["why", str(tmp_path), *words]) == 2
        assert capsys.readouterr().err == f"ray-gossip: {line}\n"


def test_tells_a_round_that_averaged_when_asked_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, training(), ends=False)
    assert cli.main(["why", str(tmp_path), "--round", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        f"round 1, peer {peer}: averaged with {peer ^ 1} after 0.75 s" for peer in PEERS
    ]


def test_gives_no_advice_where_there_is_nothing_to_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [*training(), spoilt(0, 3, f"no group of 2: peer-01 {IS_DONE}"), *the_end()], ends=True)
    assert cli.main(["why", str(tmp_path)]) == 0
    assert "\nnothing to mend: " in capsys.readouterr().out


def test_of_a_run_whose_driver_was_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, training(), ends=False)
    events = tmp_path / "events.jsonl"
    with events.open("a") as file:
        file.write('{"event": "Progress", "peer_in')  # a line that was being written
    earlier = time.time() - 100
    os.utime(events, (earlier, earlier))
    assert cli.main(["status", str(tmp_path)]) == 4
    assert "its driver wrote 100 s ago and has not ended: it is dead, or stopped" in capsys.readouterr().out
    assert cli.main(["status", "--watch", str(tmp_path)]) == 4  # it does not wait for what never comes


def test_of_a_run_that_was_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, training(), ends=True, is_saved=False)
    assert cli.main(["status", str(tmp_path)]) == 3
    assert "has ended without a model" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "why"])
def test_of_a_folder_that_holds_no_run(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert cli.main([command, str(folder)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == (
            f"ray-gossip: {folder} holds no run: there is no events.jsonl in it, nor in a folder below; name RUN_DIR"
        )
    with pytest.raises(SystemExit) as ended:
        cli.main([command, str(tmp_path), "gossip.steps=3"])
    assert ended.value.code == 2


def test_what_the_driver_knew_is_what_is_read(tmp_path: Path) -> None:
    observer = Observer(CONFIG)
    with RunLog(tmp_path, observer, run_id="a") as log:
        for record in [*training(), progress(0, 30, loss=float("nan")), spoilt(1, 3, "")]:
            log.write(record)
    found = replay(tmp_path).state
    assert found.rounds == observer.state.rounds
    assert found.last_round == observer.state.last_round
    assert found.meetings == observer.state.meetings
    for index, peer in observer.state.peers.items():
        assert found.peers[index].local_step == peer.local_step
        assert found.peers[index].status == peer.status
    assert found.peers[0].loss != found.peers[0].loss  # nan, which is null in the file


def test_why_of_a_run_without_rounds_claims_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, map(started, PEERS), ends=False)
    assert cli.main(["why", str(tmp_path)]) == 0
    assert "there has been no round so far" in capsys.readouterr().out


def test_why_gives_no_all_clear_where_there_is_a_trouble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = [finished(peer, sketch=(float("nan"),)) for peer in PEERS]
    write(tmp_path, [*training(), spoilt(0, 3, f"no group of 2: peer-01 {IS_DONE}"), *ends], ends=True)
    assert cli.main(["why", str(tmp_path)]) == 3
    shown = capsys.readouterr().out
    assert "trouble: the saved model is not finite" in shown
    assert "nothing to mend" not in shown


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"\xff\xfe\x00",
        b"[1]",
        b"null",
        b'{"event": "Zed"}',
        b'{"event": "PeerLost", "peer_index": 1}',
        b'{"peer_index": 1}',
    ],
)
def test_lines_that_say_nothing_are_left_out_and_counted(
    line: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, training(), ends=False)
    events = tmp_path / "events.jsonl"
    first, *others = events.read_bytes().splitlines()
    events.write_bytes(b"\n".join([first.replace(b"{", b'{"a_new_field": 3, ', 1), line, *others, b""]))
    assert cli.main(["status", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "\n1 lines of events.jsonl cannot be read: left out\n" in shown
    assert "rounds: 12 averaged;" in shown
    assert cli.main(["status", "--json", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["num_unread"] == 1


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        ("summary.json", "", "summary.json is damaged: remove it, and the run counts as one that has not ended"),
        ("summary.json", "{}", "summary.json is damaged"),
        ("config.yaml", "foo: 3\n", "config.yaml cannot be read by this version: unknown key foo"),
        ("config.yaml", None, "holds no run that can be read: there is no config.yaml in it"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    file: str, content: str | None, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, training(), ends=True)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    for command in ("status", "why"):
        assert cli.main([command, str(tmp_path)]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert line in said
