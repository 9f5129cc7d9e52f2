"""Actors of Ray that import torch and hivemind, and do nothing: what `start_up.py` compares with."""

from __future__ import annotations

import sys

import ray


@ray.remote(num_cpus=0.1)
class Bare:
    def imports(self) -> str:
        import hivemind
        import torch

        return f"{torch.__version__} {hivemind.__version__}"


def main() -> None:
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    actors = [Bare.remote() for _ in range(int(sys.argv[1]))]  # type: ignore[attr-defined]
    ray.get([actor.imports.remote() for actor in actors])
    print("ready", flush=True)
    sys.stdin.read()  # until whoever measures has done so


if __name__ == "__main__":
    main()
