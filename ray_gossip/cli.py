"""The command line. It reads the environment, prints, and decides exit codes, so that nothing below has to.

0: done. 1: the run failed. 2: the user can mend it; nothing was started. 128 + n: ended by signal n, after an orderly
stop; so 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ray_gossip.arguments import join_command, overrides_of, parse
from ray_gossip.errors import ConfigError, SwarmError, UserError
from ray_gossip.screen import flush_or_drop, screen
from ray_gossip.stopping import OrderlyStop
from ray_gossip.storage import is_uri

if TYPE_CHECKING:
    from ray_gossip.config import Config

# Ray reads these when it is imported. What the user has set stays.
_RAY_SETTINGS = {
    # Ray prints a paragraph for each killed actor; the view says it in a line
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^A worker died or was killed while executing a task",
    # a SIGTERM while a local Ray starts would otherwise take 30 s
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    # else every process of a local Ray yields to what else the machine does, and a trial to another trial's peers
    "RAY_worker_niceness": "0",
    # else a local Ray first starts a process for each processor, which no peer uses: peers start 3 s later
    "RAY_prestart_worker_first_driver": "0",
}
_WITHOUT_END = 1_000_000_000  # local steps
_MOST_PER_PEER = 3600
_RATE = 125.0  # faults in an hour, as what is known of such storms was measured at
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # of the three, two are named; the third would write HParams of its own
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours knows SIGTERM too
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a line of ours says it
    "TUNE_FORCE_TRIAL_CLEANUP_S": "60",  # a trial that does not end is killed
    "RAY_AIR_NEW_OUTPUT": "0",  # else it prints tables, whatever its verbosity
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ray-gossip`."""
    try:
        return _run(arguments)
    finally:
        for stream in (sys.stdout, sys.stderr):
            flush_or_drop(stream)


def _run(arguments: Sequence[str] | None) -> int:
    options, stop = parse(arguments), OrderlyStop()
    try:
        with stop:
            return _COMMANDS[options.command](options, stop)
    except UserError as error:
        print(f"ray-gossip: {error}", file=screen(sys.stderr))
        return 2
    except SwarmError as error:
        print(f"ray-gossip: {error}", file=screen(sys.stderr))
        return 1
    except KeyboardInterrupt:
        print(f"ray-gossip: stopped by {stop.signal.name}", file=screen(sys.stderr))
        return 128 + stop.signal


def _load_config(words: Sequence[str]) -> Config:
    from ray_gossip import config as configs

    file, overrides = _split(words)
    _look_here_for_modules(file)
    return configs.load(file, overrides)


def _look_here_for_modules(file: Path | None = None) -> None:
    """For model.factory, data.factory and train.loop, as `python -m` does; last of all, beside the config."""
    try:
        here = str(Path.cwd())
    except FileNotFoundError:
        raise ConfigError("the folder in which the command is given is not there any more: change to another") from None
    if "" not in sys.path and here not in sys.path:
        sys.path.insert(0, here)
    if file is not None and (beside := str(file.absolute().parent)) not in sys.path:
        sys.path.append(beside)


