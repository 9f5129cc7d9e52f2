"""The command line. Only this file reads the environment, prints, and decides exit codes.

0: done. 1: the run failed. 2: the user can mend it; nothing was started. 128 + n: ended by signal n, after an orderly
stop; so 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ray_gossip import __version__
from ray_gossip.errors import ConfigError, SwarmError, UserError

# Ray reads these when it is imported. What the user has set stays.
_RAY_SETTINGS = {
    # Ray prints a paragraph for each killed actor; the view says it in a line
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^A worker died or was killed while executing a task",
    # a SIGTERM while a local Ray starts would otherwise take 30 s
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ray-gossip`."""
    options = _parser().parse_args(arguments)
    try:
        with _orderly_termination():
            return _train(options)
    except UserError as error:
        print(f"ray-gossip: {error}", file=sys.stderr)
        return 2
    except SwarmError as error:
        print(f"ray-gossip: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, _Terminated) else signal.SIGINT
        print(f"ray-gossip: stopped by {signal.Signals(number).name}", file=sys.stderr)
        return 128 + number


def _train(options: argparse.Namespace) -> int:
    from ray_gossip import config as configs

    files = [word for word in options.config if "=" not in word or Path(word).is_file()]
    overrides = [word for word in options.config if word not in files]
    if len(files) > 1:
        raise ConfigError(f"{files[0]} and {files[1]}: name one config file; overrides are written key=value")
    config = configs.load(Path(files[0]) if files else None, overrides)

    for name, value in _RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS", "local")

    from ray_gossip import driver  # loads rich, numpy: after the config is known to be good

    summary = driver.train(
        config,
        address=None if address in ("", "local") else address,
        run_dir=options.run_dir,
        stream=sys.stderr if options.json else sys.stdout,
    )
    if options.json:
        print(json.dumps(summary), flush=True)
    return 0


class _Parser(argparse.ArgumentParser):
    """A mistake is one line here too."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


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
    train.add_argument("--run-dir", type=Path, help="new folder for the results (default: runs/<run id>)")
    train.add_argument("--json", action="store_true", help="last line of standard output: summary.json on one line")
    return parser


class _Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C that asks for an orderly stop."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def _orderly_termination() -> Iterator[None]:
    """SIGTERM (`ray job stop`, `kill`) and SIGHUP (a closed terminal) stop the run as Ctrl-C does.

    Where they are ignored, as under nohup, they stay so.
    """

    def terminate(number: int, frame: Any) -> NoReturn:
        raise _Terminated(number)

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
