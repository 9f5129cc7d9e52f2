"""The config: its schema, loading, overrides. Imports nothing heavy, so that a mistake is answered at once.

A run is described by one YAML file plus dotted overrides (`gossip.group_size=2`). The defaults alone are a
complete run. Every section is frozen and refuses unknown keys. The text under a field says its unit, its range
and when to change it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ray_gossip.errors import ConfigError
from ray_gossip.mistakes import explain, keys, mistake_in


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _not_a_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """To YAML, yes and on are true; to Python, true is 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError(f"{str(value).lower()} is no value for it, because it is no switch")
        return value


class SwarmConfig(Section):
    """Who takes part, and what each peer gets."""

    num_peers: int = Field(4, ge=1)
    """Peers that the driver starts, 1 or more. One peer = one Ray actor = one hivemind averager."""
    cpus_per_peer: float = Field(0.25, gt=0)
    """Ray CPUs reserved for a peer. A fraction lets more peers than cores share a machine: good for trying things
    out. On a GPU cluster 2 or more: libp2p costs CPU."""
    gpus_per_peer: float = Field(0.0, ge=0)
    """Ray GPUs reserved for a peer. 0 trains on the CPU; 1 is the normal choice on a cluster; 0.25 lets four peers
    share a GPU."""
    accelerator_type: str | None = Field(None, min_length=1)
    """The kind of GPU that peers are placed on, as Ray names it: A100, H100, ...; unset: any. For clusters of several
    kinds."""
    resources_per_peer: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Custom Ray resources reserved for a peer, such as {fast_network: 1}, on nodes that were started with them."""
    placement: Literal["PACK", "SPREAD", "STRICT_SPREAD"] = "PACK"
    """How Ray places the peers. SPREAD over nodes when the network between them is fast and their memory is not."""
    start_s: float = Field(180.0, gt=0)
    """Deadline in seconds for the swarm to come up. Raise it when many peers share few cores."""
    silent_s: float = Field(60.0, gt=0)
    """Seconds without a sign of life from a peer's process, after which the peer is lost: it is stopped, or hangs. How
    long a local step or an evaluation takes does not matter. Raise it when machines stand still for a minute and go on
    after it."""
    stop_s: float = Field(10.0, gt=0)
    """Deadline in seconds for an orderly stop; what has not stopped by then is killed."""
    final_s: float = Field(60.0, gt=0)
    """Deadline in seconds for the final rounds, in which the swarm mixes to agreement. A peer that is done waits at
    most this long for slower ones: raise it when peers differ much in speed."""

    @field_validator("resources_per_peer")
    @classmethod
    def _custom(cls, resources: dict[str, float]) -> dict[str, float]:
        own = {"CPU": "cpus_per_peer", "GPU": "gpus_per_peer"}
        for name in own.keys() & resources.keys():
            raise ValueError(f"{name} has a key of its own: set swarm.{own[name]}")
        return resources


class GossipConfig(Section):
    """How peers average."""

    group_size: int = Field(16, ge=1)
    """Peers that average together in a round, 1 or more (1: never average). 4 or 8 serves most swarms; a swarm
    smaller than this averages as one group."""
    min_group_size: int = Field(2, ge=2)
    """The smallest group that goes on when groupmates are missing after matchmaking_s, 2 or more."""
    alpha: float = Field(1.0, gt=0, le=1)
    """How far a peer moves to its group's mean, in (0, 1]. Below 1 only for lossy compression or to keep spread on
    purpose: it never helps plain averaging."""
    steps: int | None = Field(20, ge=1)
    """H: local steps between two rounds, 1 or more. Raise it when rounds take longer than H steps; lower it when the
    merged model lags behind."""
    seconds: float | None = Field(None, gt=0)
    """Seconds between two rounds, instead of `steps`: fast and slow peers then do different numbers of steps and
    nobody is throttled."""
    schedule: Literal["grid", "random", "ring", "all", "local", "hivemind"] = "grid"
    """Who meets whom. grid: a mixed-radix hypercube, exact after log_M N rounds when full. random: seeded random
    groups, best under churn. ring: neighbours, for networks where only those are near. all: one group, i.e. local SGD
    with an all-reduce. local: within a node, across nodes every cross_every-th round. hivemind: hivemind's own
    matchmaking, for comparison; with groups smaller than the swarm the same peers keep meeting."""
    cross_every: int = Field(4, ge=1)
    """schedule=local: every so manieth round meets across nodes, 1 or more."""
    weight_by_samples: bool = False
    """Weigh each peer by the samples since its last round. For peers of different speed on a clock in seconds. It
    moves the swarm's mean towards the fast peers, which equal weights never do."""
    average_momentum: bool = False
    """Average SGD's momentum with the parameters, for twice the bytes. For short intervals and skewed shards."""
    compression: Literal["none", "fp16", "int8"] = "none"
    """How parameters travel. fp16: half the bytes, harmless. int8: a quarter; 8 bits on the difference from an anchor
    that the group shares (the start, or the last exact round: set exact_every), never on parameters themselves."""
    warmup_rounds: int = Field(0, ge=0)
    """Rounds over which the interval grows linearly to `steps` or `seconds`. For large learning rates, when peers
    drift apart early."""
    exact_every: int = Field(0, ge=0)
    """Every so manieth round reaches the exact mean of the swarm: log_M N scheduled rounds back to back; 0: never.
    For compression=int8, and against slow drift in swarms that are no full grid."""
    consensus_target: float | None = Field(None, gt=0)
    """Consensus control: rounds are left out while the consensus distance, as a fraction of the parameter norm, is
    far below this target, and all held while it is above it. Set `steps` to the shortest interval then. To save
    bytes late in training; 0.01 to 0.05 are sensible."""
    outer: Literal["none", "nesterov", "heavy_ball"] = "none"
    """What a peer does with its group's mean. none: moves to it by alpha. nesterov: an outer SGD step with Nesterov
    momentum towards it (DiLoCo; in small groups NoLoCo), for 50 or more local steps between rounds. heavy_ball: the
    same with plain momentum; diverges in pairs, and in large swarms stands at the edge even in groups of four."""
    outer_lr: float = Field(0.7, gt=0)
    """Learning rate of the outer step."""
    outer_momentum: float = Field(0.5, ge=0, lt=1)
    """Momentum of the outer step. 0.9 is usual with one group of all; in small groups 0.5 mixes better."""
    overlap: bool = True
    """Local steps go on while a round runs; its delta is applied when it ends. false: they wait."""
    matchmaking_s: float = Field(5.0, gt=0)
    """How long a group waits for a missing groupmate before the rest go on, in seconds. Dead ones are found sooner.
    Raise it when peers reach a round at very different times."""
    allreduce_s: float = Field(60.0, gt=0)
    """Longest that an all-reduce may take, in seconds; then the round has failed. The real deadline is learned from
    observed rounds and is mostly far below."""

    @model_validator(mode="before")
    @classmethod
    def _one_clock(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("seconds") is not None:
            if values.get("steps") is not None:
                raise ValueError("steps and seconds are both set; a swarm has one clock, keep one of them")
            values = {**values, "steps": None}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> GossipConfig:
        if self.steps is None and self.seconds is None:
            raise ValueError("neither steps nor seconds is set; set one of them")
        if self.group_size > 1 and self.min_group_size > self.group_size:
            raise ValueError(
                f"min_group_size={self.min_group_size} is above group_size={self.group_size}, so no group could "
                "ever start; lower min_group_size"
            )
        if self.outer != "none" and self.alpha != 1.0:
            raise ValueError(f"alpha={self.alpha:g} has no effect with outer={self.outer}; leave one of them out")
        return self


def _name_or_factory(values: Any) -> Any:
    """Where there is a factory, there is no name."""
    if isinstance(values, dict) and values.get("factory") is not None:
        if values.get("name") is not None:
            raise ValueError(f"name={values['name']} and factory={values['factory']} are both set; keep one of them")
        values = {**values, "name": None}
    return values


def _check_factory(name: str | None, factory: str | None, args: dict[str, Any]) -> None:
    if name is None and factory is None:
        raise ValueError("neither name nor factory is set; set one of them")
    if factory is not None and not re.fullmatch(r"[\w.]+:[^:\s]+", factory):
        raise ValueError(f"factory={factory} should be package.module:function")
    if args and factory is None:
        raise ValueError(f"args={args} are for a factory; set factory, or leave them out")


class DataConfig(Section):
    """What the swarm learns."""

    name: Literal["digits", "cifar10", "tiny_imagenet"] | None = "digits"
    """The data set. digits: 1,797 real images of handwritten digits, 8x8, that scikit-learn ships; needs no network.
    cifar10: 60,000 colour images of 32x32 in 10 classes. tiny_imagenet: 110,000 of 64x64 in 200 classes."""
    factory: str | None = None
    """A data set of your own, instead of `name`: package.module:function, importable on every node, such as from the
    folder in which the command is given, or from PYTHONPATH. It is called with `args`, and with root=`root` where that
    is set. It returns a ray_gossip.data.Dataset on the CPU: samples of any shape, with classes for labels. Every peer
    calls it, and all must get the same."""
    args: dict[str, Any] = {}
    """Keyword arguments of `factory`."""
    root: Path | None = None
    """Folder that holds the data set as it is published, i.e. `cifar-10-batches-py` or `tiny-imagenet-200`; on every
    node. `~` is each node's own home; a relative folder counts from where the command was given."""
    download: bool = False
    """Fetch what is missing in `root` from where it is published. false: say what to fetch."""
    cache: Path | None = None
    """Folder for decoded images, on every node; unset: `root`. A fast local disk when `root` is slow or read-only.
    Tiny ImageNet takes 1.4 GB there."""
    prepare_s: float = Field(900.0, gt=0)
    """Deadline in seconds for a peer that waits while another process of its node downloads or decodes. Better:
    `ray-gossip data prepare CONFIG` ahead of time."""
    batch_size: int = Field(32, ge=1)
    """Samples of one local step of one peer, 1 or more."""
    augment: Literal["auto", "none", "standard"] = "auto"
    """What is done to training images. standard: random crop after padding by `crop_padding`, horizontal flip, cutout.
    auto: standard for cifar10 and tiny_imagenet, none for digits, whose mirror images are no digits, and your own."""
    crop_padding: int = Field(4, ge=0)
    """Pixels of black that a random crop may move into the image, with augment=standard; 0: no crop."""
    cutout: int | None = Field(None, ge=0)
    """Edge in pixels of the square that is greyed out, with augment=standard; 0: none; unset: a quarter of the image's
    height. Raise it for long runs that overfit, 0 for runs of a few passes."""
    shards: Literal["iid", "dirichlet", "label_sorted", "by_size"] = "iid"
    """How samples are dealt to peers. iid: shuffled, then cut into equal parts. dirichlet: every class is split among
    peers in shares drawn from Dirichlet(dirichlet_alpha). label_sorted: sorted by class, then cut into equal parts, so
    that a peer sees few classes. by_size: shuffled, then cut into parts as unequal as shard_sizes."""
    dirichlet_alpha: float = Field(0.5, gt=0)
    """shards=dirichlet: how even the shares are. 100 is close to iid, 0.1 leaves a peer two or three classes."""
    shard_sizes: tuple[float, ...] = ()
    """shards=by_size: relative sizes of the peers' shards, repeated when there are more peers. [1, 4]: every second
    peer has four times as many samples."""

    @property
    def augments(self) -> bool:
        """Whether training images are augmented."""
        return self.augment == "standard" or (self.augment == "auto" and self.is_published)

    @property
    def factory_args(self) -> dict[str, Any]:
        """What `factory` is called with; a home in `root` is this node's."""
        return {**({} if self.root is None else {"root": self.root.expanduser()}), **self.args}

    @property
    def is_published(self) -> bool:
        """Whether it is one of those that are fetched from where they are published, and read from `root`."""
        return self.name in ("cifar10", "tiny_imagenet")

    @field_validator("root", "cache")
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        return folder if folder is None or str(folder).startswith("~") else folder.absolute()

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, values: Any) -> Any:
        return _name_or_factory(values)

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        _check_factory(self.name, self.factory, self.args)
        if self.is_published and self.root is None:
            raise ValueError(f"name={self.name} is read from disk: set data.root to the folder that holds it")
        if (self.shards == "by_size") != bool(self.shard_sizes):
            raise ValueError("shards=by_size and shard_sizes=[...] need each other; set both, or neither")
        if any(size <= 0 for size in self.shard_sizes):
            raise ValueError(f"shard_sizes={list(self.shard_sizes)}: every size must be above 0")
        return self


