"""A program in which two peers train, each in a thread of its own; they agree in the end. Where there is a GPU, their
models are on it before they join.

python two_peers.py [START_METHOD]
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

import torch
from torch import multiprocessing, nn
from torch.utils.data import DataLoader

import ray_gossip
from ray_gossip.loop import LoopPeer

CONFIG = {"gossip": {"steps": 5}, "swarm": {"final_s": 20}}


def enter(value: float, initial_peers: Sequence[str] = ()) -> tuple[LoopPeer, nn.Linear]:
    model = nn.Linear(4, 1, bias=False).to("cuda" if torch.cuda.is_available() else "cpu")
    peer = ray_gossip.join(model, initial_peers=initial_peers, config=CONFIG)
    nn.init.constant_(model.weight, value)
    return peer, model


def train(peer: LoopPeer, ended: list[str | None]) -> None:
    for _ in range(100):
        time.sleep(0.02)
        peer.step()
    ended.append(peer.leave())


def two_peers() -> None:
    """Both are alive at the same time, and none in the main thread."""
    entered: list[tuple[LoopPeer, nn.Linear]] = []
    for value in (1.0, 2.0):
        addresses = entered[0][0].multiaddrs if entered else ()
        thread = threading.Thread(target=lambda *words: entered.append(enter(*words)), args=(value, addresses))
        thread.start()
        thread.join()
    ended: list[str | None] = []
    threads = [threading.Thread(target=train, args=(peer, ended)) for peer, _ in entered]
    for thread in threads:
        thread.start()
    for batch in DataLoader(range(400), batch_size=10, num_workers=2):  # type: ignore[arg-type]
        assert len(batch) == 10
    for thread in threads:
        thread.join()
    (first, second) = (model.weight.detach() for _, model in entered)
    assert ended == ["averaged"] * 2, ended
    assert all(peer.rounds["averaged"] >= 3 for peer, _ in entered), [peer.rounds for peer, _ in entered]
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0.0)
    assert first.min() >= 1.0
    assert first.max() <= 2.0
    assert "hivemind" not in sys.modules
    print("agreed")


if __name__ == "__main__":
    if sys.argv[1:]:
        multiprocessing.set_start_method(sys.argv[1])
    two_peers()
