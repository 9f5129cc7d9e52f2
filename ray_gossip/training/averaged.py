"""What peers average of a model, seen as one flat vector in host memory. This is the one place that decides it.

Averaged are, in this order:
- the parameters that train: `requires_grad`, float32;
- running statistics of layers in training mode: the persistent float buffers `running_mean` and `running_var` of
  torch's norm layers that track them, and of any other module with such buffers and a `momentum`;
- SGD's momentum of the parameters that train, where that is asked for.

Each memory once, however many names lead to it. Everything else is *the rest*: frozen parameters, masks, tables of
positions, counts, the unit vectors of spectral norm, integers, buffers that are not persistent. A newcomer gets the
rest as it is; no round touches it.

What is averaged is settled when the state is made. A tensor that is frozen later stays in it; one that trains later,
and did not then, is a user's mistake.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from ray_gossip.errors import UserError
from ray_gossip.records import AveragedTensor, Kind
from ray_gossip.tensor_memory import Memory, bytes_of, copy_of, first_overlap, without_repetition
from ray_gossip.training.named_tensors import NamedTensor, walk
from ray_gossip.training.upload import Upload


class _Part(NamedTuple):
    """A tensor of the vector."""

    kind: Kind
    name: str  # a momentum has that of its parameter
    shape: torch.Size
    dtype: torch.dtype

    @property
    def is_variance(self) -> bool:
        return self.kind == "statistic" and self.name.rpartition(".")[2] == "running_var"

    def __str__(self) -> str:
        return f"the momentum of {self.name}" if self.kind == "momentum" else self.name


class ModelState:
    """The averaged part of a model as a vector [size] float32 on the CPU: parameters, statistics, momentum.

    The model may move to another device at any time: its tensors are looked up anew for every round, and checked. A
    difference from the time at which the state was made is a UserError that names the tensor; nothing has changed then.

    Args:
        momentum_of: SGD whose momentum is part of the state.

    Raises:
        UserError: nothing trains, or it is not float32, has no shape yet, or lies on itself or on another.
    """

    def __init__(self, model: nn.Module, *, momentum_of: Optimizer | None = None) -> None:
        self._model, self._optimizer = model, momentum_of
        parts: dict[Memory, _Part] = {}
        self._tied: dict[str, str] = {}  # further names of averaged memory -> its first
        for kind, name, tensor in _averaged(model):
            first = parts.setdefault(Memory.of(tensor), _Part(kind, name, tensor.shape, tensor.dtype))
            if first.name != name:
                self._tied[name] = first.name
        if not any(part.kind == "parameter" for part in parts.values()):
            raise UserError("there are no parameters to train")
        self._parts = [*parts.values(), *self._momentum_parts()]
        self._sizes = [part.shape.numel() for part in self._parts]
        self.size = sum(self._sizes)
        self.num_parameters = sum(part.shape.numel() for part in self._parts if part.kind == "parameter")
        self._upload: Upload | None = None
        self._marks = self._fingerprints()

    @property
    def layout(self) -> str:
        """A digest of names, shapes and types of what is averaged: peers that average must have the same."""
        lines = [f"{part.kind} {part.name} {list(part.shape)} {part.dtype}" for part in self._parts]
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()

    def tensors(self) -> tuple[AveragedTensor, ...]:
        """What is averaged, tensor by tensor, for a person to read."""
        return tuple(
            AveragedTensor(name=part.name, shape=tuple(part.shape), kind=part.kind, num_bytes=4 * size)
            for part, size in zip(self._parts, self._sizes, strict=True)
        )

    def names(self) -> list[str]:
        """Of the tensors of the model that are averaged."""
        return [part.name for part in self._parts if part.kind != "momentum"]

    @torch.no_grad()
    def read(self, out: Tensor) -> None:
        """Copy the state into `out`, [size] float32 on the CPU. Waits for the steps queued so far."""
        tensors = self._live()
        device = tensors[0].device
        pieces = [tensor.reshape(-1).to(device, torch.float32) for tensor in tensors]
        if device == out.device:
            torch.cat(pieces, out=out)
        else:
            out.copy_(torch.cat(pieces))  # one transfer, however many small tensors there are

    @torch.no_grad()
    def add(self, delta: Tensor) -> None:
        """x <- x + delta, with delta [size] float32 on the CPU. A running variance that would fall below zero stays as
        it is: in the local steps of a round it may have fallen by more than it was then, and the layer would give NaN.
        """
        tensors = self._live()
        variances = [tensor for part, tensor in zip(self._parts, tensors, strict=True) if part.is_variance]
        before = [tensor.clone() for tensor in variances]
        torch._foreach_add_(tensors, self._on_device(delta, tensors))
        for tensor, was in zip(variances, before, strict=True):
            tensor.copy_(torch.where(tensor < 0, was, tensor))

    @torch.no_grad()
    def write(self, flat: Tensor) -> None:
        """x <- flat, with flat [size] float32 on the CPU."""
        tensors = self._live()
        torch._foreach_copy_(tensors, self._on_device(flat, tensors))

    @torch.no_grad()
    def rest(self) -> dict[str, Tensor]:
        """Copies on the CPU of all other parameters and buffers that the model has now, by their first names."""
        return {found.name: copy_of(found.tensor) for found in self._rest()}

    @torch.no_grad()
    def take_rest(self, rest: Mapping[str, Tensor]) -> list[str]:
        """Take over the `rest` of another peer, in place. What exists only there, or is not persistent and differs in
        shape or type, is passed over.

        Returns:
            Names of the frozen parameters that had other values here.

        Raises:
            UserError: a frozen parameter or a persistent buffer is missing there, or is another; nothing has changed.
        """
        pairs = []
        for found in self._rest():
            given, own = rest.get(found.name), found.tensor
            if given is not None and (given.shape, given.dtype) == (own.shape, own.dtype):
                pairs.append((found, given))
            elif found.is_persistent:
                there = "is missing" if given is None else f"is {list(given.shape)} {given.dtype}"
                raise UserError(
                    f"{found.name} is {list(own.shape)} {own.dtype} here and {there} in the swarm: use the same model"
                )
        differing = []
        for found, given in pairs:
            own = found.tensor
            if isinstance(own, nn.Parameter) and bytes_of(own) != bytes_of(given):
                differing.append(found.name)
            without_repetition(own).copy_(without_repetition(given, like=own))
        self._marks = self._fingerprints()
        return differing

    @torch.no_grad()
    def drifting(self) -> list[str]:
        """Persistent float buffers that are not averaged and have changed since this peer joined: training moves them,
        so each peer has its own, in the merged model too."""
        return [name for name, mark in self._fingerprints().items() if self._marks.get(name, mark) != mark]

    def _fingerprints(self) -> dict[str, bytes]:
        return {
            found.name: hashlib.blake2b(bytes_of(found.tensor), digest_size=8).digest()
            for found in self._rest()
            if found.is_persistent and found.tensor.is_floating_point() and not isinstance(found.tensor, nn.Parameter)
        }

    @torch.no_grad()
    def digest(self) -> str:
        """Of what two peers must have in common to begin alike: the values of all parameters, trained or frozen, and
        of all persistent buffers, but for what every forward pass moves in a layer in training mode: running
        statistics and their counts. Reads all of it: half a second for 100 million parameters."""
        digest = hashlib.blake2b(digest_size=8)
        for found in walk(self._model):
            if found.is_persistent and not found.is_moving:
                digest.update(f"{found.name} {list(found.tensor.shape)} {found.tensor.dtype}".encode())
                digest.update(bytes_of(found.tensor))
        return digest.hexdigest()

    def _live(self) -> list[Tensor]:
        """The tensors of the vector as the model has them now. Raises UserError if they are not those of the start."""
        named = {found.name: found.tensor for found in walk(self._model)}
        tensors = []
        for part in self._parts:
            tensor = named.get(part.name)
            if tensor is not None and part.kind == "momentum":
                tensor = self._momentum_of(tensor)
            if tensor is None or (tensor.shape, tensor.dtype) != (part.shape, part.dtype):
                now = "gone" if tensor is None else f"{list(tensor.shape)} {tensor.dtype}"
                raise UserError(
                    f"{part} is {now}, but was {list(part.shape)} {part.dtype} when this peer joined: change the "
                    "model before"
                )
            tensors.append(tensor)
        memories = [Memory.of(tensor) for tensor in tensors]
        self._check_apart(memories)
        self._check_complete(set(memories))
        return tensors

    def _check_apart(self, memories: list[Memory]) -> None:
        """Raise UserError if two parts, or two elements of one, share memory: a delta would be added twice."""
        for part, memory in zip(self._parts, memories, strict=True):
            if memory.overlaps_itself:
                raise UserError(
                    f"elements of {part} share memory, so it cannot be averaged: give it memory of its own, .clone()"
                )
        if overlap := first_overlap(memories):
            first, second = (self._parts[index] for index in overlap)
            raise UserError(
                f"{first} and {second} share some memory: tie them whole, {second} = {first}, or not at all"
            )

    def _check_complete(self, memories: set[Memory]) -> None:
        """Raise UserError if the rule of now asks for more than the rule of the start."""
        for kind, name, tensor in _averaged(self._model):
            if Memory.of(tensor) in memories:
                continue
            if name in self._tied:
                raise UserError(
                    f"{name} no longer shares memory with {self._tied[name]}: tie them by assigning the parameter "
                    "itself, which survives .to(), not its .data"
                )
            mend = "unfreeze it" if kind == "parameter" else "call model.train()"
            raise UserError(f"{name} is not averaged, because it did not train when this peer joined: {mend} before")

    def _rest(self) -> Iterator[NamedTensor]:
        """All that is not averaged, each memory once."""
        seen = set(map(Memory.of, self._live()))
        for found in walk(self._model):
            memory = Memory.of(found.tensor)
            if memory not in seen:
                seen.add(memory)
                yield found

    def _momentum_parts(self) -> list[_Part]:
        if self._optimizer is None:
            return []
        stepped = {id(parameter) for group in self._optimizer.param_groups for parameter in group["params"]}
        return [
            _Part("momentum", name, parameter.shape, parameter.dtype)
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad and parameter.numel() and id(parameter) in stepped
        ]

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        """SGD's buffer, made now where there is none yet: zeros give the same first step as the copy of the gradient
        that SGD makes."""
        assert self._optimizer is not None
        state = self._optimizer.state[parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    def _on_device(self, flat: Tensor, tensors: list[Tensor]) -> list[Tensor]:
        """`flat` as pieces with the tensors' shapes, types and devices."""
        device = tensors[0].device
        if self._upload is None or self._upload.device != device:
            self._upload = Upload(device)
        pieces = torch.split(self._upload(flat), self._sizes)
        return [piece.view(like.shape).to(like) for piece, like in zip(pieces, tensors, strict=True)]


def _averaged(model: nn.Module) -> Iterator[tuple[Kind, str, Tensor]]:
    """The rule, by every name: parameters that train, then statistics. Raises UserError where it cannot be followed."""
    statistics: list[tuple[Kind, str, Tensor]] = []
    for found in walk(model):
        name, tensor = found.name, found.tensor
        if is_lazy(tensor):
            raise UserError(f"{name} has no shape yet: run a forward pass first")
        if not tensor.numel():
            continue
        if isinstance(tensor, nn.Parameter):
            if tensor.requires_grad and tensor.layout is not torch.strided:
                raise UserError(f"{name} is sparse, but dense parameters are what is averaged: make it dense")
            if tensor.requires_grad and tensor.dtype != torch.float32:
                raise UserError(
                    f"{name} is {tensor.dtype}, but float32 is what is averaged; for faster steps use autocast "
                    "(of a run by config: train.precision=bf16)"
                )
            if tensor.requires_grad:
                yield "parameter", name, tensor
        elif found.is_statistic:
            statistics.append(("statistic", name, tensor))
    yield from statistics