class ModelConfig(Section):
    """The network."""

    name: Literal["cnn", "mlp", "resnet18", "resnet20", "resnet50"] | None = "cnn"
    """For images. cnn: three 3x3 convolutions. mlp: two hidden layers. resnet20: He et al.'s for CIFAR, 0.27 million
    parameters. resnet18: 11 million, for CIFAR (3x3 stem, no max-pool). resnet50: torchvision's, 24 million, with a 3x3
    stem."""
    factory: str | None = None
    """A network of your own, instead of `name`: package.module:function, importable as `data.factory` is. It is called
    with `args`, and with in_shape (of one sample) and num_classes where it has parameters of these names. It returns a
    torch.nn.Module in float32 on the CPU, which gives logits [batch_size, *label_shape, num_classes]. Its random
    numbers must come from torch, which is seeded: peers begin with the same parameters then."""
    args: dict[str, Any] = {}
    """Keyword arguments of `factory`."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation of the resnets. group does not depend on the batch: for batches below 16 and for shards so skewed
    that the peers' batch statistics have little in common."""

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, values: Any) -> Any:
        return _name_or_factory(values)

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        _check_factory(self.name, self.factory, self.args)
        return self


class OptimizerConfig(Section):
    """Local SGD."""

    name: str = "SGD"
    """Any class of torch.optim, by its name: SGD, AdamW, ..."""
    lr: float = Field(0.05, gt=0)
    """Learning rate at its highest."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum, for optimizers that have it; 0 for none."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay (L2), for optimizers that have it."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """How the learning rate falls from `lr` to zero over the run; constant: not at all."""
    warmup_steps: int = Field(0, ge=0)
    """Local steps over which the learning rate rises linearly from zero. Use it when the first steps diverge."""


class TrainConfig(Section):
    """How long, and what is reported when."""

    local_steps: int = Field(1000, ge=1)
    """Local steps of every peer, 1 or more."""
    eval_every: int = Field(100, ge=1)
    """Local steps between two evaluations of a peer's own model on the test split."""
    eval_samples: int | None = Field(None, ge=1)
    """Test samples of an evaluation, spread evenly over the test split; unset: all. For machines without a GPU, on
    which the 10,000 images of Tiny ImageNet take a minute."""
    report_s: float = Field(0.5, gt=0)
    """Seconds between two progress reports of a peer."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: forward and backward pass under autocast; parameters, optimizer and averaging stay float32. About twice
    as fast on a GPU since Ampere."""
    compile: bool = False
    """torch.compile the model. A minute at the start, faster steps after it: for runs of many minutes on a GPU."""
    recalibrate_samples: int = Field(1000, ge=0)
    """Training samples, from all shards, on which the merged model's BatchNorm statistics are measured afresh before
    it is evaluated and saved. 0: they are the mean of the peers', which is worse after short runs and with skewed
    shards, but keeps every peer to its own shard."""


