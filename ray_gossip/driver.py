"""The composition root: one run, from a config to a summary. Holds no tensor and touches no GPU."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from ray_gossip.checkpoint import write_atomically
from ray_gossip.config import Config, skipped
from ray_gossip.console import open_view, print_summary
from ray_gossip.errors import ConfigError, SwarmError
from ray_gossip.factory import NAMED, Factories
from ray_gossip.factory import check as check_factories
from ray_gossip.records import Notice, Record
from ray_gossip.resources import check_fits, this_machine
from ray_gossip.telemetry import RunLog

Summary = dict[str, Any]

# To look any other optimizer up, or to count samples for more peers than these, torch must be loaded: seconds.
_KNOWN_OPTIMIZERS = ("SGD", "Adam", "AdamW")
_FEWEST_SAMPLES = 1000  # no data set has fewer


def new_run_id() -> str:
    """Sorts by time and is unique: 20261122-081530-3fa9c1."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def train(
    config: Config,
    *,
    address: str | None,
    run_dir: Path | None,
    stream: TextIO,
    factories: Factories = NAMED,
) -> Summary:
    """Train one swarm; write everything below `run_dir`; show it on `stream`.

    Args:
        address: the Ray cluster to use; None starts a local one.
        run_dir: new folder for this run; None: `runs/<run_id>`.
        factories: the user's own model and data, where they are handed over instead of named in the config.

    Returns:
        What `summary.json` holds.

    Raises:
        UserError: mostly before anything of the swarm has been started; at the latest, before it trains.
        SwarmError: the run could not go on.
        KeyboardInterrupt: after an orderly stop; everything written so far is readable.
    """
    run_id = new_run_id()
    run_dir = run_dir or Path("runs") / run_id
    check(config, address=address, run_dir=run_dir, factories=factories)
    from ray_gossip.swarm import Swarm, cluster  # loads Ray: after what can be checked without

    started = time.time()
    summary: Summary | None = None
    try:
        with (
            open_view(stream) as view,
            cluster(config.swarm, address=address),
            RunLog(run_dir, config, run_id=run_id, started_at=started) as log,
            Swarm(config, run_id=run_id, factories=factories) as swarm,
        ):

            def follow(records: Iterable[Record | None]) -> None:
                for record in records:
                    if record is not None:
                        log.write(record)
                    view.update(log.state)

            try:
                follow(_notice(text) for text in skipped(config))
                follow(swarm.start())
                if config.engine == "gossip":
                    follow([_notice(_how_to_join(log))])
                follow(swarm.run())
                model = swarm.model()
                if model is None:
                    raise SwarmError(f"every peer was lost; {run_dir / 'events.jsonl'} says why")
                write_atomically(run_dir / "model.pt", model)
                summary = log.write_summary(model=run_dir / "model.pt")
            except BaseException as error:
                try:
                    if isinstance(error, KeyboardInterrupt):
                        follow([_notice("interrupted: stopping the peers; once more to stop at once")])
                    follow(swarm.stop())
                except BaseException:
                    swarm.give_up()
                    raise
                finally:
                    summary = log.write_summary()
                raise
    finally:
        if summary is not None:
            print_summary(summary, run_dir, stream=stream)
    return summary


def check(config: Config, *, address: str | None, run_dir: Path, factories: Factories = NAMED) -> None:
    """Raise UserError for every mistake that can be found before anything is started."""
    if (run_dir / "events.jsonl").exists():
        raise ConfigError(f"--run-dir {run_dir} already holds a run: name a new folder")
    folder = next(folder for folder in (run_dir.absolute(), *run_dir.absolute().parents) if folder.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigError(
            f"cannot write to the run's folder {run_dir}: {folder} is not a writable folder; see --run-dir"
        )
    if address is None:
        check_fits(config.swarm, [this_machine()])
    check_factories(config, factories)
    if config.optimizer.name not in _KNOWN_OPTIMIZERS:
        from ray_gossip.optimizer import check_optimizer

        check_optimizer(config.optimizer)
    if config.swarm.num_peers > _FEWEST_SAMPLES:
        from ray_gossip import data

        data.deal(data.load(config.data, factory=factories.data).train_labels, config.swarm.num_peers, seed=config.seed)


def _how_to_join(log: RunLog) -> str:
    started = next(peer.started for peer in log.state.live_peers() if peer.started)
    config = log.run_dir / "config.yaml"
    return f"from another shell, join with: ray-gossip peer {config} --initial_peer {started.multiaddrs[0]}"


def _notice(text: str) -> Notice:
    return Notice(peer_index=-1, wall_time=time.time(), text=text)
