"""What training minimises, and what an evaluation measures: by name, or by the user's own functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ray_gossip.config import TrainConfig
from ray_gossip.data import IGNORED, Dataset
from ray_gossip.errors import ConfigError
from ray_gossip.factory import CALLED_WITH, find_function, run

Function = Callable[[Any, Tensor], Any]  # (what the model gives, labels) -> mean over the batch


class Share(NamedTuple):
    """What a batch adds to a mean over the test split."""

    total: Tensor | float
    number: Tensor | int


class Criterion:
    """Of one run.

    Raises:
        ConfigError: a function is not there, or the data set has no labels of this kind.
    """

    def __init__(self, train: TrainConfig, dataset: Dataset) -> None:
        self._name, self._dataset = train.loss, dataset
        if train.loss == "cross_entropy" and dataset.num_classes is None:
            raise ConfigError("train.loss=cross_entropy is for classes, but the labels are numbers: set train.loss=mse")
        if train.loss == "mse" and dataset.num_classes is not None:
            raise ConfigError("train.loss=mse is for labels that are numbers (float32), but the data set has classes")
        self._own_loss = find_function("train.loss", train.loss, takes=CALLED_WITH) if ":" in train.loss else None
        self._metrics: Mapping[str, tuple[str, Function]] = {
            name: (path, find_function(f"train.metrics.{name}", path, takes=CALLED_WITH))
            for name, path in train.metrics.items()
        }

    def loss(self, outputs: Any, labels: Tensor) -> Tensor:
        """Mean over the batch, in float32.

        Args:
            outputs: of the model; by name of loss, [batch_size, *label_shape, num_classes] or [batch_size,
                *label_shape].
        """
        outputs = _in_float32(outputs)
        if self._name == "cross_entropy":
            return F.cross_entropy(*by_label(outputs, labels))
        if self._own_loss is None:
            return F.mse_loss(outputs, labels)
        return self._called(self._own_loss, outputs, labels)

    @torch.no_grad()
    def measure(self, outputs: Any, labels: Tensor) -> dict[str, Share]:
        """Loss, accuracy where the labels are classes and the outputs their logits, and the user's own metrics."""
        outputs = _in_float32(outputs)
        number: Tensor | int = len(labels)
        shares: dict[str, Share] = {}
        if self.has_accuracy(outputs, labels):
            logits, classes = by_label(outputs, labels)
            number = (classes != IGNORED).sum()
            shares["accuracy"] = Share((logits.argmax(dim=1) == classes).sum(), number)
        if self._name == "cross_entropy":
            shares["loss"] = Share(F.cross_entropy(*by_label(outputs, labels), reduction="sum"), number)
        else:
            shares["loss"] = Share(self.loss(outputs, labels) * len(labels), len(labels))
        for name, (path, metric) in self._metrics.items():
            value = run(f"train.metrics.{name}", path, metric, outputs, labels)
            shares[name] = Share(_number(f"train.metrics.{name}={path}", value) * len(labels), len(labels))
        return shares

    def has_accuracy(self, outputs: Any, labels: Tensor) -> bool:
        return isinstance(outputs, Tensor) and outputs.shape == (*labels.shape, self._dataset.num_classes)

    def check(self, outputs: Any, labels: Tensor, *, in_shape: list[int], model: str) -> None:
        """Try it on a few samples. Raises ConfigError where it will not do.

        Args:
            in_shape: of these samples.
            model: what the config says of it.
        """
        if self._own_loss is not None:
            if not self.loss(outputs, labels).requires_grad:
                raise ConfigError(f"train.loss={self._name} has no gradient: it must be made of what the model gives")
            self.measure(outputs, labels)
            return
        is_logits = self._name == "cross_entropy"
        wanted = [*labels.shape, *([self._dataset.num_classes] if is_logits else [])]
        found = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if found != wanted:
            kind, shape = ("logits", ", num_classes") if is_logits else ("values", "")
            raise ConfigError(
                f"{model}: for inputs {in_shape} the model gives {found}, not {kind} {wanted}, "
                f"which is [batch_size, *label_shape{shape}]"
            )
        self.measure(outputs, labels)

    def _called(self, own_loss: Function, outputs: Any, labels: Tensor) -> Tensor:
        """The user's own loss, of shape []. Raises ConfigError for whatever it raises, or if it is none."""
        loss = run("train.loss", self._name, own_loss, outputs, labels)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            found = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigError(f"train.loss={self._name} returned {found}, not one number: the mean over the batch")
        return loss.reshape(())


def by_label(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """[batch_size, *label_shape, num_classes] and [batch_size, *label_shape] -> [labels, num_classes] and [labels]."""
    return logits.flatten(0, -2), labels.flatten()


def _in_float32(outputs: Any) -> Any:
    """What autocast made of a tensor; the user's own functions know what else a model gives."""
    return outputs.float() if isinstance(outputs, Tensor) and outputs.is_floating_point() else outputs


def _number(what: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"{what} returned {type(value).__name__}, not one number: the mean over the batch") from None


class Measured(NamedTuple):
    """A model on the test split, means over it."""

    accuracy: float | None  # 0..1; None: the labels are no classes
    loss: float
    metrics: dict[str, float]  # of the user's own


def measured(shares: Mapping[str, list[Share]]) -> Measured:
    """The means that these shares add up to."""
    means = {name: _mean(each) for name, each in shares.items()}
    return Measured(accuracy=means.pop("accuracy", None), loss=means.pop("loss"), metrics=means)


def _mean(shares: list[Share]) -> float:
    total, number = (torch.stack([torch.as_tensor(part[i]).double().cpu() for part in shares]).sum() for i in (0, 1))
    return (total / number).item() if number else math.nan
