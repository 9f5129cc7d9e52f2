"""The command line. It reads the environment, prints, and decides exit codes, so that nothing below has to.

0: done. 1: the run failed. 2: the user can mend it; nothing was started. 128 + n: ended by signal n, after an orderly
stop; so 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ray_gossip import __version__
from ray_gossip.errors import ConfigError, SwarmError, UserError
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
}
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
    options, stop = _parse(arguments), _OrderlyStop()
    try:
        with stop:
            return _COMMANDS[options.command](options, stop)
    except UserError as error:
        print(f"ray-gossip: {error}", file=sys.stderr)
        return 2
    except SwarmError as error:
        print(f"ray-gossip: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"ray-gossip: stopped by {stop.signal.name}", file=sys.stderr)
        return 128 + stop.signal


def _load_config(words: Sequence[str]) -> Config:
    from ray_gossip import config as configs

    _look_here_for_modules()
    return configs.load(*_split(words))


def _look_here_for_modules() -> None:
    """For model.factory and data.factory, as `python -m` does."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _split(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The config file among the words of a command, and the overrides."""
    files = [word for word in words if "=" not in word or Path(word).is_file()]
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


def _train(options: argparse.Namespace, stop: _OrderlyStop) -> int:
    config = _load_config(options.config)
    _check_outlives_job(options.run_dir)
    stop.limit_s = config.swarm.stop_s + 4.0  # Ray itself takes 1 to 2 s
    _set_environment(_RAY_SETTINGS)

    from ray_gossip import driver  # loads rich, numpy: after the config is known to be good

    summary = driver.train(
        config,
        address=_address(),
        run_dir=options.run_dir,
        stream=sys.stderr if options.json else sys.stdout,
    )
    if options.json:
        print(json.dumps(summary), flush=True)
    return 0


def _tune(options: argparse.Namespace, stop: _OrderlyStop) -> int:
    from ray_gossip.tuning import sweep as sweeps

    _look_here_for_modules()
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
        stream=sys.stderr if options.json else sys.stdout,
    )
    if options.json:
        print(json.dumps(report), flush=True)
    return 0


def _peer(options: argparse.Namespace, stop: _OrderlyStop) -> int:
    config = _load_config([*options.config, *_overrides_of(options)])
    stop.limit_s = config.swarm.stop_s + 4.0
    stream = sys.stderr if options.json else sys.stdout

    from ray_gossip import standalone  # loads torch and hivemind: after the config is known to be good

    summary = standalone.run_peer(
        config,
        host_maddrs=options.host_maddr,
        announce_maddrs=options.announce_maddr,
        initial_peers=options.initial_peer,
        identity_path=options.identity_path,
        run_dir=options.run_dir,
        stream=stream,
        join_command=_join_command(options),
    )
    if options.json:
        print(json.dumps(summary), flush=True)
    return 0


def _overrides_of(options: argparse.Namespace) -> list[str]:
    """The options that stand for keys of the config, as overrides."""
    given = {key: getattr(options, key.replace(".", "_")) for key in _PEER_KEYS}
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def _join_command(options: argparse.Namespace) -> str:
    """How another peer of the same swarm is started; the address is missing at its end."""
    words = [*options.config, *_overrides_of(options)]
    return " ".join(["ray-gossip peer", *map(shlex.quote, words), "--initial_peer"])


def _prepare_data(options: argparse.Namespace, _: _OrderlyStop) -> int:
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
        f"{len(dataset.test_labels):,} test {kind}, {shape}, {dataset.num_classes} classes"
    )
    return 0


def _folder(word: str) -> Path:
    if is_uri(word):
        raise argparse.ArgumentTypeError(f"{word} is a URI, which only a sweep writes to; name a folder")
    return Path(word)


