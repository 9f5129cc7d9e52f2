"""What may be typed: commands, their options and their help."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ray_gossip import __version__
from ray_gossip.config import Config, meanings
from ray_gossip.errors import one_line
from ray_gossip.storage import is_uri

# All others are given as key=value.
_PEER_KEYS = [key for key, meaning in meanings(Config).items() if meaning.option]


def _place(word: str) -> str:
    if not word:
        raise argparse.ArgumentTypeError("it is empty; name a folder")
    return word


def _folder(word: str) -> Path:
    _place(word)
    if is_uri(word):
        raise argparse.ArgumentTypeError(f"{word} is a URI, which only a sweep writes to; name a folder")
    return Path(word)


def _not_negative(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{word} is no number of 0 or more")
    return value


def _positive(word: str) -> float:
    if (value := _not_negative(word)) == 0:
        raise argparse.ArgumentTypeError(f"{word} is no number above 0")
    return value


class _Parser(argparse.ArgumentParser):
    """A mistake is one line here too."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{one_line(f'{self.prog}: {message}; see {self.prog} --help')}\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Words of the config may stand before and after options, which argparse alone does not know."""
    parser, commands = _parser()
    options, words = parser.parse_known_args(arguments)
    unknown = [word for word in words if word.startswith("-")]
    if unknown:
        known = re.findall(r"(?<!\w)--[a-z][\w-]*", commands[options.command].format_help())
        close = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        parser.error(f"unknown option {unknown[0]}" + (f"; did you mean {close[0]}?" if close else ""))
    if words and options.command in ("init", "keys", "status", "why", "checkpoints"):
        parser.error(f"{options.command} takes no {words[0]}")
    options.config += words
    return options


