"""Two peers in a program that must not be forked, as one must not that has used CUDA."""

from __future__ import annotations

import sys
from typing import Any

from torch import multiprocessing


def forbid(event: str, _: tuple[Any, ...]) -> None:
    if event in ("os.fork", "os.forkpty"):
        raise RuntimeError("this process was forked")


if __name__ == "__main__":
    sys.addaudithook(forbid)
    multiprocessing.set_start_method("spawn")
    from tests.swarm.anywhere.two_peers import two_peers

    two_peers()
