"""The `train:` section."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from ray_gossip.config.meaning import Meaning
from ray_gossip.config.mistakes import hint, shown
from ray_gossip.config.own import Args, check_function
from ray_gossip.config.section import Count, Positive, Seconds, Section

_LOSSES = ("cross_entropy", "mse")
Name = Annotated[str, Field(pattern=r"^[A-Za-z]\w{0,30}$")]


class TrainConfig(Section):
    """How long, and what is reported when."""

    meaning: ClassVar[Meaning] = Meaning(changeable=True)

    local_steps: Annotated[Positive, Meaning(shared=True)] = 1000
    """Local steps of every peer, 1 or more."""
    loop: Annotated[str | None, Meaning(shared=True)] = None
    """A training loop of your own instead of all that the sections data, model, optimizer and train say of training:
    package.module:function, importable as `data.factory` is. It is called in every peer with a mapping, `loop_args`, or
    with nothing if it has no parameters, and calls ray_gossip.join(model) there."""
    loop_args: Args = Field(default_factory=dict)
    """What `loop` is called with."""
    loss: Annotated[str, Meaning(shared=True)] = "cross_entropy"
    """What training minimises. cross_entropy: of classes. mse: mean squared error, of labels that are numbers. Or a
    function of your own, package.module:function, importable as `data.factory` is: it is called with what the model
    gives for a batch and the batch's labels, and returns the mean over the batch, one number."""
    metrics: dict[Name, str] = Field(default_factory=dict, max_length=20)
    """What an evaluation measures beside loss and accuracy: a name for the curves, and a function that is called as
    that of `loss` is, such as {f1: package.module:function}."""
    eval_every: Positive = 100
    """Local steps between two evaluations of a peer's own model on the test split."""
    eval_samples: Positive | None = None
    """Test samples of an evaluation, spread evenly over the test split; unset: all. For machines without a GPU, on
    which the 10,000 images of Tiny ImageNet take a minute."""
    report_s: Seconds = 0.5
    """Seconds between two progress reports of a peer."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16: forward and backward pass under autocast; parameters, optimizer and averaging stay float32. About twice
    as fast on a GPU since Ampere. fp16: for GPUs without bf16; the loss is scaled, and an update whose gradients are
    not finite is skipped, which is no local step."""
    accumulate: Positive = 1
    """Batches whose gradients are averaged for one local step. For steps of more samples than the GPU's memory holds:
    4 times data.batch_size=32 are 128."""
    clip_norm: Annotated[float | None, Field(ge=1e-9, le=1e9)] = None
    """Gradients whose norm over all parameters is above it are scaled down to it before a local step; unset: never."""
    max_restores: Count = 3
    """How often a peer whose parameters or training loss are not finite goes on with a neighbour's model and optimizer,
    at its own local step; after that it ends with the cause."""
    loss_spike: Annotated[float | None, Field(gt=1, le=1e9)] = None
    """The same for a peer whose mean training loss of train.report_s is so many times its usual one, the median of 50;
    unset: any finite loss will do."""
    compile: bool = False
    """torch.compile the model. A minute at the start, faster steps after it: for runs of many minutes on a GPU."""
    recalibrate_samples: Count = 1000
    """Training samples, from all shards, on which the merged model's BatchNorm statistics are measured afresh before
    it is evaluated and saved. 0: they are the mean of the peers', which is worse after short runs and with skewed
    shards, but keeps every peer to its own shard."""

    @field_validator("loop")
    @classmethod
    def _function(cls, loop: str | None) -> str | None:
        if loop is not None:
            check_function(loop)
        return loop

    @field_validator("loss")
    @classmethod
    def _known(cls, loss: str) -> str:
        if ":" in loss:
            check_function(loss)
        elif loss not in _LOSSES:
            raise ValueError(f"{shown(loss)} is neither known nor a package.module:function; {hint(loss, _LOSSES)}")
        return loss

    @field_validator("metrics")
    @classmethod
    def _functions(cls, metrics: dict[str, str]) -> dict[str, str]:
        for name, path in metrics.items():
            if name in ("loss", "accuracy"):
                raise ValueError(f"{name} is the name of a curve that there is already; give your own another one")
            check_function(path)
        return metrics
