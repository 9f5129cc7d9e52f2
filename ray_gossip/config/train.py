"""The `train:` section."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from ray_gossip.config.meaning import Meaning
from ray_gossip.config.section import Count, Positive, Seconds, Section


class TrainConfig(Section):
    """How long, and what is reported when."""

    meaning: ClassVar[Meaning] = Meaning(changeable=True)

    local_steps: Annotated[Positive, Meaning(shared=True)] = 1000
    """Local steps of every peer, 1 or more."""
    eval_every: Positive = 100
    """Local steps between two evaluations of a peer's own model on the test split."""
    eval_samples: Positive | None = None
    """Test samples of an evaluation, spread evenly over the test split; unset: all. For machines without a GPU, on
    which the 10,000 images of Tiny ImageNet take a minute."""
    report_s: Seconds = 0.5
    """Seconds between two progress reports of a peer."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: forward and backward pass under autocast; parameters, optimizer and averaging stay float32. About twice
    as fast on a GPU since Ampere."""
    compile: bool = False
    """torch.compile the model. A minute at the start, faster steps after it: for runs of many minutes on a GPU."""
    recalibrate_samples: Count = 1000
    """Training samples, from all shards, on which the merged model's BatchNorm statistics are measured afresh before
    it is evaluated and saved. 0: they are the mean of the peers', which is worse after short runs and with skewed
    shards, but keeps every peer to its own shard."""