class _Parser(argparse.ArgumentParser):
    """A mistake is one line here too."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Words of the config may stand before and after options, which argparse alone does not know."""
    parser = _parser()
    options, words = parser.parse_known_args(arguments)
    unknown = [word for word in words if word.startswith("-")]
    if unknown:
        parser.error(f"unknown option {unknown[0]}")
    options.config += words
    return options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ray-gossip",
        description="Train one network on many GPUs by gossip: no parameter server, no global barrier.",
    )
    parser.add_argument("--version", action="version", version=f"ray-gossip {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train one swarm",
        description="Train one swarm on the Ray cluster that RAY_ADDRESS names, else on a local one.",
        epilog="example: ray-gossip train configs/quickstart.yaml gossip.group_size=4 swarm.num_peers=8",
    )
    train.add_argument(
        "config",
        nargs="*",
        metavar="CONFIG.yaml | key=value",
        help="one config file, and overrides of its keys",
    )
    train.add_argument("--run-dir", type=_folder, help="new folder for the results (default: runs/<run id>)")
    train.add_argument("--json", action="store_true", help="last line of standard output: summary.json on one line")
    tune = commands.add_parser(
        "tune",
        help="sweep over keys of the config",
        description="Run a swarm for each point of the config's space: section, on the Ray cluster that RAY_ADDRESS "
        "names, else on a local one.",
        epilog="example: ray-gossip tune configs/tune_digits.yaml tune.num_samples=20 --run-dir runs/sweep",
    )
    tune.add_argument(
        "config",
        nargs="*",
        metavar="CONFIG.yaml | key=value",
        help="one config file, and overrides of its keys; a key that is overridden is not swept",
    )
    tune.add_argument("--run-dir", help="folder for the results, or a URI (default: runs/sweep-<id>)")
    tune.add_argument("--resume", action="store_true", help="go on with the sweep in --run-dir")
    tune.add_argument("--json", action="store_true", help="last line of standard output: report.json on one line")
    _add_peer(commands)
    data = commands.add_parser("data", help="data sets").add_subparsers(dest="action", required=True, metavar="ACTION")
    prepare = data.add_parser(
        "prepare",
        help="check a data set and decode it, ahead of time",
        description="Check the data set of a config, fetch it with data.download=true, and decode it where it needs "
        "to be, so that no peer has to wait for that. On every node.",
        epilog="example: ray-gossip data prepare configs/tiny_imagenet.yaml data.root=/data",
    )
    prepare.add_argument("config", nargs="*", metavar="CONFIG.yaml | key=value", help="as for train")
    return parser


def _add_peer(commands: Any) -> None:
    peer = commands.add_parser(
        "peer",
        help="run one peer by itself, without Ray",
        description="Run one peer in this process: the first of a new swarm, or one that joins a running swarm, which "
        "may run under Ray. Prints its address and the command with which others join it.",
        epilog="example: ray-gossip peer configs/cifar10.yaml --host_maddr /ip4/0.0.0.0/tcp/4011 --gossip_group_size 8",
    )
    peer.add_argument("config", nargs="*", metavar="CONFIG.yaml | key=value", help="as for train")
    for names, multiple, help in (
        (("--initial_peer",), True, "multiaddr of a peer of the swarm to join; none: found a new swarm"),
        (("--host_maddr",), True, "multiaddr to listen on (default: a free TCP port of 127.0.0.1)"),
        (("--announce_maddr",), True, "multiaddr under which others reach this peer, behind a NAT or in a container"),
        (("--identity_path",), False, "file with the key of its peer id, made if missing: its address stays the same"),
    ):
        dashed = names[0].replace("_", "-")
        if multiple:
            peer.add_argument(*names, dashed, action="append", default=[], metavar="MULTIADDR", help=help)
        else:
            peer.add_argument(*names, dashed, type=Path, metavar="FILE", help=help)
    for key in _PEER_KEYS:
        option = f"--{key.replace('.', '_')}"
        peer.add_argument(option, option.replace("_", "-"), metavar="VALUE", help=f"the same as {key}=VALUE")
    peer.add_argument("--run-dir", type=Path, help="new folder for the results (default: runs/<run id>-peer-<index>)")
    peer.add_argument("--json", action="store_true", help="last line of standard output: summary.json on one line")


# Those that one gives to a single peer have options of their own; all others are given as key=value.
_PEER_KEYS = (
    "gossip.group_size",
    "gossip.min_group_size",
    "gossip.alpha",
    "gossip.steps",
    "gossip.seconds",
    "gossip.schedule",
    "data.root",
)

_COMMANDS = {"train": _train, "tune": _tune, "peer": _peer, "data": _prepare_data}


class _OrderlyStop:
    """Within this context, Ctrl-C, SIGTERM (`kill`, `ray job stop`, `timeout`) and SIGHUP (a closed terminal) raise
    KeyboardInterrupt in the main thread. A signal that is ignored, as under nohup, stays so.

    If the stop itself hangs, because Ray's processes got the signal too, the process ends `limit_s` after it.
    """

    limit_s = 14.0
    signal = signal.SIGINT  # the latest that asked for a stop

    def __enter__(self) -> _OrderlyStop:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        self._last_resorts: list[threading.Timer] = []
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for timer in self._last_resorts:
            timer.cancel()

    def _stop(self, number: int, frame: Any) -> NoReturn:
        timer = threading.Timer(self.limit_s, os._exit, [128 + number])
        timer.daemon = True
        timer.start()
        self._last_resorts.append(timer)
        self.signal = signal.Signals(number)
        raise KeyboardInterrupt  # no class of our own: Ray's C++ would raise a plain one in its stead


if __name__ == "__main__":
    sys.exit(main())
