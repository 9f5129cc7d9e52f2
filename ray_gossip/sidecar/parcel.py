"""A model on its way between a training process and its sidecar: in memory without a name, however large it is."""

from __future__ import annotations

import os

import torch

from ray_gossip.gossip.handover import Handover


def packed(handover: Handover) -> int:
    """A descriptor to send; close it then."""
    file = os.memfd_create("ray_gossip model")
    with os.fdopen(os.dup(file), "wb") as stream:
        torch.save(
            [handover.local_step, handover.state, dict(handover.rest), handover.layout, handover.is_current], stream
        )
    return file


def opened(file: int) -> Handover:
    """What was packed. Closes the descriptor."""
    with os.fdopen(file, "rb") as stream:
        stream.seek(0)
        local_step, state, rest, layout, is_current = torch.load(stream, weights_only=True)
    return Handover(local_step=local_step, state=state, rest=rest, layout=layout, is_current=is_current)
