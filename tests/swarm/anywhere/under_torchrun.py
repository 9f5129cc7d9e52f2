"""One of several processes that torchrun has started; each is a peer."""

from __future__ import annotations

import torch
from torch import distributed

from tests.swarm.anywhere.two_peers import enter, train

if __name__ == "__main__":
    distributed.init_process_group("gloo")
    rank, addresses = distributed.get_rank(), [()]
    if rank == 0:
        peer, model = enter(1.0)
        addresses = [peer.multiaddrs]  # type: ignore[list-item]
    distributed.broadcast_object_list(addresses)
    if rank > 0:
        peer, model = enter(1.0 + rank, addresses[0])
    distributed.barrier()
    ended: list[str | None] = []
    train(peer, ended)
    weights = [torch.empty(1, 4) for _ in range(distributed.get_world_size())]
    distributed.all_gather(weights, model.weight.detach())
    torch.testing.assert_close(weights[0], weights[-1], atol=1e-6, rtol=0.0)
    assert ended == ["averaged"], ended
    print("agreed")
    distributed.destroy_process_group()