def _parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The whole, and what there is by command."""
    parser = _Parser(
        prog="ray-gossip",
        description="Train one network on many GPUs by gossip: no parameter server, no global barrier.",
    )
    parser.add_argument("--version", action="version", version=f"ray-gossip {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
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
    tune.add_argument("--run-dir", type=_place, help="folder for the results, or a URI (default: runs/sweep-<id>)")
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
    init = commands.add_parser(
        "init",
        help="write a config and a training loop of your own, to begin with",
        description="Write config.yaml and train.py: a training loop that runs as it is, for you to change.",
        epilog="example: ray-gossip init digits && cd digits && ray-gossip train config.yaml",
    )
    folder = "where (default: this folder)"
    init.add_argument("folder", nargs="?", type=_folder, default=Path(), metavar="FOLDER", help=folder)
    init.set_defaults(config=[])
    keys = commands.add_parser(
        "keys",
        help="list the keys of a config",
        description="List the keys of a config: what each is for, its values, its default, and when to change it.",
        epilog="example: ray-gossip keys gossip",
    )
    keys.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="those that begin so, such as gossip")
    keys.set_defaults(config=[])
    _add_status(commands)
    return parser, commands.choices


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train one swarm",
        description="Train one swarm on the Ray cluster that RAY_ADDRESS names, else on a local one.",
        epilog="example: ray-gossip train configs/quickstart.yaml gossip.group_size=4 swarm.num_peers=8",
    )
    chaos = commands.add_parser(
        "chaos",
        help="train one swarm while its parts are killed and stopped",
        description="Train as `train` does, for some minutes, while its processes are killed, stopped and cut off by "
        "chance; then tell how it got over that.",
        epilog="example: ray-gossip chaos configs/quickstart.yaml --rate 125 --minutes 5",
    )
    for command in (train, chaos):
        command.add_argument(
            "config",
            nargs="*",
            metavar="CONFIG.yaml | key=value",
            help="one config file, and overrides of its keys",
        )
        command.add_argument("--run-dir", type=_folder, help="new folder for the results (default: runs/<run id>)")
        resume = "go on with the run in --run-dir, from its latest checkpoint; where there is none, begin it"
        command.add_argument("--resume", action="store_true", help=resume)
        command.add_argument(
            "--json", action="store_true", help="last line of standard output: summary.json on one line"
        )
        command.add_argument("--tensorboard", action="store_true", help="start TensorBoard beside it, and say where")
    rate = "faults an hour, of the whole swarm (default: what faults: in the config says, else 125); 0: none"
    chaos.add_argument("--rate", type=_not_negative, metavar="N", help=rate)
    minutes = "how long to train, whatever train.local_steps says (default: 10)"
    chaos.add_argument("--minutes", type=_positive, default=10.0, metavar="M", help=minutes)


def _add_status(commands: Any) -> None:
    codes = "exit codes: 0 it is well, 2 there is no run, 3 something is wrong, 4 its driver writes no more"
    status = commands.add_parser(
        "status",
        help="how a run stands, from another shell",
        description="Show the table of a run, from its folder, while it goes on or afterwards.",
        epilog=codes,
    )
    why = commands.add_parser(
        "why",
        help="why rounds did not average",
        description="Show the latest rounds of a run that did not average, or not whole, with their causes; who mixed "
        "with whom; and what to turn.",
        epilog=codes,
    )
    checkpoints = commands.add_parser(
        "checkpoints",
        help="list the checkpoints of a run, and read them through",
        description="List the checkpoints of a run, the latest first, and whether --resume can go on from each: all "
        "files are read. With --export, write the merged model of one of them instead.",
        epilog="exit codes: 0 the latest is sound, 2 there is no run, 3 there is none, or the latest is damaged",
    )
    for command in (status, why, checkpoints):
        where = "folder of a run, or of several: the latest (default: runs)"
        command.add_argument("run_dir", nargs="?", type=_folder, default=Path("runs"), metavar="RUN_DIR", help=where)
        command.set_defaults(config=[])
    status.add_argument("--watch", action="store_true", help="again each second, until it has ended")
    status.add_argument("--json", action="store_true", help="one JSON object instead")
    why.add_argument("--peer", type=int, metavar="N", help="of this peer alone")
    export = "the mean of its peers as a state_dict, into a new file that ends in .pt or .safetensors"
    checkpoints.add_argument("--export", type=Path, metavar="FILE", help=export)
    which = "with --export: this one (default: the latest that is sound)"
    checkpoints.add_argument("--checkpoint", type=int, metavar="N", help=which)
    why.add_argument("--round", type=int, metavar="R", help="of this round alone, also where it averaged")


def _add_peer(commands: Any) -> None:
    peer = commands.add_parser(
        "peer",
        help="run one peer by itself, without Ray",
        description="Run one peer in this process: the first of a new swarm, or one that joins a running swarm, which "
        "may run under Ray. Prints its address and the command with which others join it.",
        epilog="example: ray-gossip peer configs/cifar10.yaml --host_maddr /ip4/0.0.0.0/tcp/4011 --gossip_group_size 8",
    )
    peer.add_argument("config", nargs="*", metavar="CONFIG.yaml | key=value", help="as for train")
    for option, help in (
        ("--initial_peer", "multiaddr of a peer of the swarm to join; none: found a new swarm"),
        ("--host_maddr", "multiaddr to listen on (default: a free TCP port of 127.0.0.1)"),
        ("--announce_maddr", "multiaddr under which others reach this peer, behind a NAT or in a container"),
    ):
        peer.add_argument(*_spellings(option), action="append", default=[], metavar="MULTIADDR", help=help)
    identity = "file with the key of its peer id, made if missing: its address stays the same"
    peer.add_argument(*_spellings("--identity_path"), type=Path, metavar="FILE", help=identity)
    secret = (
        "file with the swarm's secret (default: RAY_GOSSIP_SECRET_FILE; who founds a swarm makes one, and says where)"
    )
    peer.add_argument(*_spellings("--secret_file"), type=Path, metavar="FILE", help=secret)
    for key in _PEER_KEYS:
        option = f"--{key.replace('.', '_')}"
        peer.add_argument(*_spellings(option), metavar="VALUE", help=f"the same as {key}=VALUE")
    peer.add_argument(
        "--run-dir", type=_folder, help="new folder for the results (default: runs/<run id>-peer-<index>)"
    )
    peer.add_argument("--json", action="store_true", help="last line of standard output: summary.json on one line")


def _spellings(option: str) -> tuple[str, str]:
    """As hivemind's users write it, and as the rest of this command line does."""
    return option, option.replace("_", "-")


def overrides_of(options: argparse.Namespace) -> list[str]:
    """The options that stand for keys of the config, as overrides."""
    given = {key: getattr(options, key.replace(".", "_")) for key in _PEER_KEYS}
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def join_command(options: argparse.Namespace) -> str:
    """How another peer of the same swarm is started; the address is missing at its end."""
    words = [*options.config, *overrides_of(options)]
    words += ["--secret_file", str(options.secret_file)] if options.secret_file is not None else []
    return " ".join(["ray-gossip peer", *map(shlex.quote, words), "--initial_peer"])
