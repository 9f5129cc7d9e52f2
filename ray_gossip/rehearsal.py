"""What only heavy or foreign code can tell of a config, asked in a process of its own before anything starts.

torch says whether an optimizer takes its arguments; the user's own modules, whether they can be imported. These may end
the process, wait for ever, or print: that process is not this one. It takes as long as torch takes to load, and there
is one only where a config names something that is in doubt.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ray_gossip.config import Config, dump, parse, read_yaml
from ray_gossip.config.mistakes import hint
from ray_gossip.errors import ConfigError, UserError
from ray_gossip.factory import NAMED, Check, Factories, check, check_call, names_in

_LIMIT_S = 60.0  # a module that takes longer is believed: the peers will tell
_KNOWN_OPTIMIZERS = ("SGD", "Adam", "AdamW")  # torch need not be asked for them where they have no arguments
_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from ray_gossip.rehearsal import main; main()"


def rehearse(configs: Iterable[Config], *, factories: Factories = NAMED, imports: bool) -> None:
    """Raise ConfigError if torch or a module of the user's own would refuse one of these configs.

    Args:
        factories: what was handed over is not looked for.
        imports: import what the configs name; False where the peers run on other machines, on which more may be there.
    """
    configs = list(configs)
    for name in {config.optimizer.name for config in configs if config.optimizer.name is not None}:
        _check_name(name)
    parts = (_in_doubt(config, factories, imports=imports) for config in configs)
    texts = dict.fromkeys(dump(part) for part in parts if part != Config())
    if texts:
        _ask(list(texts))


def perform(config: Config) -> None:
    """The same in this process, for one that loads all of it anyway. Raises ConfigError."""
    from ray_gossip.training.optimizer import check_optimizer  # loads torch

    check(config, how=check_call)
    check_optimizer(config.optimizer)


def main() -> None:
    """The process of its own: configs come in on standard input, and lines of JSON go out."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the user's modules print is no answer

    def say(**what: Any) -> None:
        print(json.dumps(what), file=answers)

    def check_aloud(key: str, name: str, check_parameters: Check) -> None:
        say(begun=f"{key}={name}")
        check_call(key, name, check_parameters)

    try:
        for text in json.load(sys.stdin):
            config = parse(read_yaml(text))
            check(config, how=check_aloud)
            perform(config)
    except UserError as error:
        say(mistake=str(error))
    else:
        say(done=True)
    os._exit(0)  # whatever the user's modules have started


def _in_doubt(config: Config, factories: Factories, *, imports: bool) -> Config:
    """The default config, but for the sections that have to be asked about."""
    optimizer = config.optimizer
    is_known = optimizer.name in _KNOWN_OPTIMIZERS and not optimizer.args
    doubtful = {
        "model": imports and config.model.factory is not None and factories.model is None,
        "data": imports and config.data.factory is not None and factories.data is None,
        "optimizer": not is_known if optimizer.factory is None else imports,
        "train": imports and (":" in config.train.loss or bool(config.train.metrics) or _names_loop(config, factories)),
    }
    return Config().model_copy(
        update={key: getattr(config, key) for key, is_doubtful in doubtful.items() if is_doubtful}
    )


def _names_loop(config: Config, factories: Factories) -> bool:
    return config.train.loop is not None and factories.loop is None


def _check_name(name: str) -> None:
    """The most common mistake is seen in torch's source, before torch is loaded."""
    names = names_in("torch.optim")
    if names is not None and name not in names:
        classes = [each for each in names if each[0].isupper() and each != "Optimizer"]
        raise ConfigError(f"optimizer.name={name} is not in torch.optim; {hint(name, classes)}")


def _ask(texts: Sequence[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            answer, _ = process.communicate(json.dumps(texts), timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            return
        finally:
            with contextlib.suppress(ProcessLookupError):  # what the user's modules have started ends with it
                os.killpg(process.pid, signal.SIGKILL)
    last: dict[str, Any] = json.loads(answer.splitlines()[-1]) if answer else {"begun": "the config"}
    if "mistake" in last:
        raise ConfigError(last["mistake"])
    if "begun" in last:
        raise ConfigError(f"{last['begun']}: importing it ended the process, with exit code {process.returncode}")
