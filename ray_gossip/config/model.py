"""The `model:` section."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ray_gossip.config.meaning import Meaning
from ray_gossip.config.own import Args, check_factory, name_or_factory, no_args_without
from ray_gossip.config.section import Section


class ModelConfig(Section):
    """The network."""

    meaning: ClassVar[Meaning] = Meaning(shared=True)

    name: Literal["cnn", "mlp", "resnet18", "resnet20", "resnet50"] | None = "cnn"
    """For images. cnn: three 3x3 convolutions. mlp: two hidden layers. resnet20: He et al.'s for CIFAR, 0.27 million
    parameters. resnet18: 11 million, for CIFAR (3x3 stem, no max-pool). resnet50: torchvision's, 24 million, with a 3x3
    stem."""
    factory: str | None = None
    """A network of your own, instead of `name`: package.module:function, importable as `data.factory` is. It is called
    with `args`, and with in_shape (of one sample), num_classes and num_outputs (num_classes, or how many numbers are to
    be predicted) where it has parameters of these names. It returns a torch.nn.Module in float32 on the CPU, which
    gives what `train.loss` takes; by default logits [batch_size, *label_shape, num_classes]. Its random numbers must
    come from torch, which is seeded: peers begin with the same parameters then."""
    args: Args = Field(default_factory=dict)
    """Keyword arguments of `factory`."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation of the resnets. group does not depend on the batch: for batches below 16 and for shards so skewed
    that the peers' batch statistics have little in common."""

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, values: Any) -> Any:
        return name_or_factory(values)

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        check_factory(self.name, self.factory)
        no_args_without(self.factory, self.args)
        return self
