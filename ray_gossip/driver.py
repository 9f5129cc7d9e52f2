"""The composition root: one run, from a config to a summary. Holds no tensor and touches no GPU."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ray_gossip.config import Config
from ray_gossip.console import View, open_view
from ray_gossip.errors import ConfigError, DataError
from ray_gossip.factory import NAMED, Factories
from ray_gossip.factory import check as check_factories
from ray_gossip.folders import check_writable, held
from ray_gossip.lines import print_summary
from ray_gossip.rehearsal import rehearse
from ray_gossip.resources import check_fits, this_machine
from ray_gossip.resume import Resumption, check_is_free, ended, place_of, resumption
from ray_gossip.storage import check_uri, is_uri
from ray_gossip.telemetry import RUN_FILES, Summary, clear_untrained, is_untrained
from ray_gossip.tuning.sweep import SWEEP_FILES, Sweep, holds_one

if TYPE_CHECKING:
    from ray_gossip.run import Run
    from ray_gossip.tuning.within import WithinTrial


_GETS_OVER_S = 60.0  # longest that a last fault is waited for


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
    beside: Callable[[Path], AbstractContextManager[None]] | None = None,
    within: WithinTrial | None = None,
    resume: bool = False,
    for_s: float | None = None,
) -> Summary:
    """Train one swarm; write everything below `run_dir`; show it on `stream`.

    Args:
        address: the Ray cluster to use; None starts a local one.
        run_dir: new folder for this run; None: `runs/<run_id>`.
        factories: the user's own model and data, where they are handed over instead of named in the config.
        within: the trial of a Tuner in which this run is, if it is in one.
        resume: go on with the run that is there; begin it if none is. One that has ended is left as it is.
        for_s: stop in order after so many seconds of training, when it has got over the faults on purpose; None: after
            `train.local_steps`.
        beside: asked with the run's folder, entered once all has been checked, left when the summary has been shown.

    Returns:
        What `summary.json` holds.

    Raises:
        UserError: mostly before anything of the swarm has been started; at the latest, before it trains.
        SwarmError: the run could not go on.
        KeyboardInterrupt: after an orderly stop; everything written so far is readable.
    """
    started, run_id = time.time(), new_run_id()
    run_dir = run_dir or Path("runs") / run_id
    if resume and (summary := ended(config, run_dir)) is not None:
        stream.write(f"the run in {run_dir} has ended: there is nothing to go on with\n")
        print_summary(summary, run_dir, stream=stream)
        return summary
    check(config, address=address, run_dir=run_dir, factories=factories, resume=resume)
    from ray_gossip.run import Run  # loads Ray: after what can be checked without
    from ray_gossip.swarm import cluster

    run: Run | None = None
    with nullcontext() if beside is None else beside(run_dir):
        try:
            with open_view(stream) as view, cluster([config.swarm], address=address), ExitStack() as stack:
                group = within.group(config.swarm) if within is not None else None
                stack.enter_context(held(run_dir))
                place, why_not = _place(config, run_dir)
                goes_on = resume and (run_dir / "events.jsonl").exists()
                before = resumption(config, run_dir) if goes_on else Resumption()
                before.notices.extend(why_not)
                if not goes_on:
                    clear_untrained(run_dir)
                    if place is not None:
                        check_is_free(place)
                run = Run(
                    config,
                    run_id=run_id,
                    run_dir=run_dir,
                    started_at=started,
                    group=group,
                    factories=factories,
                    checkpoints=place,
                    resumption=before,
                )
                with run:
                    summary = _trained(run, view, within, for_s)
                    if within is not None:
                        within.end(run.state, summary)
                    return summary
        finally:
            if run is not None and run.summary is not None:
                print_summary(run.summary, run_dir, stream=stream)


def _place(config: Config, run_dir: Path) -> tuple[str | None, list[str]]:
    """Where checkpoints go, or none and why.

    Raises:
        ConfigError: `checkpoint.place` is not the same on every node.
    """
    from ray_gossip.swarm import check_storage

    place = place_of(config, run_dir)
    if place is None:
        return None, []
    try:
        check_storage(place, key="checkpoint.place=")
    except ConfigError as error:
        if config.checkpoint.place is not None:
            raise
        return None, [f"no checkpoints are made: {error}"]
    return place, []


def _trained(run: Run, view: View, within: WithinTrial | None, for_s: float | None) -> Summary:
    """Let it train to the end, and show it; whatever interrupts it, its peers stop in order."""
    try:
        for _ in run.records():
            view.update(run.state)
            if within is not None:
                within.see(run.state)
            if for_s is not None and _is_over(run, for_s):
                run.stop(f"{for_s / 60:g} minutes are over: stopping the peers", show=lambda: view.update(run.state))
                assert run.summary is not None
                return run.summary
        return run.finish()
    except BaseException as error:
        why = "interrupted: stopping the peers; once more to stop at once"
        run.stop(why if isinstance(error, KeyboardInterrupt) else None, show=lambda: view.update(run.state))
        raise


def _is_over(run: Run, for_s: float) -> bool:
    began = run.state.first_step_time
    left_s = math.inf if began is None else began + for_s - time.time()
    return left_s <= 0 and (run.calm() or left_s < -_GETS_OVER_S)


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
    if is_uri(place):
        check_uri(place)
    else:
        check_writable(Path(place))
        place = str(Path(place).absolute())
    if not resume and holds_one(place):
        raise ConfigError(f"--run-dir {place} already holds a sweep: add --resume, or name a new folder")
    if not resume and not is_uri(place):
        check_overwrites_nothing(Path(place), SWEEP_FILES)
    if address is not None:
        check_cluster_address(address)
    points, notices = sweep.points()
    configs = sweep.configs(points)
    for config in configs:
        check_config(config, address=address)
    rehearse(configs, imports=address is None)
    for swarm in sweep.swarms(points) if address is None else ():
        check_fits(swarm, [this_machine()])
    from ray_gossip.tuning.session import run_sweep  # loads Ray: after what can be checked without

    return run_sweep(sweep, points, notices, address=address, place=place, resume=resume, stream=stream)


def check(
    config: Config, *, address: str | None, run_dir: Path, factories: Factories = NAMED, resume: bool = False
) -> None:
    """Raise UserError for every mistake that can be found before anything is started."""
    check_writable(run_dir)
    is_there = (run_dir / "events.jsonl").exists()
    if not (is_untrained(run_dir) or (resume and is_there)):
        if is_there:
            raise ConfigError(
                f"--run-dir {run_dir} already holds a run: go on with it by --resume, or name a new folder"
            )
        check_overwrites_nothing(run_dir, RUN_FILES)
    check_config(config, address=address, factories=factories)
    rehearse([config], factories=factories, imports=address is None)


def check_overwrites_nothing(folder: Path, names: Sequence[str]) -> None:
    """Raise ConfigError if a file of one of these names is there already: it is the user's own."""
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise ConfigError(f"--run-dir {folder} would overwrite the {there[0]} that is there: name a new folder")


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
        if (folder := config.data.missing_here()) is not None:
            raise DataError(
                f"data.name={config.data.name}: there is no {folder}; unpack it in data.root={folder.parent} as it is "
                "published, or set data.download=true"
            )
    else:
        check_cluster_address(address)
    check_factories(config, factories)
