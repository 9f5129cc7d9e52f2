"""From the losses of one or more batches to one update of the parameters: accumulation, loss scaling, clipping."""

from __future__ import annotations

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from ray_gossip.config import TrainConfig
from ray_gossip.errors import UserError

_MOST_SKIPPED = 40  # in a row: torch's scale begins at 2**16 and is halved each time


class Update:
    """The updates of one model, one after the other.

    Args:
        device_type: of the gradients, "cpu" or "cuda".
    """

    def __init__(self, train: TrainConfig, *, device_type: str) -> None:
        self.num_batches = train.accumulate  # of which the gradients are averaged
        self._clip_norm = train.clip_norm
        self._scaler = GradScaler(device_type) if train.precision == "fp16" else None
        self._num_skipped = 0  # in a row

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a batch. On a GPU it only queues work."""
        if self.num_batches > 1:
            loss = loss / self.num_batches
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def apply(self, optimizer: Optimizer) -> bool:
        """Let the optimizer take its step; False: gradients were not finite in 16 bits, and nothing has changed. Waits
        for the gradients only where they are scaled.

        Raises:
            UserError: this has happened again and again.
        """
        if self._scaler is None:
            self._clip(optimizer)
            optimizer.step()
            return True
        if self._clip_norm is not None:
            self._scaler.unscale_(optimizer)
            self._clip(optimizer)
        before = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        is_applied = self._scaler.get_scale() >= before  # it falls when a step was skipped, and then only
        self._num_skipped = 0 if is_applied else self._num_skipped + 1
        if self._num_skipped == _MOST_SKIPPED:
            raise UserError(
                f"train.precision=fp16: gradients were not finite {_MOST_SKIPPED} times in a row, however small their "
                "scale: lower optimizer.lr, set train.clip_norm, or use bf16"
            )
        return is_applied

    def state(self) -> dict[str, float]:
        """What a snapshot keeps."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load(self, state: dict[str, float]) -> None:
        """Go on from `state`, where this run scales as the other did."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(state)

    def _clip(self, optimizer: Optimizer) -> None:
        if self._clip_norm is not None:
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, self._clip_norm)