def _split(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The config file among the words of a command, and the overrides. A file that has = in its name is ./a=b.yaml."""
    files = [word for word in words if "=" not in word or "/" in word.partition("=")[0]]
    if len(files) > 1:
        raise ConfigError(f"{files[0]} and {files[1]}: name one config file; overrides are written key=value")
    return (Path(files[0]) if files else None), [word for word in words if word not in files]


def _set_environment(settings: Mapping[str, str]) -> None:
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _check_outlives_job(place: str | Path | None) -> None:
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not (place and (is_uri(place) or Path(place).is_absolute())):
        raise ConfigError("a job's own folder is deleted after it: name a folder that stays, as an absolute --run-dir")


def _address() -> str | None:
    address = os.environ.get("RAY_ADDRESS", "local")
    return None if address in ("", "local") else address


def _stream(options: argparse.Namespace) -> TextIO:
    """Where a person looks: with --json, standard output is for the last line alone."""
    return screen(sys.stderr if options.json else sys.stdout)


def _print_json(options: argparse.Namespace, outcome: Mapping[str, Any]) -> int:
    if options.json:
        print(json.dumps(outcome), file=screen(sys.stdout), flush=True)
    return 0


def _train(options: argparse.Namespace, stop: OrderlyStop) -> int:
    return _trained(_load_config(options.config), options, stop)


def _chaos(options: argparse.Namespace, stop: OrderlyStop) -> int:
    config = _load_config(options.config)
    words = [] if config.train.loop else [f"train.local_steps={_WITHOUT_END}"]
    if options.rate is not None or not config.faults.are_asked_for:
        rate, most = _RATE if options.rate is None else options.rate, _MOST_PER_PEER * config.swarm.num_peers
        if rate > most:
            raise ConfigError(f"--rate {rate:g} is above {most:g}, a fault a second for each of the peers; lower it")
        words.append(f"faults.per_peer_hour={rate / config.swarm.num_peers}")
    return _trained(_load_config([*options.config, *words]), options, stop, for_s=60 * options.minutes)


def _trained(config: Config, options: argparse.Namespace, stop: OrderlyStop, *, for_s: float | None = None) -> int:
    if options.resume and options.run_dir is None:
        raise ConfigError("--resume goes on with the run in --run-dir, or begins it there: name the folder")
    _check_outlives_job(options.run_dir)
    stop.limit_s = config.swarm.stop_s + 4.0  # Ray itself takes 1 to 2 s
    _set_environment(_RAY_SETTINGS)

    from ray_gossip import driver  # loads rich, numpy: after the config is known to be good
    from ray_gossip.board import board

    stream = _stream(options)
    summary = driver.train(
        config,
        address=_address(),
        run_dir=options.run_dir,
        resume=options.resume,
        for_s=for_s,
        stream=stream,
        beside=partial(board, stream=stream) if options.tensorboard else None,
    )
    return _print_json(options, summary)


def _tune(options: argparse.Namespace, stop: OrderlyStop) -> int:
    from ray_gossip.tuning import sweep as sweeps

    _look_here_for_modules(_split(options.config)[0])
    place: str | None = options.run_dir
    _check_outlives_job(place)
    sweep = sweeps.load_earlier(place) if options.resume else None
    if sweep is None or options.config:
        asked_for = sweeps.load(*_split(options.config))
        if sweep is not None and asked_for != sweep:
            raise ConfigError(f"--resume goes on with {place}/sweep.yaml; this is another sweep: leave it out")
        sweep = asked_for
    stop.limit_s = 30.0  # of which Tune gives its trials 15
    _set_environment(_RAY_SETTINGS | _TUNE_SETTINGS)

    from ray_gossip import driver  # loads rich, numpy: after the config is known to be good

    report = driver.tune(
        sweep,
        address=_address(),
        place=place,
        resume=options.resume,
        stream=_stream(options),
    )
    return _print_json(options, report)


def _peer(options: argparse.Namespace, stop: OrderlyStop) -> int:
    config = _load_config([*options.config, *overrides_of(options)])
    stop.limit_s = config.swarm.stop_s + 4.0

    from ray_gossip import standalone  # loads torch and hivemind: after the config is known to be good

    summary = standalone.run_peer(
        config,
        host_maddrs=options.host_maddr,
        announce_maddrs=options.announce_maddr,
        initial_peers=options.initial_peer,
        identity_path=options.identity_path,
        secret_file=options.secret_file,
        run_dir=options.run_dir,
        stream=_stream(options),
        join_command=join_command(options),
    )
    return _print_json(options, summary)


def _prepare_data(options: argparse.Namespace, _: OrderlyStop) -> int:
    config = _load_config(options.config)
    from rich.console import Console
    from rich.progress import Progress

    from ray_gossip import data  # loads torch: after the config is known to be good

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("decoding", total=None)
        dataset = data.load(config.data, on_progress=lambda done, total: bar.update(task, completed=done, total=total))
    if dataset.has_images:
        channels, height, width = dataset.in_shape
        kind, shape = "images", f"{height}x{width} in {channels} channel{'s' if channels > 1 else ''}"
    else:
        kind, shape = "samples", f"shape {list(dataset.in_shape)}"
    print(
        f"{config.data.name or config.data.factory} is ready: {dataset.num_train:,} training and "
        f"{len(dataset.test_labels):,} test {kind}, {shape}, {dataset.labels_are}",
        file=screen(sys.stdout),
    )
    return 0


def _init(options: argparse.Namespace, _: OrderlyStop) -> int:
    from ray_gossip.starter import FILES, write_starter

    folder: Path = options.folder
    write_starter(folder)
    change = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    print(f"wrote {' and '.join(str(folder / name) for name in FILES)}; next: {change}ray-gossip train config.yaml")
    return 0


def _keys(options: argparse.Namespace, _: OrderlyStop) -> int:
    from ray_gossip.config.catalogue import catalogue
    from ray_gossip.tuning.settings import SweepConfig

    print(catalogue(SweepConfig, options.prefix), file=screen(sys.stdout))
    return 0


def _status(options: argparse.Namespace, _: OrderlyStop) -> int:
    from ray_gossip import status

    run_dir = status.latest_run(options.run_dir)
    if options.json:
        found = status.replay(run_dir)
        print(status.dump_json(status.as_json(found)), file=screen(sys.stdout))
        return status.code_of(found)
    return status.show(run_dir, screen(sys.stdout), watch=options.watch)


def _why(options: argparse.Namespace, _: OrderlyStop) -> int:
    from ray_gossip import status

    run_dir = status.latest_run(options.run_dir)
    return status.explain(run_dir, screen(sys.stdout), peer=options.peer, round=options.round)


def _checkpoints(options: argparse.Namespace, _: OrderlyStop) -> int:
    from ray_gossip import status  # finds the run

    run_dir = status.latest_run(options.run_dir)
    if options.export is not None:
        return status.export_checkpoint(run_dir, options.export, mark=options.checkpoint, stream=screen(sys.stdout))
    return status.show_checkpoints(run_dir, screen(sys.stdout))


_COMMANDS = {
    "chaos": _chaos,
    "checkpoints": _checkpoints,
    "train": _train,
    "tune": _tune,
    "peer": _peer,
    "data": _prepare_data,
    "init": _init,
    "keys": _keys,
    "status": _status,
    "why": _why,
}


if __name__ == "__main__":
    sys.exit(main())
