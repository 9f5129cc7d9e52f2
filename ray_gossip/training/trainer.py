"""Local SGD on one device. It knows no network and no Ray."""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ray_gossip.config import Config, TrainConfig
from ray_gossip.data import Batches, Dataset, augmentation
from ray_gossip.factory import run
from ray_gossip.records import Statistics
from ray_gossip.training.averaged import ModelState
from ray_gossip.training.criterion import Criterion, Measured
from ray_gossip.training.evaluation import EvaluationSplit
from ray_gossip.training.modes import evaluating
from ray_gossip.training.optimizer import build_optimizer, lr_schedule
from ray_gossip.training.recalibration import measure_afresh, measured_layers
from ray_gossip.training.update import Update

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class LocalProgress(NamedTuple):
    """How far a peer's own training has come."""

    local_step: int  # optimizer updates so far
    samples: int  # samples seen so far
    data_epoch: float  # passes over the shard so far
    loss: float  # mean since progress was last taken; nan when there was no local step
    lr: float  # of the next local step
    samples_per_s: float  # since progress was last taken


class Trainer:
    """A model, a shard of the data, and the optimizer between them.

    `optimizer` may be replaced by a wrapper of the one that is there: the learning-rate schedule goes on
    acting on the wrapped one. `notices` are sentences for the user about settings that were skipped.
    """

    def __init__(
        self, config: Config, *, model: nn.Module, dataset: Dataset, shard: Tensor, device: torch.device
    ) -> None:
        """
        Args:
            model: moved to `device`, which is the first that CUDA hears of it all.
            shard: indices into the training split, [num_samples] int64.

        Raises:
            ConfigError: model, loss and data set do not fit together.
        """
        self.device = device
        self.optimizer, self.notices = build_optimizer(config.optimizer, model)
        self.averaged = averaged_state(config, model, self.optimizer)  # before the move, which may untie tensors
        if not model.training:
            self.notices.append(
                "the model is in evaluation mode and stays there: dropout is off, statistics stand still; "
                "call .train() in model.factory if that is not meant"
            )
        self.model = model.to(device)
        if device.type == "cuda":
            if dataset.has_images:
                self.model = self.model.to(memory_format=torch.channels_last)  # in which its convolutions are fastest
            torch.backends.cudnn.benchmark = True  # batches have one size: the fastest algorithm is worth a search
        self._config, self._dataset, self._criterion = config, dataset, Criterion(config.train, dataset)
        self.batches = self._batches_of(shard)
        self._samples_before, self._epochs_before = 0, 0.0  # on shards that it had earlier
        self._network: Callable[[Tensor], Tensor] = torch.compile(self.model) if config.train.compile else self.model
        self._autocast = _AUTOCAST.get(config.train.precision)
        self._update = Update(config.train, device_type=device.type)
        self.local_step = 0
        self._lr_schedule = LambdaLR(self.optimizer, lr_schedule(config))
        self._test_split = EvaluationSplit(dataset, num_samples=config.train.eval_samples, device=device)
        if config.model.factory is not None or config.train.loss != "cross_entropy" or config.train.metrics:
            self._check_output()
        self._calibration = self._calibration_inputs(config, dataset)
        self._loss_sum = torch.zeros((), device=device)  # of the batches of local steps since progress was last taken
        self._taken_step, self._taken_samples, self._taken_time = 0, 0, time.monotonic()

    @property
    def num_samples(self) -> int:
        """Size of the shard."""
        return self.batches.num_samples

    @property
    def samples(self) -> int:
        """Samples seen so far."""
        return self._samples_before + self.batches.samples

    @property
    def data_epoch(self) -> float:
        """Passes over the shard so far, those over earlier shards included."""
        return self._epochs_before + self.batches.data_epoch

    @property
    def lr(self) -> float:
        """Learning rate of the next local step."""
        return float(self._lr_schedule.get_last_lr()[0])

    def take_shard(self, shard: Tensor) -> None:
        """Go on with other samples: the swarm has grown or shrunk.

        Args:
            shard: as in the constructor.
        """
        self._samples_before, self._epochs_before = self.samples, self.data_epoch
        self.batches = self._batches_of(shard)

    def skip_to(self, local_step: int) -> None:
        """Count from here, as a peer does that joins a running swarm; the learning rate follows."""
        self.local_step = self._taken_step = local_step
        self._lr_schedule = LambdaLR(self.optimizer, lr_schedule(self._config, first_step=local_step))

    def step(self) -> None:
        """One local step: one optimizer update. On a GPU it only queues work, and nothing here waits for the device,
        but with precision=fp16. What fp16 skips is no local step: then it goes on to the next batches.

        Raises:
            UserError: fp16 skips all.
        """
        is_applied = False
        while not is_applied:
            self.optimizer.zero_grad(set_to_none=True)
            losses = [self._backward() for _ in range(self._update.num_batches)]
            is_applied = self._update.apply(self.optimizer)
        self._lr_schedule.step()
        for loss in losses:
            self._loss_sum += loss
        self.local_step += 1

    def _backward(self) -> Tensor:
        """Add the gradients of the next batch; returns its loss."""
        inputs, labels = next(self.batches)
        with self._precision():
            outputs = self._network(inputs)
        loss = self._criterion.loss(outputs, labels)
        self._update.backward(loss)
        return loss.detach()

    @property
    def has_progress(self) -> bool:
        """A local step since progress was last taken."""
        return self.local_step > self._taken_step

    def take_progress(self) -> LocalProgress:
        """Progress so far; its mean loss and its rate start afresh. Waits for the steps queued so far.

        Taken once before the first local step, it keeps what came before out of the first rate.
        """
        num_steps = self.local_step - self._taken_step
        loss = self._loss_sum.item() / (num_steps * self._update.num_batches) if num_steps else math.nan
        now = time.monotonic()
        progress = LocalProgress(
            local_step=self.local_step,
            samples=self.samples,
            data_epoch=self.data_epoch,
            loss=loss,
            lr=self.lr,
            samples_per_s=(self.samples - self._taken_samples) / max(now - self._taken_time, 1e-9),
        )
        self._loss_sum.zero_()
        self._taken_step, self._taken_samples, self._taken_time = self.local_step, self.samples, now
        return progress

    def evaluate(self) -> Measured:
        """The model as it is on the test split. Training goes on as if it had not happened."""
        return self._test_split.evaluate(self.model, self._criterion, precision=self._precision)

    def settle_statistics(self) -> Statistics:
        """To be called on the merged model, before it is evaluated: measures its BatchNorm statistics afresh if the
        config asks for it, of layers that are in training mode. The samples are drawn from all shards by the seed, so
        that all peers get the same.

        Returns:
            Where the statistics come from.
        """
        layers = measured_layers(self.model)
        if not layers:
            return "none"
        if self._calibration is None:
            return "averaged"
        with self._precision():
            measure_afresh(layers, self.model, self._test_split.in_pieces(self._calibration))
        return "recalibrated"

    def read_state(self, out: Tensor) -> None:
        """Copy the state into `out`, [state_size] float32 on the CPU. Waits for the steps queued so far."""
        self.averaged.read(out)

    def add_to_state(self, delta: Tensor) -> None:
        """x <- x + delta, with delta [state_size] float32 on the CPU."""
        self.averaged.add(delta)

    def write_state(self, flat: Tensor) -> None:
        """x <- flat, with flat [state_size] float32 on the CPU."""
        self.averaged.write(flat)

    def rest(self) -> dict[str, Tensor]:
        """Copies on the CPU of what else belongs to the model. From any thread."""
        return self.averaged.rest()

    def take_rest(self, rest: Mapping[str, Tensor]) -> list[str]:
        """Take over the rest of another peer's model; returns the frozen parameters that were others here."""
        return self.averaged.take_rest(rest)

    def drifting(self) -> list[str]:
        return self.averaged.drifting()

    def digest(self) -> str:
        """Peers with the same digest have begun with the same model."""
        return self.averaged.digest()

    def snapshot(self) -> bytes:
        """`state` as bytes. Waits for the steps queued so far; call it between two of them."""
        buffer = io.BytesIO()
        torch.save(self.state(), buffer)
        return buffer.getvalue()

    def state(self) -> dict[str, Any]:
        """All that local training goes on from: model, optimizer, the local step. Later steps change some of it."""
        optimizer = self.optimizer.state_dict()["state"]
        counts = {"local_step": self.local_step, "samples": self.samples}
        return {**counts, "model": self.model.state_dict(), "optimizer": optimizer, "scaler": self._update.state()}

    def load(self, snapshot: bytes) -> None:
        """Go on from a snapshot, under this config's own hyperparameters; call it before the first local step.

        The batches are those that follow for this shard, so that the same config gives the same steps, bit for bit, as
        if there had been no break. A GPU's own random numbers, such as for dropout, are not among what is kept.
        """
        self.load_state(torch.load(io.BytesIO(snapshot), map_location="cpu", weights_only=True))

    def load_state(self, found: Mapping[str, Any]) -> None:
        """The same from what `state` has returned; `position` in it: samples of the present shard, if not all were."""
        self.model.load_state_dict(found["model"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": found["optimizer"], "param_groups": groups})
        self._update.load(found["scaler"])
        self.skip_to(found["local_step"])
        position = found.get("position", found["samples"])
        self._samples_before = found["samples"] - position
        self.batches.skip(position)
        self._taken_samples = self.samples

    def model_state(self) -> dict[str, Tensor]:
        """A copy of the model's state_dict on the CPU, for torch.save; it loads with weights_only=True."""
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}

    def _batches_of(self, shard: Tensor) -> Batches:
        config, dataset = self._config, self._dataset
        return Batches(
            dataset.train_inputs[shard],
            dataset.train_labels[shard],
            batch_size=config.data.batch_size,
            seed=config.seed,
            device=self.device,
            augmentation=augmentation(config.data, in_shape=dataset.in_shape),
            scale=dataset.scale,
        )

    def _precision(self) -> contextlib.AbstractContextManager[None]:
        """Of a forward pass. The loss, the parameters and what is averaged stay float32."""
        return torch.autocast(self.device.type, dtype=self._autocast) if self._autocast else contextlib.nullcontext()

    def _check_output(self) -> None:
        """Raise ConfigError unless the loss, its gradients and the metrics can be had of what the model gives."""
        inputs, labels = self._test_split.first(2)
        model = self._config.model
        key, name = ("model.name", model.name) if model.factory is None else ("model.factory", model.factory)
        with evaluating(self.model), self._precision():
            outputs = run(key, name or "", self.model, inputs)
        self._criterion.check(outputs, labels, in_shape=list(inputs.shape), model=f"{key}={name}")

    def _calibration_inputs(self, config: Config, dataset: Dataset) -> Tensor | None:
        """[num_samples, *in_shape] on the device; None when statistics are not measured afresh."""
        num_samples = config.train.recalibrate_samples
        is_default = num_samples == TrainConfig.model_fields["recalibrate_samples"].default
        has_measured = bool(measured_layers(self.model))
        if num_samples and not is_default and not has_measured:
            self.notices.append(
                f"train.recalibrate_samples={num_samples} is skipped: the model has no BatchNorm in training mode"
            )
        if num_samples == 0 or not has_measured:
            return None
        order = torch.randperm(dataset.num_train, generator=torch.Generator().manual_seed(config.seed))
        return dataset.train_inputs[order[:num_samples]].to(self.device)


def averaged_state(config: Config, model: nn.Module, optimizer: Optimizer) -> ModelState:
    """What this config averages of a model, and of the optimizer that trains it."""
    return ModelState(model, momentum_of=optimizer if config.gossip.average_momentum else None)
