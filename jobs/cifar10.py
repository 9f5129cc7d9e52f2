"""CIFAR-10 on eight GPUs as a Ray job. On every node, once: ray-gossip data prepare configs/cifar10.yaml

ray job submit --address http://HEAD:8265 --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/cifar10.py --run-dir /shared/runs/cifar10

Fewer GPUs, or none: append what the head of configs/cifar10.yaml says.
"""

import sys

from ray_gossip.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "configs/cifar10.yaml", *sys.argv[1:]]))
