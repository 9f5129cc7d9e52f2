"""The command line. Only this file reads the environment, prints, and decides exit codes.

0: done. 1: the run failed. 2: the user can mend it; nothing was started. 130: interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ray_gossip import __version__
from ray_gossip.errors import ConfigError, SwarmError, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ray-gossip`."""
    options = _parser().parse_args(arguments)
    try:
        return _train(options)
    except UserError as error:
        print(f"ray-gossip: {error}", file=sys.stderr)
        return 2
    except SwarmError as error:
        print(f"ray-gossip: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ray-gossip: interrupted; what was written so far is readable", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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


def _train(options: argparse.Namespace) -> int:
    from ray_gossip import config as configs

    overrides = [word for word in options.config if "=" in word]
    files = [word for word in options.config if "=" not in word]
    if len(files) > 1:
        raise ConfigError(f"two config files were given, {files[0]} and {files[1]}: keep one")
    config = configs.load(Path(files[0]) if files else None, overrides)

    from ray_gossip import driver  # loads Ray: after the config is known to be good

    summary = driver.train(
        config,
        address=os.environ.get("RAY_ADDRESS"),
        run_dir=options.run_dir,
        stream=sys.stderr if options.json else sys.stdout,
    )
    if options.json:
        print(json.dumps(summary), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
