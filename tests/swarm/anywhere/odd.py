"""A peer in a program with a strange `sys.path`, in a folder with modules named as others, which forks on its own.

It prints the process ids of its nursery and of a child that lives on, and waits.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from unittest import mock

import psutil
from torch import nn

import ray_gossip
from ray_gossip.sidecar import client

if __name__ == "__main__":
    own = mock.patch.object(client, "address", return_value=f"\0ray_gossip.{os.getpid()}")
    own.start()  # a nursery of its own
    sys.path.append(Path("/nowhere"))  # type: ignore[arg-type]
    peer = ray_gossip.join(nn.Linear(4, 1), config={"gossip": {"steps": 1}})
    sidecar = peer._engine.averager.pid  # type: ignore[attr-defined]
    for number in range(2):
        child = os.fork()
        if child == 0 and number == 0:
            sys.exit()  # with all that Python does at an exit
        if child == 0:
            try:
                peer.step()
            except ray_gossip.UserError as error:
                Path("told").write_text(str(error))
            time.sleep(600.0)
    os.waitpid(-1, 0)
    for _ in range(20):
        peer.step()
        time.sleep(0.05)
    assert peer.rounds["failed"] == 0, peer.rounds
    print(psutil.Process(sidecar).ppid(), child, flush=True)
    time.sleep(600.0)
