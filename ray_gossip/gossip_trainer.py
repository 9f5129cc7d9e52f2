"""A whole run from Python, as Ray's own trainers are used: build it, `fit()`, look at the result."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_gossip.config import Config, parse, read
from ray_gossip.errors import ConfigError, ResourceError
from ray_gossip.factory import Factories, Factory, loop_arguments, name_of
from ray_gossip.ray_train import checkpoints_of, failures_of, run_dir_of, swarm_of
from ray_gossip.screen import screen
from ray_gossip.storage import is_uri

if TYPE_CHECKING:
    from ray_gossip.tuning.within import WithinTrial


@dataclass(frozen=True)
class Checkpoint:
    """The merged model of a run, as a folder that holds `model.pt`."""

    path: Path

    @contextlib.contextmanager
    def as_directory(self) -> Iterator[Path]:
        """The folder, for as long as the context lasts; here for ever."""
        yield self.path

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` of the same model takes: its tensors, by name, on the CPU."""
        import torch

        state: dict[str, Any] = torch.load(self.path / "model.pt", map_location="cpu", weights_only=True)
        return state


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run came to."""

    metrics: dict[str, Any]  # what summary.json holds: merged_accuracy, peer_accuracy, rounds, samples_per_s, ...
    path: Path  # the run's folder: TensorBoard, events.jsonl, config.yaml, ...
    checkpoint: Checkpoint
    error: None = None  # as in Ray's results; `fit` raises instead


def _is_function(own: object) -> bool:
    """A module can be called, too, but not to be made. Asked without importing torch."""
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(own).__mro__}
    return callable(own) and "torch.nn.modules.module.Module" not in kinds


class GossipTrainer:
    """Trains one model by gossip on a Ray cluster: the one that is connected, or that RAY_ADDRESS names, else a local
    one for this run. Either with a training loop of your own, as Ray Train's TorchTrainer has it, or with a model and
    data.

    Args:
        train_loop_per_worker: a function that trains, of one argument or none. It runs in every peer, and calls
            `ray_gossip.join(model)` there. Any function will do that cloudpickle can send to the peers.
        train_loop_config: its argument; None: {}.
        scaling_config: Ray Train's ScalingConfig: how many peers, and what each gets. Goes before the config's `swarm`.
        run_config: Ray Train's RunConfig: name and storage_path are the folder of the results;
            FailureConfig(max_failures=...) is how often a peer is replaced, for loops that go on at `peer.local_step`;
            CheckpointConfig says which checkpoints are kept, of loops that call `peer.checkpoint`: the latest
            num_to_keep, and the best.
        model: the user's own, instead of `model.name` in the config: a function, or its name package.module:function,
            see `ray_gossip.config.ModelConfig.factory`. Any function will do that cloudpickle can send to the peers.
        data: the same for the data set, see `ray_gossip.config.DataConfig.factory`.
        config: everything else: a Config, a mapping such as {"gossip": {"group_size": 4}}, or a YAML file.
        num_peers, cpus_per_peer, gpus_per_peer: go before the config's `swarm` section.
        run_dir: new folder for the results; default: runs/<run id>.
        resume: go on with the run in `run_dir` from its latest checkpoint; where there is none, begin it. A script that
            is started again after a failure is the same script then.
        verbose: show the run on standard output.

    Raises:
        ConfigError: one line that names the key and the fix.
    """

    def __init__(
        self,
        train_loop_per_worker: Factory | None = None,
        *,
        train_loop_config: Any = None,
        scaling_config: Any = None,
        run_config: Any = None,
        model: Factory | str | None = None,
        data: Factory | str | None = None,
        config: Config | Mapping[str, Any] | Path | str | None = None,
        num_peers: int | None = None,
        cpus_per_peer: float | None = None,
        gpus_per_peer: float | None = None,
        run_dir: Path | str | None = None,
        resume: bool = False,
        verbose: bool = True,
    ) -> None:
        if run_dir is not None and is_uri(run_dir):
            raise ConfigError(f"run_dir={run_dir} is a URI, which only a sweep writes to; name a folder")
        values = read(config).model_dump()
        named = run_dir_of(run_config)
        values["swarm"] |= swarm_of(scaling_config) | failures_of(run_config)
        values["checkpoint"] |= checkpoints_of(run_config)
        if named is not None and run_dir is not None:
            raise ConfigError("run_dir and run_config.name both name the folder of the results: keep one of them")
        loop = train_loop_per_worker
        if loop is None and train_loop_config is not None:
            raise ConfigError("train_loop_config is for a train_loop_per_worker, and there is none")
        if loop is not None:
            values["train"] |= _loop_keys(loop, train_loop_config, others={"model": model, "data": data})
        swarm = {"num_peers": num_peers, "cpus_per_peer": cpus_per_peer, "gpus_per_peer": gpus_per_peer}
        values["swarm"] |= {key: value for key, value in swarm.items() if value is not None}
        for section, own in (("model", model), ("data", data)):
            if own is not None and not isinstance(own, str) and not _is_function(own):
                raise ConfigError(
                    f"{section} is a {type(own).__name__}: give a function that makes it, such as "
                    f"{section}=lambda: ..., because each peer makes its own"
                )
            if own is not None:
                values[section] |= {"name": None, "factory": own if isinstance(own, str) else name_of(own)}
        self.config = parse(values)
        self._factories = Factories(
            model=None if isinstance(model, str) else model,
            data=None if isinstance(data, str) else data,
            loop=loop,
            loop_config={} if train_loop_config is None else train_loop_config,
        )
        self._run_dir = named if run_dir is None else Path(run_dir)
        if resume and self._run_dir is None:
            raise ConfigError("resume=True goes on with the run in run_dir, or begins it there: name the folder")
        self._resume = resume
        self._verbose, self._is_scaled = verbose, scaling_config is not None

    def fit(self) -> Result:
        """Train to the end.

        Raises:
            UserError: there is something to mend, in one line.
            SwarmError: the run could not go on; what it wrote until then is readable in its folder.
            KeyboardInterrupt: after an orderly stop.
        """
        from ray_gossip import driver
        from ray_gossip.swarm import connected_address

        within = _this_trial()
        address = connected_address() or os.environ.get("RAY_ADDRESS")
        with contextlib.ExitStack() as stack:
            if self._is_scaled:
                stack.enter_context(_in_words_of_ray_train())
            stream = screen(sys.stdout) if self._verbose else stack.enter_context(Path(os.devnull).open("w"))
            summary = driver.train(
                self.config,
                address=None if address in (None, "", "local") else address,
                run_dir=self._run_dir or (within.run_dir if within is not None else None),
                within=within,
                resume=self._resume,
                stream=stream,
                factories=self._factories,
            )
        path = Path(summary["run_dir"]).absolute()
        places = {key: str(Path(summary[key]).absolute()) for key in ("run_dir", "model") if summary[key]}
        return Result(metrics={**summary["reported"], **summary, **places}, path=path, checkpoint=Checkpoint(path))


@contextlib.contextmanager
def _in_words_of_ray_train() -> Iterator[None]:
    """What does not fit, by the names under which it was given."""
    try:
        yield
    except ResourceError as error:
        names = "scaling_config's num_workers or resources_per_worker, such as resources_per_worker={'CPU': 0.25}"
        raise ResourceError(f"{error}; here these are {names}") from error


def _this_trial() -> WithinTrial | None:
    """The trial of a Tuner whose function calls `fit`; in one, Ray Tune is loaded."""
    if "ray.tune" not in sys.modules:
        return None
    from ray_gossip.tuning.within import this_trial

    return this_trial()


def _loop_keys(loop: Factory, argument: Any, *, others: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the `train` section for a loop. Its argument stands there where it is plain, for a person to read."""
    if not _is_function(loop):
        raise ConfigError(f"train_loop_per_worker is a {type(loop).__name__}, not a function that trains")
    for name, given in others.items():
        if given is not None:
            own = given if isinstance(given, str) else name_of(given)
            raise ConfigError(f"{name}={own} is for runs without a loop of their own: the loop makes its own")
    name = name_of(loop)
    if inspect.iscoroutinefunction(loop) or inspect.isgeneratorfunction(loop):
        raise ConfigError(f"train_loop_per_worker={name} has async or yield in it: calling it would run nothing of it")
    with contextlib.suppress(TypeError, ValueError):  # some that are written in C have no signature
        loop_arguments("train_loop_per_worker", name, inspect.signature(loop), argument)
    keys = {"loop": name, "loop_args": {} if argument is None else argument}
    try:
        parse({"train": keys})
    except ConfigError:
        return {"loop": name}
    return keys
