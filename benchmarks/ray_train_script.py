"""Ray Train's DDP with a checkpoint every 50 steps, as its documentation has it, for `against_ray_train.py`."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from paced import build
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from torch import nn

from ray_gossip import data
from ray_gossip.config import Config


def train_loop(config: dict[str, Any]) -> None:
    """Writes a line for each step (rank 0), and who this process is (all)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings, context = Config(), ray.train.get_context()
    rank, folder = context.get_world_rank(), Path(config["folder"])
    dataset = data.load(settings.data)
    assert dataset.num_classes is not None
    model = prepare_model(build(dataset.in_shape, dataset.num_classes, config["step_s"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.optimizer.lr, momentum=settings.optimizer.momentum)
    step = 0
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as saved:
            state = torch.load(Path(saved) / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    batches = data.Batches(
        dataset.train_inputs,
        dataset.train_labels,
        batch_size=settings.data.batch_size,
        seed=rank,
        device=torch.device("cpu"),
        scale=dataset.scale,
    )
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    for inputs, labels in batches:
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        if rank == 0:
            with (folder / "steps.jsonl").open("a") as log:
                log.write(f"{json.dumps({'at': time.time(), 'step': step, 'loss': loss.item()})}\n")
        if step % config["every_steps"] == 0:
            with tempfile.TemporaryDirectory() as to_save:
                new = None
                if rank == 0:
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                    torch.save(state, Path(to_save) / "state.pt")
                    new = Checkpoint.from_directory(to_save)
                ray.train.report({"loss": loss.item()}, checkpoint=new)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int)
    parser.add_argument("--folder")
    parser.add_argument("--step_s", type=float)
    parser.add_argument("--every_steps", type=int)
    options = parser.parse_args()
    ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    TorchTrainer(
        train_loop,
        train_loop_config={key: getattr(options, key) for key in ("folder", "step_s", "every_steps")},
        scaling_config=ScalingConfig(num_workers=options.workers, resources_per_worker={"CPU": 0.1}),
        run_config=RunConfig(
            name="ddp", storage_path=f"{options.folder}/results", failure_config=FailureConfig(max_failures=-1)
        ),
    ).fit()
