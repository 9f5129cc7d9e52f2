"""What is left of an earlier run in a folder, for the next one to have it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from ray_gossip.records import Evaluation, PeerFinished, Progress, Reported, RoundReport

_OF_TRAINING = {kind.__name__ for kind in (Progress, Evaluation, Reported, RoundReport, PeerFinished)}
_OF_A_RUN = ("config.yaml", "events.jsonl", "summary.json", "model.pt", "swarm", "peer-*")
_MOST_BYTES = 1_000_000  # of events.jsonl: of a run that never trained, a few lines, with a traceback each


def is_untrained(run_dir: Path) -> bool:
    """There is a run that has ended without a single step, such as for a mistake in a loop. False for one that trained,
    that goes on, or that cannot be read."""
    events, summary = run_dir / "events.jsonl", run_dir / "summary.json"
    if not events.exists() or not summary.exists() or events.stat().st_size > _MOST_BYTES:
        return False
    try:
        kinds = {json.loads(line)["event"] for line in events.read_bytes().splitlines()}
    except (ValueError, KeyError, TypeError):
        return False
    return not (kinds & _OF_TRAINING or (run_dir / "model.pt").exists())


def clear_untrained(run_dir: Path) -> None:
    """Remove the files of such a run, and nothing else; where there is none, nothing."""
    if not is_untrained(run_dir):
        return
    for folder in (run_dir / "swarm", *run_dir.glob("peer-[0-9]*")):
        for curves in folder.glob("events.out.tfevents.*"):
            curves.unlink()
        with contextlib.suppress(OSError):  # it is none, or holds something of somebody else's
            folder.rmdir()
    for name in ("config.yaml", "summary.json", "events.jsonl"):  # the last one is what says that there was a run
        (run_dir / name).unlink(missing_ok=True)


def set_earlier_attempt_aside(run_dir: Path) -> None:
    """Move what an attempt that failed or was interrupted has left into a folder of its own, `attempt-1`, ..."""
    earlier = [path for pattern in _OF_A_RUN for path in run_dir.glob(pattern)]
    if earlier:
        aside = run_dir / f"attempt-{1 + sum(1 for _ in run_dir.glob('attempt-*'))}"
        aside.mkdir()
        for path in earlier:
            path.rename(aside / path.name)
