"""What a peer says of itself."""

from __future__ import annotations

import os
import socket
import time
from typing import Literal

import torch

from ray_gossip.config import Config
from ray_gossip.gossip.protocols import FinalResult
from ray_gossip.gossip.seat import Seat
from ray_gossip.records import Evaluation, PeerFinished, PeerStarted, Statistics
from ray_gossip.resources import pid_namespace
from ray_gossip.sidecar.network import Network
from ray_gossip.training.trainer import Trainer
from ray_gossip.usage import Meter


def started(trainer: Trainer, seat: Seat, *, class_counts: tuple[int, ...], samples: int) -> PeerStarted:
    """What it is, and where.

    Args:
        samples: that it began with.
    """
    device = trainer.device
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"
    return PeerStarted(
        peer_index=seat.peer_index,
        wall_time=time.time(),
        peer_id=seat.peer_id,
        multiaddrs=seat.multiaddrs,
        pid=os.getpid(),
        node=socket.gethostname(),
        device=name,
        num_parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        num_samples=trainer.num_samples,
        averaged_bytes=4 * trainer.averaged.size,
        averaged=trainer.averaged.tensors() if seat.peer_index == 0 else (),
        class_counts=class_counts,
        local_step=trainer.local_step,
        incarnation=seat.place.incarnation,
        samples=samples,
        pid_namespace=pid_namespace(),
    )


def meter(network: Network, *, place: str | None, device: torch.device) -> Meter:
    """Of what this peer takes of its machine.

    Args:
        place: of its checkpoints.
    """
    reserved = (lambda: int(torch.cuda.max_memory_reserved(device))) if device.type == "cuda" else None
    return Meter(network_pid=lambda: network.pid, place=place, device_bytes=reserved)


def evaluation(
    trainer: Trainer, peer_index: int, *, model: Literal["peer", "merged"], batch_norm: Statistics
) -> Evaluation:
    """Of the model as it is."""
    measured = trainer.evaluate()
    return Evaluation(
        peer_index=peer_index,
        wall_time=time.time(),
        local_step=trainer.local_step,
        model=model,
        accuracy=measured.accuracy,
        loss=measured.loss,
        metrics=measured.metrics,
        batch_norm=batch_norm,
    )


def finished(trainer: Trainer, peer_index: int, final: FinalResult, *, train_s: float, bytes_sent: int) -> PeerFinished:
    """That it is done.

    Args:
        bytes_sent: in all.
    """
    return PeerFinished(
        peer_index=peer_index,
        wall_time=time.time(),
        local_step=trainer.local_step,
        samples=trainer.samples,
        train_s=train_s,
        bytes_sent=bytes_sent,
        final_outcome=final.outcome,
        final_cause=final.cause,
        sketch=final.sketch,
    )


def device_notices(config: Config, device: torch.device) -> list[str]:
    reserved = config.swarm.gpus_per_peer
    if reserved > 0 and device.type == "cpu":
        return [f"swarm.gpus_per_peer={reserved:g} is reserved, but torch finds no CUDA here: it trains on the CPU"]
    return []
