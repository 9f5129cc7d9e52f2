"""The folder of a run that ended before it trained is free again; any other is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ray_gossip.records import Record
from ray_gossip.telemetry import Observer, RunLog, clear_untrained, is_untrained
from tests.unit.telemetry_records import a_config, evaluation, finished, lost, progress, report, started


def a_run(folder: Path, records: Sequence[Record], *, has_ended: bool = True) -> None:
    with RunLog(folder, Observer(a_config()), run_id="a-run") as log:
        for record in records:
            log.write(record)
        if has_ended:
            log.write_summary()


def test_a_run_whose_peers_never_trained_leaves_nothing(tmp_path: Path) -> None:
    a_run(tmp_path, [started(0), lost(0)])
    for name in ("notes.txt", "peer-review/comments.txt", "swarm/honey.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    assert is_untrained(tmp_path)
    clear_untrained(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"notes.txt", "peer-review/comments.txt", "swarm/honey.txt"}
    assert not (tmp_path / "peer-00").exists()


@pytest.mark.parametrize("record", [progress(0, 1), evaluation(0, 1, 0.5), report(0, 1), finished(0)], ids=repr)
def test_what_has_trained_stays(tmp_path: Path, record: Record) -> None:
    a_run(tmp_path, [started(0), record, lost(0)])
    before = sorted(tmp_path.rglob("*"))
    clear_untrained(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_goes_on_or_cannot_be_read_stays(tmp_path: Path) -> None:
    a_run(tmp_path / "begun", [started(0)], has_ended=False)
    assert not is_untrained(tmp_path / "begun")
    assert not is_untrained(tmp_path / "none")
    a_run(tmp_path / "torn", [started(0)])
    with (tmp_path / "torn" / "events.jsonl").open("a") as events:
        events.write("{not json\n")
    clear_untrained(tmp_path / "torn")
    assert (tmp_path / "torn" / "summary.json").exists()
