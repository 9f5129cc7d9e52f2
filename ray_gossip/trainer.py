"""Local SGD on one device. It knows no network and no Ray.

What peers average is a model's *state*: all its parameters, then all its floating-point buffers. Others read
and change it as one flat vector, [state_size] float32 on the CPU.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import update_bn

from ray_gossip.config import Config, OptimizerConfig, TrainConfig
from ray_gossip.data import Batches, Dataset, Normaliser, augmentation
from ray_gossip.errors import ConfigError
from ray_gossip.records import Statistics

# Of an evaluation's batches, to bound the memory that it takes: 1024 images of CIFAR-10, 341 of Tiny ImageNet
_EVAL_BATCH_SIZE, _EVAL_BATCH_ELEMENTS = 1024, 2**22

_UNSUITED = {
    "LBFGS": "it evaluates the loss several times in a step",
    "Muon": "it takes matrices only, and networks have biases",
    "SparseAdam": "it takes sparse gradients only",
}


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
        """
        self.device = device
        self.model = model.to(device)
        if device.type == "cuda":
            self.model = self.model.to(memory_format=torch.channels_last)  # in which its convolutions are fastest
            torch.backends.cudnn.benchmark = True  # batches have one size: the fastest algorithm is worth a search
        self._config, self._dataset = config, dataset
        self.batches = self._batches_of(shard)
        self._samples_before, self._epochs_before = 0, 0.0  # on shards that it had earlier
        self.optimizer, self.notices = _build_optimizer(config.optimizer, self.model)
        self._network: Callable[[Tensor], Tensor] = torch.compile(self.model) if config.train.compile else self.model
        self._in_bf16 = config.train.precision == "bf16"
        self._state = averaged_tensors(self.model)
        if config.gossip.average_momentum:
            self._state += _momentum(self.optimizer)
        self.local_step = 0
        self._lr_schedule = LambdaLR(self.optimizer, _lr_schedule(config))
        self._upload = _Upload(device)
        self._normalise = Normaliser(dataset.scale, device=device)
        chosen = _spread_evenly(len(dataset.test_labels), config.train.eval_samples)
        self._test_images = dataset.test_images[chosen].to(device)
        self._test_labels = dataset.test_labels[chosen].to(device)
        self._has_batch_norm = any(isinstance(module, _BatchNorm) for module in self.model.modules())
        self._calibration = self._calibration_images(config, dataset)
        self._loss_sum = torch.zeros((), device=device)  # over the local steps since progress was last taken
        self._taken_step, self._taken_time = 0, time.monotonic()

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
        self._lr_schedule = LambdaLR(self.optimizer, _lr_schedule(self._config, first_step=local_step))

    def step(self) -> None:
        """One optimizer update. On a GPU it only queues work: nothing here waits for the device."""
        images, labels = next(self.batches)
        self.optimizer.zero_grad(set_to_none=True)
        with self._precision():
            logits = self._network(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self._lr_schedule.step()
        self._loss_sum += loss.detach()
        self.local_step += 1

    def take_progress(self) -> LocalProgress:
        """Progress so far; its mean loss and its rate start afresh. Waits for the steps queued so far.

        Taken once before the first local step, it keeps what came before out of the first rate.
        """
        num_steps = self.local_step - self._taken_step
        loss = self._loss_sum.item() / num_steps if num_steps else math.nan
        now = time.monotonic()
        progress = LocalProgress(
            local_step=self.local_step,
            samples=self.samples,
            data_epoch=self.data_epoch,
            loss=loss,
            lr=self.lr,
            samples_per_s=num_steps * self.batches.batch_size / max(now - self._taken_time, 1e-9),
        )
        self._loss_sum.zero_()
        self._taken_step, self._taken_time = self.local_step, now
        return progress

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Accuracy (0..1) and mean loss on the test split. Training goes on as if it had not happened."""
        self.model.eval()
        with self._precision():
            logits = torch.cat([self.model(images) for images in self._in_pieces(self._test_images)]).float()
        self.model.train()
        accuracy = (logits.argmax(dim=1) == self._test_labels).float().mean()
        return accuracy.item(), F.cross_entropy(logits, self._test_labels).item()

    @torch.no_grad()
    def settle_statistics(self) -> Statistics:
        """To be called on the merged model, before it is evaluated: measures its BatchNorm statistics afresh if the
        config asks for it. The samples are drawn from all shards by the seed, so that all peers get the same.

        Returns:
            Where the statistics come from.
        """
        if not self._has_batch_norm:
            return "none"
        if self._calibration is None:
            return "averaged"
        with self._precision():
            update_bn(self._in_pieces(self._calibration), self.model)
        return "recalibrated"

    @torch.no_grad()
    def read_state(self, out: Tensor) -> None:
        """Copy the state into `out`, [state_size] float32 on the CPU. Waits for the steps queued so far."""
        pieces = [tensor.reshape(-1) for tensor in self._state]
        if self.device == out.device:
            torch.cat(pieces, out=out)
        else:
            out.copy_(torch.cat(pieces))  # one transfer, however many small tensors there are

    @torch.no_grad()
    def add_to_state(self, delta: Tensor) -> None:
        """x <- x + delta, with delta [state_size] float32 on the CPU."""
        torch._foreach_add_(self._state, _cut(self._upload(delta), self._state))

    @torch.no_grad()
    def write_state(self, flat: Tensor) -> None:
        """x <- flat, with flat [state_size] float32 on the CPU."""
        torch._foreach_copy_(self._state, _cut(self._upload(flat), self._state))

    def model_state(self) -> dict[str, Tensor]:
        """A copy of the model's state_dict on the CPU, for torch.save; it loads with weights_only=True."""
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}

    def _batches_of(self, shard: Tensor) -> Batches:
        config, dataset = self._config, self._dataset
        return Batches(
            dataset.train_images[shard],
            dataset.train_labels[shard],
            batch_size=config.data.batch_size,
            seed=config.seed,
            device=self.device,
            augmentation=augmentation(config.data, in_shape=dataset.in_shape),
            scale=dataset.scale,
        )

    def _precision(self) -> contextlib.AbstractContextManager[None]:
        """Of a forward pass. The loss, the parameters and what is averaged stay float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self._in_bf16 else contextlib.nullcontext()

    def _in_pieces(self, images: Tensor) -> Iterator[Tensor]:
        """Normalised, and few enough at a time for the device's memory."""
        batch_size = max(1, min(_EVAL_BATCH_SIZE, _EVAL_BATCH_ELEMENTS // images[0].numel()))
        return map(self._normalise, torch.split(images, batch_size))

    def _calibration_images(self, config: Config, dataset: Dataset) -> Tensor | None:
        """[num_images, channels, height, width] on the device; None when statistics are not measured afresh."""
        num_images = config.train.recalibrate_samples
        is_default = num_images == TrainConfig.model_fields["recalibrate_samples"].default
        if num_images and not is_default and not self._has_batch_norm:
            self.notices.append(f"train.recalibrate_samples={num_images} is skipped: the model has no BatchNorm")
        if num_images == 0 or not self._has_batch_norm:
            return None
        order = torch.randperm(dataset.num_train, generator=torch.Generator().manual_seed(config.seed))
        return dataset.train_images[order[:num_images]].to(self.device)


def averaged_tensors(model: nn.Module) -> list[Tensor]:
    """The live tensors that make up the state, in the order that the model defines: the same on every peer.

    Integer buffers, such as BatchNorm's num_batches_tracked, stay each peer's own: a mean of counts is none.
    """
    buffers = (buffer for buffer in model.buffers() if buffer.is_floating_point())
    return [*model.parameters(), *buffers]


def state_size(model: nn.Module, *, with_momentum: bool = False) -> int:
    """Number of elements of the state."""
    parameters = sum(parameter.numel() for parameter in model.parameters()) if with_momentum else 0
    return sum(tensor.numel() for tensor in averaged_tensors(model)) + parameters


def _momentum(optimizer: Optimizer) -> list[Tensor]:
    """SGD's momentum buffers, made now: zeros give the same first step as the copy of the gradient that SGD makes."""
    buffers = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            buffers.append(optimizer.state[parameter]["momentum_buffer"])
    return buffers


def check_optimizer(config: OptimizerConfig) -> Callable[..., Optimizer]:
    """The class that `optimizer.name` names.

    Raises:
        ConfigError: torch.optim has none of this name, or it cannot do local steps.
    """
    classes = {
        name: member
        for name, member in vars(torch.optim).items()
        if isinstance(member, type) and issubclass(member, Optimizer) and member is not Optimizer
    }
    if config.name in _UNSUITED:
        raise ConfigError(f"optimizer.name={config.name} cannot train here: {_UNSUITED[config.name]}; try SGD or AdamW")
    if config.name not in classes:
        # Compared in lower case: to difflib, "sgd" and "SGD" have nothing in common.
        names = {name.lower(): name for name in classes}
        close = [names[match] for match in difflib.get_close_matches(config.name.lower(), names)]
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(sorted(classes))}"
        raise ConfigError(f"optimizer.name={config.name} is not in torch.optim; {hint}")
    return classes[config.name]


def lr_factor(
    step: int, *, schedule: Literal["constant", "cosine", "linear"], local_steps: int, warmup_steps: int
) -> float:
    """Learning rate of the local step that follows `step` others, as a share of the highest.

    It rises linearly for warmup_steps, the first of which already moves, then falls to zero at local_steps.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    passed = min(1.0, (step - warmup_steps) / max(1, local_steps - warmup_steps))
    return (1.0 + math.cos(math.pi * passed)) / 2 if schedule == "cosine" else 1.0 - passed


def _lr_schedule(config: Config, *, first_step: int = 0) -> Callable[[int], float]:
    factor = partial(
        lr_factor,
        schedule=config.optimizer.schedule,
        local_steps=config.train.local_steps,
        warmup_steps=config.optimizer.warmup_steps,
    )
    return lambda step: factor(first_step + step)


def _build_optimizer(config: OptimizerConfig, model: nn.Module) -> tuple[Optimizer, list[str]]:
    """The optimizer, and a notice for each value that the user chose and its class has no argument for."""
    optimizer_class = check_optimizer(config)
    known = inspect.signature(optimizer_class).parameters
    options: dict[str, float] = {}
    notices: list[str] = []
    for key in ("momentum", "weight_decay"):
        value: float = getattr(config, key)
        if key in known:
            options[key] = value
        elif value not in (0, OptimizerConfig.model_fields[key].default):
            notices.append(f"optimizer.{key}={value} is skipped: torch.optim.{config.name} has no {key}")
    return optimizer_class(model.parameters(), lr=config.lr, **options), notices


def _spread_evenly(num_samples: int, num_chosen: int | None) -> Tensor | slice:
    """An index of `num_chosen` samples out of all; None, or too many: of all, which copies nothing."""
    if num_chosen is None or num_chosen >= num_samples:
        return slice(None)
    return torch.arange(num_chosen) * num_samples // num_chosen


class _Upload:
    """Brings flat vectors to the device. To a GPU by way of pinned memory: from the averager's buffer itself, the
    transfer would wait for all local steps that are queued."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned: Tensor | None = None
        self._done = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, flat: Tensor) -> Tensor:
        if self._done is None:
            return flat.to(self._device)
        if self._pinned is None or len(self._pinned) < len(flat):
            self._pinned = torch.empty_like(flat, pin_memory=True)
        self._done.synchronize()  # the transfer before this one has left the pinned memory
        staged = self._pinned[: len(flat)].copy_(flat)
        on_device = staged.to(self._device, non_blocking=True)
        self._done.record()
        return on_device


def _cut(flat: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """`flat`, on the tensors' device, as views with their shapes."""
    pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]
