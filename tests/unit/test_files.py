"""Files that stay whole, places of results, and streams that nobody reads: on real descriptors."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_gossip import storage
from ray_gossip.config import Config
from ray_gossip.errors import ConfigError, SwarmError
from ray_gossip.gossip_trainer import GossipTrainer
from ray_gossip.records import Notice
from ray_gossip.screen import flush_or_drop, screen
from ray_gossip.storage import Journal, write_atomically
from ray_gossip.telemetry import Observer, RunLog
from tests.unit.telemetry_records import progress, started


@contextlib.contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """As a disk that is nearly full: a write takes what fits, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_journal_holds_whole_records_when_the_disk_is_full_and_grows_again_after_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    with files_of_at_most(1000):
        for _ in range(3):
            journal.write(b"x" * 299 + b"\n")
        with pytest.raises(OSError, match="File too large"):
            journal.write(b"y" * 299 + b"\n")
        assert (tmp_path / "journal").stat().st_size == 900
    journal.write(b"z\n")
    journal.close()
    assert (tmp_path / "journal").read_bytes() == (b"x" * 299 + b"\n") * 3 + b"z\n"


def test_a_file_that_does_not_fit_leaves_the_one_before_it_and_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "model.pt", b"old")
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        write_atomically(tmp_path / "model.pt", b"new" * 100)
    assert (tmp_path / "model.pt").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "model.pt"]


def test_a_full_disk_costs_the_log_what_does_not_fit_and_is_told_once(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    observer = Observer(Config(), peers=[0])
    with RunLog(run_dir, observer, run_id="a") as log:
        log.write(started(0))
        size = max(path.stat().st_size for path in run_dir.rglob("*") if path.is_file())
        with files_of_at_most(size + 1000):
            for step in range(1, 100):
                log.write(progress(0, step))
            with pytest.raises(SwarmError, match=r"cannot write .*model\.pt: File too large"):
                log.save("model.pt", bytes(size + 2000))
        log.write(progress(0, 100))
        (notice,) = (news.text for news in observer.state.news if isinstance(news, Notice))
        assert notice == f"cannot write to {run_dir}: File too large; the run goes on, and what does not fit is lost"
        assert log.write_summary()["run_id"] == "a"
    lines = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    steps = [line["local_step"] for line in lines if line["event"] == "Progress"]
    assert 1 < len(steps) < 100
    assert steps[-1] == 100

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(run_dir / "peer-00"))
    curves.Reload()
    assert curves.Scalars("train/loss")[-1].step == 100


def test_a_run_in_a_folder_whose_name_is_no_text_has_a_summary_that_is(tmp_path: Path) -> None:
    run_dir = tmp_path / os.fsdecode(b"\xff run")
    observer = Observer(Config(), peers=[0])
    with RunLog(run_dir, observer, run_id="a") as log:
        log.write_summary()
    assert json.loads((run_dir / "summary.json").read_text())["run_dir"] == str(run_dir)


def test_a_stream_shows_what_it_has_no_letters_for_as_escapes() -> None:
    written = io.BytesIO()
    stream = screen(io.TextIOWrapper(written, encoding="ascii"))
    print("runs/größe", file=stream, flush=True)
    assert written.getvalue() == b"runs/gr\\xf6\\xdfe\n"


def test_a_pipe_that_nobody_reads_any_more_is_written_to_in_silence() -> None:
    read, write = os.pipe()
    pipe = os.fdopen(write, "w")
    stream = screen(pipe)
    print("seen", file=stream, flush=True)
    os.close(read)
    for _ in range(3):
        print("unseen", file=stream, flush=True)
    assert not stream.isatty()
    flush_or_drop(pipe)
    pipe.close()


def test_a_process_without_standard_output_says_nothing() -> None:
    print("unseen", file=screen(None), flush=True)
    assert not screen(None).isatty()


@pytest.mark.parametrize("words", [["--help"], ["train", "nonsense.yaml"]])
def test_a_command_whose_output_nobody_reads_keeps_its_exit_code(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ray_gossip.cli", *words]
    done = subprocess.run(command, stdout=write, stderr=write, timeout=60, check=False)
    os.close(write)
    assert done.returncode == (0 if words == ["--help"] else 2)


def test_the_query_of_a_uri_stays_at_its_end() -> None:
    place = "s3://bucket/sweeps/a?endpoint_override=localhost%3A9000&scheme=http"
    assert storage.name_of(place) == "a"
    assert storage.parent_of(place) == "s3://bucket/sweeps?endpoint_override=localhost%3A9000&scheme=http"
    assert storage.inside(place, "b") == "s3://bucket/sweeps/a/b?endpoint_override=localhost%3A9000&scheme=http"
    assert storage.inside("/what?/a/", "b") == "/what?/a/b"
    assert (storage.name_of("/what?/a/"), storage.parent_of("/what?/a/")) == ("a", "/what?")


def test_what_is_written_to_a_uri_with_a_query_is_read_from_its_folder(tmp_path: Path) -> None:
    place = f"file://{tmp_path}/sweep?use_mmap"
    storage.write(place, "report.json", b"{}")
    assert storage.read(place, "report.json") == (tmp_path / "sweep" / "report.json").read_bytes() == b"{}"


@pytest.mark.parametrize("run_dir", ["s3://bucket/run", Path("s3://bucket/run"), "file:///tmp/run"])
def test_a_run_from_python_refuses_a_uri_instead_of_making_a_folder_of_that_name(run_dir: Path | str) -> None:
    with pytest.raises(ConfigError, match=r"run_dir=.* is a URI, which only a sweep writes to; name a folder"):
        GossipTrainer(run_dir=run_dir)
