"""Tiny ImageNet on eight GPUs as a Ray job. On every node, once: ray-gossip data prepare configs/tiny_imagenet.yaml

ray job submit --address http://HEAD:8265 --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/tiny_imagenet.py --run-dir /shared/runs/tiny_imagenet
"""

import sys

from ray_gossip.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "configs/tiny_imagenet.yaml", *sys.argv[1:]]))
