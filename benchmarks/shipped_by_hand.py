"""hivemind as its quickstart has it, with nothing of ours but the digits and the network: what `engine=hivemind` is
measured against in shipped.py. Prints one JSON line for each peer.

    python benchmarks/shipped_by_hand.py        1 to 2 minutes on two cores
"""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from typing import Any

import hivemind
import paced
import torch
from torch.nn import functional as F

from ray_gossip import data
from ray_gossip.config import Config

PEERS, H, BATCH_SIZE, LOCAL_STEPS = 4, 20, 32, 1000


def train(index: int, addresses: Any, together: Any) -> None:
    torch.set_num_threads(1)
    digits = data.load(Config().data)
    torch.manual_seed(0)
    model = paced.build(digits.in_shape, digits.num_outputs)
    mine = torch.randperm(digits.num_train, generator=torch.Generator().manual_seed(0))[index::PEERS]
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    cosine = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: (1 + math.cos(math.pi * step / LOCAL_STEPS)) / 2)
    dht = hivemind.DHT(initial_peers=[addresses.get()] if index else None, start=True)
    for _ in range(0 if index else PEERS - 1):
        addresses.put(str(dht.get_visible_maddrs()[0]))
    optimizer = hivemind.Optimizer(
        dht=dht,
        run_id="digits",
        batch_size_per_step=BATCH_SIZE,
        target_batch_size=BATCH_SIZE * H * PEERS,
        optimizer=sgd,
        use_local_updates=True,
        delay_state_averaging=False,
        matchmaking_time=3.0,
        averaging_timeout=6.0,
        tracker_opts={"min_refresh_period": 0.1, "default_refresh_period": 0.2, "max_refresh_period": 0.5},
        averager_opts={"target_group_size": PEERS, "request_timeout": 1.5, "sync_epoch_when_averaging": True},
    )
    together.wait()
    started = time.monotonic()
    for _ in range(LOCAL_STEPS):
        batch = mine[torch.randint(len(mine), (BATCH_SIZE,))]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(digits.train_inputs[batch]), digits.train_labels[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        cosine.step()
    seconds, rounds = time.monotonic() - started, optimizer.local_epoch
    optimizer.shutdown()
    right = model.eval()(digits.test_inputs).argmax(dim=1) == digits.test_labels
    print(json.dumps({"rounds": rounds, "seconds": seconds, "accuracy": right.float().mean().item()}), flush=True)
    together.wait()  # its DHT node serves the others until they are done
    dht.shutdown()


if __name__ == "__main__":
    addresses: multiprocessing.Queue[str] = multiprocessing.Queue()
    together = multiprocessing.Barrier(PEERS)
    peers = [multiprocessing.Process(target=train, args=(index, addresses, together)) for index in range(PEERS)]
    for peer in peers:
        peer.start()
    for peer in peers:
        peer.join()