class Config(Section):
    """One run."""

    engine: Literal["gossip", "hivemind"] = "gossip"
    """gossip: scheduled groups, overlap, honest outcomes. hivemind: `hivemind.Optimizer(use_local_updates=True)` as
    shipped, for comparison and for the open internet."""
    seed: int = Field(0, ge=0)
    """Seeds the model, the shards, the batches and the schedule."""
    swarm: SwarmConfig = SwarmConfig()
    gossip: GossipConfig = GossipConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        gossip, optimizer = self.gossip, self.optimizer
        if gossip.average_momentum and (optimizer.name != "SGD" or optimizer.momentum == 0):
            raise ValueError(
                f"gossip.average_momentum needs optimizer.name=SGD with momentum, not {optimizer.name} with "
                f"momentum={optimizer.momentum:g}; switch it off"
            )
        if self.engine == "hivemind" and gossip.seconds is not None:
            raise ValueError("gossip.seconds is unknown to engine=hivemind, which counts samples; set gossip.steps")
        return self


AnyConfig = TypeVar("AnyConfig", bound=Config)

_ONE_OF_TWO = [
    (section, *pair)
    for section, *keys in (("gossip", "steps", "seconds"), ("data", "name", "factory"), ("model", "name", "factory"))
    for pair in (keys, reversed(keys))
]


