"""Models that do what a test needs at the moment at which it needs it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from torch import Tensor, nn


class Linear(nn.Sequential):
    def __init__(self, in_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(in_shape[0] * in_shape[1] * in_shape[2], num_classes))


class Slow(Linear):
    """Takes its time, and no processor: in training, or in evaluation."""

    def __init__(self, in_shape: tuple[int, ...], num_classes: int, *, step_s: float = 0, batch_s: float = 0) -> None:
        super().__init__(in_shape, num_classes)
        self._step_s, self._batch_s = step_s, batch_s

    def forward(self, inputs: Tensor) -> Tensor:
        time.sleep(self._step_s if self.training else self._batch_s)
        outputs: Tensor = super().forward(inputs)
        return outputs


# For runs that go on until a test ends them: at full speed they would take the processors from other tests.
PACED = ("model.factory=tests.job.networks:Slow", "model.args.step_s=0.01")


class Wide(Slow):
    """Takes 1.2 MB with its momentum: more than Ray sends along with an answer."""

    def __init__(self, in_shape: tuple[int, ...], num_classes: int, *, step_s: float) -> None:
        super().__init__(in_shape, num_classes, step_s=step_s)
        self[1] = nn.Sequential(nn.Linear(in_shape[0] * in_shape[1] * in_shape[2], 2000), nn.Linear(2000, num_classes))


class Hurried(Slow):
    """Takes its time until the file `order` is there."""

    def __init__(self, in_shape: tuple[int, ...], num_classes: int, *, order: str, step_s: float) -> None:
        super().__init__(in_shape, num_classes, step_s=step_s)
        self._order = Path(order)

    def forward(self, inputs: Tensor) -> Tensor:
        if self._step_s and self._order.exists():
            self._step_s = 0
        return super().forward(inputs)


class Fragile(Slow):
    """Fails in one process: in that whose id the file `order` holds."""

    def __init__(self, in_shape: tuple[int, ...], num_classes: int, *, order: str, step_s: float) -> None:
        super().__init__(in_shape, num_classes, step_s=step_s)
        self._order = Path(order)

    def forward(self, inputs: Tensor) -> Tensor:
        if self._order.exists() and self._order.read_text() == str(os.getpid()):
            raise ArithmeticError("a layer of this model has failed")
        return super().forward(inputs)


class Dropping(Slow):
    """Takes its time, and draws random numbers of torch's."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(inputs, 0.2, self.training))
