"""The composition root: one run, from a config to a summary. Holds no tensor and touches no GPU."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from ray_gossip.config import Config
from ray_gossip.console import open_view, print_summary
from ray_gossip.errors import ConfigError
from ray_gossip.factory import NAMED, Factories
from ray_gossip.factory import check as check_factories
from ray_gossip.resources import check_fits, this_machine
from ray_gossip.storage import is_uri
from ray_gossip.telemetry import RUN_FILES, Summary
from ray_gossip.tuning.sweep import SWEEP_FILES, Sweep, holds_one

# To look any other optimizer up, or to count samples for more peers than these, torch must be loaded: seconds.
_KNOWN_OPTIMIZERS = ("SGD", "Adam", "AdamW")
_FEWEST_SAMPLES = 1000  # no data set has fewer
_PROBE_BYTES = 65_536  # more than a run's first files take


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
    from ray_gossip.run import Run  # loads Ray: after what can be checked without
    from ray_gossip.swarm import cluster

    started = time.time()
    run: Run | None = None
    try:
        with (
            open_view(stream) as view,
            cluster([config.swarm], address=address),
            Run(config, run_id=run_id, run_dir=run_dir, started_at=started, factories=factories) as run,
        ):
            try:
                for _ in run.records():
                    view.update(run.state)
                return run.finish()
            except BaseException as error:
                why = "interrupted: stopping the peers; once more to stop at once"
                run.stop(why if isinstance(error, KeyboardInterrupt) else None, show=lambda: view.update(run.state))
                raise
    finally:
        if run is not None and run.summary is not None:
            print_summary(run.summary, run_dir, stream=stream)


def tune(sweep: Sweep, *, address: str | None, place: str | None, resume: bool, stream: TextIO) -> dict[str, Any]:
    """Train a swarm for each point of a sweep; write everything to `place`; tell on `stream` how it goes.

    Args:
        address: as for `train`.
        place: a folder, or a URI such as s3://bucket/name; None: `runs/sweep-<id>`.
        resume: go on with the sweep that is there.

    Returns:
        What `report.json` holds.

    Raises:
        UserError: before any trial has been started.
        KeyboardInterrupt: after an orderly stop; the sweep can be resumed.
    """
    place = place or f"runs/sweep-{new_run_id()}"
    if not is_uri(place):
        place = str(Path(place).absolute())
        check_writable(Path(place))
    if not resume and holds_one(place):
        raise ConfigError(f"--run-dir {place} already holds a sweep: add --resume, or name a new folder")
    if not resume and not is_uri(place):
        check_overwrites_nothing(Path(place), SWEEP_FILES)
    if address is not None:
        check_cluster_address(address)
    points, notices = sweep.points()
    for point in points:
        check_config(sweep.config(point), address=address)
    for swarm in sweep.swarms(points) if address is None else ():
        check_fits(swarm, [this_machine()])
    from ray_gossip.tuning.session import run_sweep  # loads Ray: after what can be checked without

    return run_sweep(sweep, points, notices, address=address, place=place, resume=resume, stream=stream)


def check(config: Config, *, address: str | None, run_dir: Path, factories: Factories = NAMED) -> None:
    """Raise UserError for every mistake that can be found before anything is started."""
    if (run_dir / "events.jsonl").exists():
        raise ConfigError(f"--run-dir {run_dir} already holds a run: name a new folder")
    check_overwrites_nothing(run_dir, RUN_FILES)
    check_writable(run_dir)
    check_config(config, address=address, factories=factories)


def check_overwrites_nothing(folder: Path, names: Sequence[str]) -> None:
    """Raise ConfigError if a file of one of these names is there already: it is the user's own."""
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise ConfigError(f"--run-dir {folder} would overwrite the {there[0]} that is there: name a new folder")


def check_writable(run_dir: Path) -> None:
    """Raise ConfigError unless this folder can be made and written to; leaves nothing of the attempt."""
    run_dir = run_dir.absolute()
    missing = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run_dir, buffering=0) as probe:
            probe.write(bytes(_PROBE_BYTES))
    except OSError as error:
        raise ConfigError(
            f"cannot write to the run's folder {run_dir}: {error.strerror}; name another with --run-dir"
        ) from error
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_cluster_address(address: str) -> None:
    """Raise ConfigError where no Ray cluster can be: Ray itself would look for the machine, and say no more."""
    if address.startswith("ray://"):
        raise ConfigError(f"cannot drive a swarm through Ray Client ({address}): use ray job submit")
    if "://" in address:
        raise ConfigError(
            f"RAY_ADDRESS={address} is where jobs are submitted (ray job submit --address {address} -- ...); to train "
            "from here, name the cluster itself: RAY_ADDRESS=auto on one of its nodes, else its head, HOST:6379"
        )


def check_config(config: Config, *, address: str | None, factories: Factories = NAMED) -> None:
    """Raise UserError for what is wrong with a config whatever folder it writes to."""
    if address is None:
        check_fits(config.swarm, [this_machine()])
    else:
        check_cluster_address(address)
    check_factories(config, factories)
    if config.optimizer.name not in _KNOWN_OPTIMIZERS:
        from ray_gossip.optimizer import check_optimizer

        check_optimizer(config.optimizer)
    if config.swarm.num_peers > _FEWEST_SAMPLES:
        from ray_gossip import data

        data.deal(data.load(config.data, factory=factories.data).train_labels, config.swarm.num_peers, seed=config.seed)