def load(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (or none: the defaults) and apply dotted overrides such as `gossip.group_size=2`.

    Raises:
        ConfigError: one line that names the key and the fix.
    """
    tree = load_tree(path, overrides)
    if isinstance(tree, dict) and tree.keys() & {"space", "tune"}:
        raise ConfigError(f"{path or 'this'} is a sweep, with space: or tune: in it; run it with ray-gossip tune")
    return parse(tree)


def load_tree(path: Path | None = None, overrides: Sequence[str] = ()) -> Any:
    """What `load` parses: plain nested dicts, not checked yet. Raises ConfigError."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree: Any = OmegaConf.create({})
    if path is not None:
        try:
            tree = OmegaConf.load(path)
        except FileNotFoundError:
            raise ConfigError(f"config file not found: {path}") from None
        except OSError as error:
            raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
            raise ConfigError(f"{path} is not readable as YAML: {_first_line(error)}") from None
        if not OmegaConf.is_dict(tree):
            raise ConfigError(f"{path} must hold sections such as 'gossip:', not {type(tree).__name__}")
    for override in overrides:
        if "=" not in override.lstrip("="):
            raise ConfigError(f"cannot read the override {override!r}: write key=value, such as gossip.group_size=2")
    try:
        changes = OmegaConf.from_dotlist(list(overrides))
        for section, one, other in _ONE_OF_TWO:
            if OmegaConf.select(changes, f"{section}.{one}") is not None and OmegaConf.is_dict(tree.get(section)):
                tree[section].pop(other, None)  # the override's clock, say, replaces that of the file
        merged = OmegaConf.merge(tree, changes)
        return OmegaConf.to_container(merged, resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"cannot apply the overrides: {_first_line(error)}") from None


def parse(values: Any) -> Config:
    """Build a Config from plain nested dicts. Raises ConfigError."""
    return parse_as(Config, values)


def parse_as(schema: type[AnyConfig], values: Any) -> AnyConfig:
    """The same for a schema that adds sections to it."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, schema)) from None


def read(source: Config | Mapping[str, Any] | Path | str | None) -> Config:
    """A config in any form in which Python hands it over: itself, nested dicts, a YAML file, or none: the defaults.

    Raises:
        ConfigError: one line that names the key and the fix.
    """
    if isinstance(source, Config):
        return source
    return parse(dict(source)) if isinstance(source, Mapping) else load(None if source is None else Path(source))


def replace(config: Config, values: Mapping[str, Any]) -> Config:
    """The same config with other values of dotted keys, such as `{"gossip.group_size": 2}`. Raises ConfigError."""
    return parse(_with(config, values))


def check_key(key: str) -> None:
    """Raise ConfigError unless this dotted key is in the schema, or below one that holds arguments of the user's."""
    holder = key.rpartition(".")[0]
    if holder not in [known for known in keys(Config) if known.endswith("args")]:
        mistake = mistake_in(key, Config)
        if mistake:
            raise ConfigError(mistake)


def check_value(config: Config, key: str, value: Any) -> None:
    """Raise ConfigError if this value of a dotted key is forbidden, whatever the other keys are."""
    try:
        Config.model_validate(_with(config, {key: value}))
    except ValidationError as error:
        if ".".join(str(part) for part in error.errors()[0]["loc"]).startswith(key):
            raise ConfigError(explain(error, Config)) from None


def _with(config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    tree = config.model_dump()
    for key, value in values.items():
        *sections, name = key.split(".")
        section = tree
        for part in sections:
            section = section[part]
        section[name] = value
        for *pair, other in _ONE_OF_TWO:
            if key == ".".join(pair) and value is not None:
                section.pop(other, None)
    return tree


_SHIPPED_LACKS = [
    "schedule",
    "cross_every",
    "weight_by_samples",
    "average_momentum",
    "compression",
    "warmup_rounds",
    "exact_every",
    "consensus_target",
    "outer",
]


def skipped(config: Config) -> list[str]:
    """A sentence for each setting of the user's that this run leaves out."""
    sentences = _skipped_in_data(config.data)
    if config.model.name in ("cnn", "mlp") and config.model.norm != "batch":
        sentences.append(
            f"model.norm={config.model.norm} is skipped: model.name={config.model.name} normalises nothing"
        )
    if config.model.factory is not None and config.model.norm != "batch":
        sentences.append(f"model.norm={config.model.norm} is skipped: model.factory takes model.args")
    if config.engine == "hivemind":
        sentences += [
            f"gossip.{key}={getattr(config.gossip, key)} is skipped: engine=hivemind has no such setting"
            for key in _SHIPPED_LACKS
            if getattr(config.gossip, key) != GossipConfig.model_fields[key].default
        ]
    return sentences


def _skipped_in_data(data: DataConfig) -> list[str]:
    augments = data.augments
    origin = f"name={data.name} is shipped with a package" if data.name else "data.factory takes data.args"
    used = {
        "root": (data.is_published or data.factory is not None, origin),
        "download": (data.is_published, origin),
        "cache": (data.name == "tiny_imagenet", f"name={data.name} is not decoded" if data.name else origin),
        "crop_padding": (augments, "images are not augmented"),
        "cutout": (augments, "images are not augmented"),
        "dirichlet_alpha": (data.shards == "dirichlet", f"shards={data.shards}"),
    }
    return [
        f"data.{key}={getattr(data, key)} is skipped: {why}"
        for key, (is_used, why) in used.items()
        if not is_used and getattr(data, key) != DataConfig.model_fields[key].default
    ]


def dump(config: Config) -> str:
    """The resolved config as YAML; `load` of it gives the same config."""
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[:2]) if lines else type(error).__name__
