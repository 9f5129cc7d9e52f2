"""All that local training goes on from, bit for bit: also its random numbers, and where it is in the data."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ray_gossip.training.trainer import Trainer


def whole_state(trainer: Trainer, *, kept: Tensor) -> dict[str, Any]:
    """A copy in host memory; call it between two local steps. Waits for the steps queued so far.

    Args:
        kept: what averaging keeps from round to round.
    """
    state: dict[str, Any] = copied(trainer.state())
    names = trainer.averaged.names()
    return state | {"position": trainer.batches.samples, "random": random_states(), "kept": kept, "averaged": names}


def go_on_from(trainer: Trainer, state: Mapping[str, Any], *, samples: int, is_same_shard: bool) -> None:
    """Before the first local step. Learning rate and other hyperparameters are those of the present config.

    Args:
        samples: that count as seen.
        is_same_shard: the data are dealt as they were: go on in the middle of the epoch.
    """
    position = state["position"] if is_same_shard else 0
    trainer.load_state({**state, "samples": samples, "position": position})
    if is_same_shard:  # else others may go on from the same one, and each draws its own
        set_random_states(state["random"])


def copied(value: Any) -> Any:
    """In host memory; mappings as dict (or Counter, which schedulers have), sequences as list, numbers as Python's."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Counter):
        return Counter(value)
    if isinstance(value, Mapping):
        return {key: copied(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [copied(each) for each in value]
    return value


def seed_random_numbers(*of: int) -> None:
    """Have all that `random_states` tells of follow from these numbers."""
    of_torch, of_numpy, of_python = np.random.SeedSequence(of).generate_state(3)
    torch.manual_seed(int(of_torch))
    np.random.seed(of_numpy)
    random.seed(int(of_python))


def random_states() -> dict[str, Any]:
    """Of this process: torch's (and CUDA's, where it is used), numpy's and Python's."""
    legacy: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, gauss = legacy
    version, numbers, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(numbers), next_gauss],
    }


def set_random_states(found: Mapping[str, Any]) -> None:
    torch.set_rng_state(found["torch"])
    if found["cuda"] and len(found["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(found["cuda"])
    kind, keys, position, has_gauss, gauss = found["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, numbers, next_gauss = found["python"]
    random.setstate((version, tuple(numbers), next_gauss))
