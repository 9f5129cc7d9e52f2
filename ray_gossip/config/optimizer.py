"""The `optimizer:` section."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ray_gossip.config.meaning import Meaning
from ray_gossip.config.own import Args, check_factory, name_or_factory
from ray_gossip.config.section import Count, Section


class OptimizerConfig(Section):
    """Local SGD."""

    meaning: ClassVar[Meaning] = Meaning(changeable=True)

    name: Annotated[str | None, Meaning()] = "SGD"
    """Any class of torch.optim, by its name: SGD, AdamW, ..."""
    factory: Annotated[str | None, Meaning()] = None
    """An optimizer of your own, instead of `name`: package.module:function, importable as `data.factory` is; a class
    will do. It is called with params, the tensors to train, with `args`, and with lr where it has a parameter of this
    name. It returns a torch.optim.Optimizer, whose learning rates `schedule` scales."""
    args: Args = Field(default_factory=dict)
    """Its other keyword arguments, such as {betas: [0.9, 0.98]}."""
    lr: float = Field(0.05, ge=1e-12, le=1e3)
    """Learning rate at its highest."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum, for those of torch.optim that have it; 0 for none."""
    weight_decay: float = Field(5e-4, ge=0, le=1e3)
    """Weight decay (L2), for those of torch.optim that have it."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """How the learning rate falls from `lr` to zero over the run; constant: not at all."""
    warmup_steps: Count = 0
    """Local steps over which the learning rate rises linearly from zero. Use it when the first steps diverge."""

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, values: Any) -> Any:
        return name_or_factory(values)

    @model_validator(mode="after")
    def _consistent(self) -> OptimizerConfig:
        check_factory(self.name, self.factory)
        taken = ("params", "lr") if self.factory else ("params", "lr", "momentum", "weight_decay")
        for key in taken:
            if key in self.args:
                raise ValueError(
                    f"args.{key} is given to it anyway; leave it out, and set optimizer.{key} where there is one"
                )
        return self
