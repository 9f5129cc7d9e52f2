"""A user's own script: runs from Python, with functions that only this script knows, and peers in loops of its own."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray
import torch
from charlm.text import ALPHABET
from charlm.transformer import Decoder
from torch import nn

import ray_gossip
from ray_gossip import GossipTrainer
from ray_gossip.gossip_trainer import Result

STEPS = {"gossip": {"steps": 20}, "train": {"local_steps": 100, "eval_every": 100}}
ADAM = {"optimizer": {"name": "AdamW", "lr": 0.01}}


def train(folder: Path) -> Result:
    """A transformer from a closure, texts by name."""
    dim = 64
    return GossipTrainer(
        model=lambda in_shape, num_classes: Decoder(in_shape[0], num_classes, dim, num_layers=1),
        data="charlm.text:next_characters",
        config={**STEPS, **ADAM},
        num_peers=2,
        run_dir=folder,
        verbose=False,
    ).fit()


@ray.remote(num_cpus=0.5)
class Loop:
    """A peer whose loop is no business of ray_gossip's."""

    def __init__(self, initial_peers: list[str]) -> None:
        self.model = nn.Linear(4, 1)
        self.peer = ray_gossip.join(self.model, initial_peers=initial_peers, config={"gossip": {"steps": 5}})

    def addresses(self) -> list[str]:
        return list(self.peer.multiaddrs)

    def run(self) -> tuple[dict[Any, int], str | None, list[float]]:
        """Draws its weights towards its own number; returns rounds by outcome, the end, and the weights then."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        target = torch.full((1, 4), float(self.peer.peer_index % 10))
        for _ in range(50):
            optimizer.zero_grad()
            loss = (self.model.weight - target).square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            time.sleep(0.05)  # a loop that is done in milliseconds meets nobody
            self.peer.step()
        outcome = self.peer.leave()
        return dict(self.peer.rounds), outcome, self.model.weight.flatten().tolist()


def loops() -> list[Any]:
    actor: Any = Loop
    first = actor.remote([])
    second = actor.remote(ray.get(first.addresses.remote()))
    ray.get(second.addresses.remote())
    answers: list[Any] = ray.get([first.run.remote(), second.run.remote()])
    return answers


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    result = train(folder)
    Decoder(32, len(ALPHABET), 64, num_layers=1).load_state_dict(result.checkpoint.state_dict())
    with result.checkpoint.as_directory() as checkpoint:
        saved = sorted(path.name for path in checkpoint.glob("*.pt"))
    answer = {
        "metrics": result.metrics,
        "path": str(result.path),
        "saved": saved,
        "still_connected": ray.is_initialized(),
        "loops": loops(),
    }
    print(json.dumps(answer))
