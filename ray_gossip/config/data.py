"""The `data:` section."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ray_gossip.config.meaning import Meaning
from ray_gossip.config.mistakes import shown
from ray_gossip.config.own import Args, check_factory, name_or_factory, no_args_without
from ray_gossip.config.section import Seconds, Section
from ray_gossip.folders import is_possible

_SHARED, _CHANGEABLE = Meaning(shared=True), Meaning(changeable=True)

ShardSize = Annotated[float, Field(ge=1e-6, le=1e6)]

_SIZES = {  # training samples, edge of an image in pixels
    "digits": (1433, 8),
    "cifar10": (50_000, 32),
    "tiny_imagenet": (100_000, 64),
}
_FOLDERS = {"cifar10": "cifar-10-batches-py", "tiny_imagenet": "tiny-imagenet-200"}  # as they are published


class DataConfig(Section):
    """What the swarm learns."""

    name: Annotated[Literal["digits", "cifar10", "tiny_imagenet"] | None, _SHARED] = "digits"
    """The data set. digits: 1,797 real images of handwritten digits, 8x8, that scikit-learn ships; needs no network.
    cifar10: 60,000 colour images of 32x32 in 10 classes. tiny_imagenet: 110,000 of 64x64 in 200 classes."""
    factory: Annotated[str | None, _SHARED] = None
    """A data set of your own, instead of `name`: package.module:function, importable on every node, such as from the
    folder in which the command is given, or from PYTHONPATH. It is called with `args`, and with root=`root` where that
    is set. It returns a ray_gossip.data.Dataset on the CPU: samples of any shape, with classes for labels. Every peer
    calls it, and all must get the same."""
    args: Annotated[Args, _SHARED] = Field(default_factory=dict)
    """Keyword arguments of `factory`."""
    root: Annotated[Path | None, Meaning(option=True)] = None
    """Folder that holds the data set as it is published, i.e. `cifar-10-batches-py` or `tiny-imagenet-200`; on every
    node. `~` is each node's own home; a relative folder counts from where the command was given."""
    download: bool = False
    """Fetch what is missing in `root` from where it is published. false: say what to fetch."""
    cache: Path | None = None
    """Folder for decoded images, on every node; unset: `root`. A fast local disk when `root` is slow or read-only.
    Tiny ImageNet takes 1.4 GB there."""
    prepare_s: Seconds = 900.0
    """Deadline in seconds for a peer that waits while another process of its node downloads or decodes. Better:
    `ray-gossip data prepare CONFIG` ahead of time."""
    batch_size: Annotated[int, _CHANGEABLE] = Field(32, ge=1, le=1_000_000)
    """Samples of one batch of one peer, 1 or more: of one local step, unless `train.accumulate` makes it several."""
    augment: Annotated[Literal["auto", "none", "standard"], _CHANGEABLE] = "auto"
    """What is done to training images. standard: random crop after padding by `crop_padding`, horizontal flip, cutout.
    auto: standard for cifar10 and tiny_imagenet, none for digits, whose mirror images are no digits, and your own."""
    crop_padding: Annotated[int, _CHANGEABLE] = Field(4, ge=0, le=1000)
    """Pixels of black that a random crop may move into the image, with augment=standard; 0: no crop."""
    cutout: Annotated[int | None, _CHANGEABLE] = Field(None, ge=0, le=10_000)
    """Edge in pixels of the square that is greyed out, with augment=standard; 0: none; unset: a quarter of the image's
    height. Raise it for long runs that overfit, 0 for runs of a few passes."""
    shards: Annotated[Literal["iid", "dirichlet", "label_sorted", "by_size"], _SHARED] = "iid"
    """How samples are dealt to peers. iid: shuffled, then cut into equal parts. dirichlet: every class is split among
    peers in shares drawn from Dirichlet(dirichlet_alpha). label_sorted: sorted by class, then cut into equal parts, so
    that a peer sees few classes. by_size: shuffled, then cut into parts as unequal as shard_sizes."""
    dirichlet_alpha: Annotated[float, _SHARED] = Field(0.5, ge=1e-9, le=1e9)
    """shards=dirichlet: how even the shares are. 100 is close to iid, 0.1 leaves a peer two or three classes."""
    shard_sizes: Annotated[tuple[ShardSize, ...], _SHARED] = Field((), max_length=10_000)
    """shards=by_size: relative sizes of the peers' shards, repeated when there are more peers. [1, 4]: every second
    peer has four times as many samples."""

    def _fits(self, num_train: int, edge: int) -> None:
        if self.batch_size > num_train:
            raise ValueError(
                f"batch_size={self.batch_size} is above the {num_train:,} samples of {self.name}; lower it"
            )
        for key, pixels in (("crop_padding", self.crop_padding), ("cutout", self.cutout or 0)):
            if self.augments and pixels >= edge:
                raise ValueError(f"{key}={pixels} covers whole images of {edge}x{edge}; lower it")

    @property
    def num_train(self) -> int | None:
        """Training samples, where they are known without loading them."""
        return None if self.name is None else _SIZES[self.name][0]

    @property
    def augments(self) -> bool:
        """Whether training images are augmented."""
        return self.augment == "standard" or (self.augment == "auto" and self.is_published)

    @property
    def factory_args(self) -> dict[str, Any]:
        """What `factory` is called with; a home in `root` is this node's."""
        return {**({} if self.root is None else {"root": self.root.expanduser()}), **self.args}

    def missing_here(self) -> Path | None:
        """The published folder, if this machine has neither it nor what was decoded from it, and is not to fetch it."""
        if self.name not in _FOLDERS or self.root is None or self.download:
            return None
        folder = self.root.expanduser() / _FOLDERS[self.name]
        decoded = (self.cache or self.root).expanduser() / f"{folder.name}.npy"
        is_there = folder.is_dir() or (self.name == "tiny_imagenet" and decoded.is_file())
        return None if is_there else folder

    @property
    def is_published(self) -> bool:
        """Whether it is one of those that are fetched from where they are published, and read from `root`."""
        return self.name in _FOLDERS

    @field_validator("root", "cache")
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        if folder is None:
            return None
        if not is_possible(folder):
            raise ValueError(f"{shown(str(folder))} cannot be the name of a folder")
        if not str(folder).startswith("~"):
            return folder.absolute()
        try:
            folder.expanduser()
        except RuntimeError:
            raise ValueError(f"there is no home folder {folder.parts[0]} here; write the whole path") from None
        return folder

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, values: Any) -> Any:
        return name_or_factory(values)

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        check_factory(self.name, self.factory)
        no_args_without(self.factory, self.args)
        if self.is_published and self.root is None:
            raise ValueError(f"name={self.name} is read from disk: set data.root to the folder that holds it")
        if (self.shards == "by_size") != bool(self.shard_sizes):
            raise ValueError("shards=by_size and shard_sizes=[...] need each other; set both, or neither")
        if self.name is not None:
            self._fits(*_SIZES[self.name])
        return self
