"""One sweep, from its config to its report: what `ray-gossip tune` does."""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback

from ray_gossip import storage
from ray_gossip.resources import num_that_fit
from ray_gossip.swarm import check_storage, cluster
from ray_gossip.swarm.cluster import nodes
from ray_gossip.tuning.hparams import HParamsLogger, write_columns
from ray_gossip.tuning.progress import LOG, Progress
from ray_gossip.tuning.report import Report, print_report, write_report
from ray_gossip.tuning.search import scheduler, searcher
from ray_gossip.tuning.spent import Spent
from ray_gossip.tuning.sweep import SWEEP_FILE, Point, Sweep
from ray_gossip.tuning.trial import SwarmTrial, resources

_CHECKPOINTS = 4  # of each trial
_ENDLESS = 1_000_000_000  # local steps: how many a loop of the user's own will do, it alone knows


def run_sweep(
    sweep: Sweep,
    points: list[Point],
    notices: list[str],
    *,
    address: str | None,
    place: str,
    resume: bool,
    stream: TextIO,
) -> Report:
    """Run the trials of a sweep, or those that an earlier part of it left over; write everything to `place`.

    Args:
        points, notices: what `sweep.points()` gave.
        address: the Ray cluster to use; None starts a local one.
        place: a folder, as an absolute path, or a URI.
        stream: where lines about the progress go.

    Raises:
        UserError: before any trial was started.
        KeyboardInterrupt: after an orderly stop of all trials, with the report written; the sweep can be resumed.
    """
    with _told_on(stream), _local(place) as folder, cluster(sweep.swarms(points), address=address):
        check_storage(place)
        if resume:
            tuner = tune.Tuner.restore(place, _trainable(sweep, place), restart_errored=True)
        else:
            storage.write(place, SWEEP_FILE, sweep.dump().encode())
            write_columns(folder, sweep, points)
            tuner = _tuner(sweep, points, place)
        for notice in notices:
            LOG.info(notice)
        LOG.info("%s; tensorboard --logdir %s", _room(sweep, points), shlex.quote(place))
        interrupt = _Interrupt()
        with interrupt, warnings.catch_warnings():
            # advice for scheduler=pbt: what takes time is to start a swarm, not the process that drives it
            warnings.filterwarnings("ignore", message="Consider boosting PBT performance")
            tuner.fit()
        report = write_report(sweep, place=place, folder=folder)
    print_report(report, stream=stream)
    interrupt.pass_on()
    return report


@contextlib.contextmanager
def _local(place: str) -> Iterator[Path]:
    """The folder that the driver writes to: the place itself, or one that is copied to the URI in the end."""
    if not storage.is_uri(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="ray-gossip-") as folder:
        try:
            yield Path(folder)
        finally:
            if any(Path(folder).iterdir()):
                storage.upload(Path(folder), place)


def _tuner(sweep: Sweep, points: list[Point], place: str) -> tune.Tuner:
    settings = sweep.settings.tune
    num_learned = settings.num_samples if settings.searcher == "optuna" else 0
    return tune.Tuner(
        _trainable(sweep, place),
        tune_config=tune.TuneConfig(
            search_alg=searcher(sweep, points),
            scheduler=scheduler(
                sweep, max_steps=_max_steps(sweep, points), num_at_once=min(_num_at_once(sweep, points))
            ),
            num_samples=len(points) + num_learned,
            max_concurrent_trials=settings.max_concurrent,
            time_budget_s=settings.time_budget_s,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=storage.name_of(place),
            storage_path=storage.parent_of(place),
            sync_config=tune.SyncConfig(sync_artifacts=storage.is_uri(place), sync_period=60),
            # scheduler=pbt alone saves trials; the last ones are kept, since another may be about to go on from them
            checkpoint_config=tune.CheckpointConfig(num_to_keep=_CHECKPOINTS, checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=settings.max_failures),
            callbacks=[
                Progress(sweep.settings.tune.objectives),
                *([] if storage.is_uri(place) else [Spent(place)]),
                HParamsLogger(sweep),
                CSVLoggerCallback(),
                JsonLoggerCallback(),
            ],
            verbose=0,
        ),
    )


def _trainable(sweep: Sweep, place: str) -> Any:
    modules = [str(Path(folder).absolute()) for folder in sys.path]  # "" is the folder of the command
    return tune.with_resources(
        tune.with_parameters(SwarmTrial, sweep=sweep, place=place, modules=modules),
        lambda point: resources(sweep.config(point)),
    )


def _room(sweep: Sweep, points: list[Point]) -> str:
    fit = _num_at_once(sweep, points)
    limit = sweep.settings.tune.max_concurrent
    span = f"{min(fit)}" if len(fit) == 1 else f"{min(fit)} to {max(fit)}"
    turns = sweep.settings.tune.scheduler == "pbt" and min(fit) < len(points)
    return (
        f"the cluster holds {span} trials at once"
        + (f", tune.max_concurrent={limit}" if limit else "")
        + (f"; the {len(points)} trials take turns of {sweep.settings.perturb_steps} steps" if turns else "")
    )


def _num_at_once(sweep: Sweep, points: list[Point]) -> set[int]:
    """How many trials the cluster holds at once, for each size of their swarms; one at least, if it is yet to grow."""
    return {max(1, num_that_fit(swarm, nodes())) for swarm in sweep.swarms(points)}


def _name(trial: Trial) -> str:
    """trial-007: short, because TensorBoard shows it with each curve; HParams and params.json have the values."""
    return f"trial-{int(trial.experiment_tag.partition('_')[0]):03d}"


def _max_steps(sweep: Sweep, points: list[Point]) -> int:
    if sweep.base.train.loop is not None:
        return _ENDLESS
    varied = sweep.space.get("train.local_steps")
    longest = max(varied.checked()) if varied else 0
    return max(int(longest), sweep.base.train.local_steps)


class _Interrupt:
    """Within this context, the first Ctrl-C, SIGTERM or SIGHUP lets Tune save the sweep and stop its trials in order;
    the next does what it did before.

    Tune listens to SIGINT and SIGUSR1; its way with SIGINT is switched off (TUNE_DISABLE_SIGINT_HANDLER), because it
    would forget the other two.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # until Tune listens
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._interrupt)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pass_on(self) -> None:
        """Now that all is written, do what the signal asked for."""
        if self._number is not None:
            signal.raise_signal(self._number)

    def _interrupt(self, number: int, frame: Any) -> None:
        if self._number is None and callable(signal.getsignal(signal.SIGUSR1)):
            self._number = number
            LOG.info("interrupted: stopping the trials; once more to stop at once")
            signal.raise_signal(signal.SIGUSR1)
        else:
            self.__exit__()
            signal.raise_signal(number)


@contextlib.contextmanager
def _told_on(stream: TextIO) -> Iterator[None]:
    """Send the sweep's lines to this stream, and keep those of Ray to what went wrong."""
    started = time.monotonic()
    handler = logging.StreamHandler(stream)
    handler.format = lambda record: f"{time.monotonic() - started:6.1f} s  {record.getMessage()}"  # type: ignore[method-assign]
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
