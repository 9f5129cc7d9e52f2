"""The `optimizer:` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ray_gossip.config.section import Count, Section


class OptimizerConfig(Section):
    """Local SGD."""

    name: str = "SGD"
    """Any class of torch.optim, by its name: SGD, AdamW, ..."""
    lr: float = Field(0.05, ge=1e-12, le=1e3)
    """Learning rate at its highest."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum, for optimizers that have it; 0 for none."""
    weight_decay: float = Field(5e-4, ge=0, le=1e3)
    """Weight decay (L2), for optimizers that have it."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """How the learning rate falls from `lr` to zero over the run; constant: not at all."""
    warmup_steps: Count = 0
    """Local steps over which the learning rate rises linearly from zero. Use it when the first steps diverge."""
