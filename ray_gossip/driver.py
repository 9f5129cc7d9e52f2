"""The composition root: one run, from a config to a summary. Holds no tensor and touches no GPU."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from ray_gossip.checkpoint import write_atomically
from ray_gossip.config import Config, skipped
from ray_gossip.console import open_view, print_summary
from ray_gossip.errors import ConfigError, SwarmError
from ray_gossip.records import Notice, Record
from ray_gossip.swarm import Swarm, cluster
from ray_gossip.telemetry import RunLog

Summary = dict[str, Any]


def new_run_id() -> str:
    """Sorts by time and is unique: 20261122-081530-3fa9c1."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def train(config: Config, *, address: str | None, run_dir: Path | None, stream: TextIO) -> Summary:
    """Train one swarm; write everything below `run_dir`; show it on `stream`.

    Args:
        address: the Ray cluster to use; None starts a local one.
        run_dir: new folder for this run; None: `runs/<run_id>`.

    Returns:
        What `summary.json` holds.

    Raises:
        UserError: before anything of the swarm has been started.
        SwarmError: the run could not go on.
        KeyboardInterrupt: after an orderly stop; everything written so far is readable.
    """
    run_id = new_run_id()
    run_dir = run_dir or Path("runs") / run_id
    if (run_dir / "events.jsonl").exists():
        raise ConfigError(f"--run-dir {run_dir} already holds a run: name a new folder")
    started = time.time()
    with (
        cluster(config.swarm, address=address),
        RunLog(run_dir, config, run_id=run_id, started_at=started) as log,
        open_view(stream) as view,
        Swarm(config, run_id=run_id) as swarm,
    ):

        def follow(records: Iterable[Record]) -> None:
            for record in records:
                log.write(record)
                view.update(log.state)

        try:
            follow(Notice(peer_index=-1, wall_time=time.time(), text=text) for text in skipped(config))
            follow(swarm.start())
            follow(swarm.run())
            model = swarm.model()
            if model is None:
                raise SwarmError(f"every peer was lost; {run_dir / 'events.jsonl'} says why")
            write_atomically(run_dir / "model.pt", model)
        except BaseException:
            follow(swarm.stop())
            log.write_summary()
            raise
        summary = log.write_summary(model=run_dir / "model.pt")
    print_summary(summary, run_dir, stream=stream)
    return summary
